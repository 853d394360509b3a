"""What nobody thought of logging while recipes/cartpole.yaml was trained."""

from __future__ import annotations

from collections.abc import Generator

import gymnasium
import numpy as np
import torch
from torch.distributions import Categorical

import flor_plugins as flor

CLIP = 0.2  # of recipes/cartpole.py
EPISODES = 16


@flor.metric(at="step")
def explained_variance(ctx: flor.Context) -> torch.Tensor:
    """How much of the variance of the minibatch's returns the value function had foreseen when
    it played.

    1 is all; 0 is no better than their mean, and below that it is worse.
    """
    return 1 - (ctx.batch.returns - ctx.batch.values).var() / ctx.batch.returns.var()


@flor.metric(at="step")
def approx_kl(ctx: flor.Context) -> Generator[None, None, torch.Tensor]:
    """KL divergence of the policy before the update from the one that played, in nats, over the
    minibatch.

    The estimate (r - 1) - log r has no bias, is never negative and varies little:
    http://joschu.net/blog/kl-approx.html"""
    logged = log_ratio(ctx)
    yield
    return (logged.expm1() - logged).mean()


@flor.metric(at="step")
def clip_fraction(ctx: flor.Context) -> Generator[None, None, torch.Tensor]:
    """Share of the minibatch whose ratio is so far from 1 that it is clipped, before the update."""
    logged = log_ratio(ctx)
    yield
    return ((logged.exp() - 1).abs() > CLIP).float().mean()


@flor.metric(at="epoch")
def greedy_return(ctx: flor.Context) -> float:
    """Mean return of EPISODES episodes in which the likeliest action is taken each time; 500
    is the most.
    """
    environments = gymnasium.make_vec("CartPole-v1", num_envs=EPISODES)
    observed, _ = environments.reset(seed=1000)
    returns, is_going = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
    while is_going.any():
        logits, _ = ctx.model(torch.from_numpy(observed).to(ctx.device))
        observed, rewards, terminated, truncated, _ = environments.step(
            logits.argmax(dim=-1).cpu().numpy()
        )
        returns += rewards * is_going
        is_going &= ~(terminated | truncated)
    return float(returns.mean())


def log_ratio(ctx: flor.Context) -> torch.Tensor:
    """Log of the present probability of each action over that when it was played:
    (transitions,) float64.
    """
    logits, _ = ctx.model(ctx.batch.observations)
    present = Categorical(logits=logits).log_prob(ctx.batch.actions)
    return present.double() - ctx.batch.log_probs.double()
