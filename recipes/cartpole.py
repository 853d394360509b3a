"""PPO learns to balance a pole (CartPole-v1 of gymnasium), in a loop written by hand.

The algorithm is that of Schulman et al. (2017, arXiv:1707.06347) with the details of CleanRL's
ppo.py: generalized advantages, clipped policy and value losses, advantages normalised in each
minibatch, an annealed learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import flor_plugins as flor

OBSERVED, ACTIONS = 4, 2
DISCOUNT, LAMBDA = 0.99, 0.95
CLIP, ENTROPY_WEIGHT, VALUE_WEIGHT, LARGEST_GRADIENT = 0.2, 0.01, 0.5, 0.5
PASSES = 6  # over each rollout


@dataclass(frozen=True)
class Scale:
    """How much is played; the net is the same. steps: of each environment in a rollout.
    rollouts: in an epoch.
    """

    environments: int
    steps: int
    rollouts: int


SCALES = {
    "tiny": Scale(8, 128, 13),  # 40 thousand steps in three epochs
    "full": Scale(32, 128, 41),  # 504 thousand
}


class Rollout(NamedTuple):
    """Transitions, or a minibatch of them. observations: (transitions, OBSERVED) float32, all
    else (transitions,).

    log_probs, values: by the net that played. returns: what the value function is to foresee.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def build_trainer(
    *,
    epochs: int = 3,
    learning_rate: float = 2.5e-3,
    hidden_size: int = 64,
    minibatches: int = 4,
    scale: str = "tiny",
    seed: int = 1,
) -> None:
    """Train, all of it. minibatches: of each pass over a rollout."""
    torch.set_num_threads(1)  # a second thread makes so small a net slower
    torch.manual_seed(seed)
    size = SCALES[scale]
    net = Agent(hidden_size)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, eps=1e-5)
    total = epochs * size.rollouts
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / total)
    players = Players(size.environments, seed)
    flor.checkpoints(net, optimizer, schedule, players=players)
    for _ in flor.loop("epoch", range(epochs)):
        ended: list[float] = []
        for _ in flor.loop("rollout", range(size.rollouts)):
            rollout = players.play(net, size.steps, ended)
            for batch in flor.loop("step", shuffled(rollout, minibatches)):
                loss = ppo_loss(net, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
                flor.log("loss", loss)
                optimizer.step()
            schedule.step()
        flor.log("mean_return", sum(ended) / len(ended) if ended else math.nan)


class Agent(nn.Module):
    """A policy and a value function, each two layers of tanh."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.actor = layers(hidden_size, ACTIONS, 0.01)
        self.critic = layers(hidden_size, 1, 1.0)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """observations: (..., OBSERVED) float32.

        Returns logits of the actions: (..., ACTIONS), and values: (...).
        """
        return self.actor(observations), self.critic(observations).squeeze(-1)


def layers(hidden_size: int, out: int, gain: float) -> nn.Sequential:
    """gain: of the last layer's orthogonal weights; those of the others are sqrt 2."""
    linear = [
        nn.Linear(OBSERVED, hidden_size),
        nn.Linear(hidden_size, hidden_size),
        nn.Linear(hidden_size, out),
    ]
    for one, its in zip(linear, (math.sqrt(2), math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(one.weight, its)
        nn.init.zeros_(one.bias)
    return nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])


class Players:
    """Environments, and where each of them stands between two rollouts."""

    def __init__(self, count: int, seed: int) -> None:
        self.environments = gymnasium.make_vec("CartPole-v1", num_envs=count)
        self.observed, _ = self.environments.reset(seed=seed)
        self.is_over = np.zeros(count, dtype=bool)
        self.rewards = np.zeros(count)  # of the present episode

    @torch.no_grad()
    def play(self, net: Agent, steps: int, ended: list[float]) -> Rollout:
        """So many steps of each environment.

        The returns of episodes that end are added to `ended`.
        """
        rows = []
        for _ in range(steps):
            observed = torch.from_numpy(self.observed)
            logits, values = net(observed)
            policy = Categorical(logits=logits)
            actions = policy.sample()
            # An environment is reset by the step after the end of its episode, which takes no
            # action: no transition.
            is_valid = ~self.is_over
            self.observed, rewards, terminated, truncated, _ = self.environments.step(
                actions.numpy()
            )
            self.is_over = terminated | truncated
            self.rewards += rewards
            ended += self.rewards[self.is_over].tolist()
            self.rewards[self.is_over] = 0.0
            told = map(
                torch.from_numpy, (rewards.astype(np.float32), terminated, self.is_over, is_valid)
            )
            rows.append((observed, actions, policy.log_prob(actions), values, *told))
        columns = map(torch.stack, zip(*rows, strict=True))
        observed, actions, log_probs, values, rewards, terminated, is_over, is_valid = columns
        following = torch.cat([values[1:], net(torch.from_numpy(self.observed))[1][None]])
        advantages = advantages_of(rewards, values, following, terminated, is_over)
        kept = (observed, actions, log_probs, values, advantages, advantages + values)
        return Rollout(*(one[is_valid] for one in kept))


def advantages_of(
    rewards: Tensor, values: Tensor, following: Tensor, terminated: Tensor, is_over: Tensor
) -> Tensor:
    """Generalized advantages (Schulman et al. 2016, arXiv:1506.02438). All (steps, environments).

    following: values of the observations after each step. terminated: the pole fell, so that
    nothing follows. is_over: that, or the time was up, after which more would have followed.
    """
    found, later = torch.zeros_like(values), torch.zeros_like(values[0])
    for step in reversed(range(len(rewards))):
        error = rewards[step] + DISCOUNT * following[step] * ~terminated[step] - values[step]
        later = error + DISCOUNT * LAMBDA * ~is_over[step] * later
        found[step] = later
    return found


def shuffled(rollout: Rollout, minibatches: int) -> Iterator[Rollout]:
    """The minibatches of PASSES passes over a rollout."""
    for _ in range(PASSES):
        for rows in torch.randperm(len(rollout.actions)).tensor_split(minibatches):
            yield Rollout(*(column[rows] for column in rollout))


def ppo_loss(net: Agent, batch: Rollout) -> Tensor:
    logits, values = net(batch.observations)
    policy = Categorical(logits=logits)
    ratio = (policy.log_prob(batch.actions) - batch.log_probs).exp()
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
    near = batch.values + (values - batch.values).clamp(-CLIP, CLIP)
    error = torch.maximum((values - batch.returns) ** 2, (near - batch.returns) ** 2).mean() / 2
    return VALUE_WEIGHT * error - gain - ENTROPY_WEIGHT * policy.entropy().mean()
