"""recipes/cartpole: what it computes, and that all of it can be asked in hindsight."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import explained_variance_score
from torch.distributions import Categorical, kl_divergence

import flor_plugins as flor
from flor_plugins.hooks.hook_files import load
from flor_plugins.recipe import check_recipe
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import Project, rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
PARAMETERS = 9_155


@pytest.fixture
def cartpole(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(RECIPES)
    yield import_module("cartpole")


@pytest.fixture
def metrics() -> dict[str, Any]:
    return {one.name: one.function for one in load(RECIPES / "hooks" / "cartpole.py").metrics}


def played(cartpole: ModuleType, steps: int = 300) -> tuple[Any, Any, list[float], Any]:
    torch.manual_seed(0)
    net, players, ended = cartpole.Agent(64), cartpole.Players(8, seed=1), []
    return net, players, ended, players.play(net, steps, ended)


def computed(hook: Any, ctx: flor.Context) -> torch.Tensor:
    """A generator runs up to its yield before the update."""
    started = hook(ctx)
    if isinstance(started, torch.Tensor):
        return started
    next(started)
    with pytest.raises(StopIteration) as stop:
        next(started)
    return stop.value.value


def test_recipe_has_no_mistake_and_the_full_size_is_the_same_net(cartpole: ModuleType) -> None:
    assert check_recipe(RECIPES / "cartpole.yaml") == []
    with torch.device("meta"):
        net = cartpole.Agent(hidden_size=64)
    assert sum(one.numel() for one in net.parameters()) == PARAMETERS
    tiny, full = cartpole.SCALES["tiny"], cartpole.SCALES["full"]
    assert [3 * one.environments * one.steps * one.rollouts for one in (tiny, full)] == [
        39_936,
        503_808,
    ]


def test_update_of_the_full_scale_is_one_of_the_tiny_scale_with_more_transitions(
    cartpole: ModuleType,
) -> None:
    torch.manual_seed(0)
    size, net = cartpole.SCALES["full"], cartpole.Agent(64)
    rollout = cartpole.Players(size.environments, seed=1).play(net, size.steps, [])
    batch = next(cartpole.shuffled(rollout, minibatches=4))
    cartpole.ppo_loss(net, batch).backward()
    assert 900 < len(batch.actions) <= 1024
    assert all(
        torch.isfinite(one.grad).all() and one.grad.abs().sum() > 0 for one in net.parameters()
    )


def test_step_that_only_resets_an_environment_is_no_transition(cartpole: ModuleType) -> None:
    _, players, ended, rollout = played(cartpole)
    assert len(ended) > 20
    # Every transition is rewarded with 1: those of whole episodes, and those of the eight that
    # are going on.
    assert len(rollout.actions) == sum(ended) + players.rewards.sum() < 300 * 8
    position, angle = rollout.observations[:, 0].abs(), rollout.observations[:, 2].abs()
    assert (position <= 2.4).all() and (
        angle <= 12 * np.pi / 180 + 1e-6
    ).all()  # nobody acts when the pole is down


def test_advantages_are_the_discounted_errors_up_to_the_end_of_the_episode(
    cartpole: ModuleType,
) -> None:
    numbers = np.random.default_rng(3)
    rewards, values, following = (numbers.normal(size=(7, 2)) for _ in range(3))
    terminated = np.zeros((7, 2), bool)
    terminated[2, 0] = True
    is_over = terminated.copy()
    is_over[4, 1] = True  # the time was up: what follows counts, and the sum ends
    found = cartpole.advantages_of(
        *map(torch.from_numpy, (rewards, values, following, terminated, is_over))
    )
    for env in range(2):
        for start in range(7):
            ends = [step for step in range(start, 7) if is_over[step, env]]
            total = sum(
                (0.99 * 0.95) ** (step - start)
                * (
                    rewards[step, env]
                    + 0.99 * following[step, env] * (not terminated[step, env])
                    - values[step, env]
                )
                for step in range(start, ends[0] + 1 if ends else 7)
            )
            assert found[start, env].item() == pytest.approx(total, rel=1e-6)


def test_loss_of_the_policy_that_played_is_that_of_its_values_and_entropy(
    cartpole: ModuleType,
) -> None:
    net, _, _, rollout = played(cartpole, steps=64)
    probabilities = net(rollout.observations)[0].softmax(-1).detach().numpy().astype(float)
    entropy = -(probabilities * np.log(probabilities)).sum(-1).mean()
    error = ((rollout.values - rollout.returns).numpy().astype(float) ** 2).mean() / 2
    # The ratio is 1 and normalised advantages have the mean 0: nothing else is left.
    assert cartpole.ppo_loss(net, rollout).item() == pytest.approx(
        0.5 * error - 0.01 * entropy, abs=1e-5
    )


def test_each_pass_shows_each_transition_once(cartpole: ModuleType) -> None:
    _, _, _, rollout = played(cartpole, steps=64)
    batches = list(cartpole.shuffled(rollout, minibatches=4))
    assert len(batches) == 4 * cartpole.PASSES
    for begin in range(0, len(batches), 4):
        shown = torch.cat([one.observations for one in batches[begin : begin + 4]])
        assert sorted(shown.tolist()) == sorted(rollout.observations.tolist())


def test_hooks_agree_with_other_ways_to_compute_the_same(
    cartpole: ModuleType, metrics: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net, observed = cartpole.Agent(64), torch.randn(1, 4).expand(100_000, 4)
    net.actor[4].weight.data.normal_()
    old = Categorical(logits=net(observed)[0].detach() + torch.tensor([1.0, 0.0]))
    actions = old.sample()
    values, returns = torch.randn(100_000), torch.randn(100_000)
    batch = cartpole.Rollout(
        observed, actions, old.log_prob(actions), values, values, returns + values
    )
    with torch.no_grad():
        of_steps = {name: hook for name, hook in metrics.items() if name != "greedy_return"}
        found = {
            name: computed(hook, flor.Context(net, batch=batch)) for name, hook in of_steps.items()
        }
        new = Categorical(logits=net(observed)[0])
        exact = kl_divergence(old, new).mean().item()
        ratio = (new.probs[0] / old.probs[0])[actions].numpy()
    assert 0.01 < exact == pytest.approx(found["approx_kl"].item(), rel=0.02)
    assert found["clip_fraction"].item() == pytest.approx(np.mean(np.abs(ratio - 1) > 0.2))
    by_sklearn = explained_variance_score(batch.returns.numpy(), values.numpy())
    assert found["explained_variance"].item() == pytest.approx(by_sklearn, abs=1e-5)


def test_greedy_return_is_that_of_single_environments(
    cartpole: ModuleType, metrics: dict[str, Any]
) -> None:
    class Leaning(torch.nn.Module):
        """Pushes the cart under the pole: balances for a while."""

        def forward(self, observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            lean = observed[:, 2:3] + 0.2 * observed[:, 3:4]
            return torch.cat([-lean, lean], dim=-1), lean

    found = metrics["greedy_return"](flor.Context(Leaning(), device=torch.device("cpu")))
    returns = []
    environments = cartpole.gymnasium.make_vec("CartPole-v1", num_envs=16)
    environments.reset(seed=1000)
    for start in environments.state.T:
        one = cartpole.gymnasium.make("CartPole-v1")
        one.reset(seed=0)
        one.unwrapped.state = start
        seen, total, is_over = start.astype(np.float32), 0.0, False
        while not is_over:
            seen, reward, terminated, truncated, _ = one.step(
                int(seen[2] + np.float32(0.2) * seen[3] > 0)
            )
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    assert found == pytest.approx(np.mean(returns)) and 50 < found <= 500


YAML = """
version: 1
name: cartpole
trainer: cartpole:build_trainer
params: {epochs: 2, learning_rate: 2.5e-3, hidden_size: 16, minibatches: 2, scale: tiny, seed: 1}
versions: [{name: slow}, {name: fast, learning_rate: 5.0e-3}]
replay:
  metrics: [explained_variance, approx_kl, clip_fraction, greedy_return]
  hooks: [hooks/cartpole.py]
  where: explained_variance.isna()
"""
LIVE = """
import sys
sys.path.insert(0, ".")
import cartpole
import flor_plugins as flor
from hooks import cartpole as hooks

metrics = [hooks.explained_variance, hooks.approx_kl, hooks.clip_fraction, hooks.greedy_return]
given = flor.checkpoints
flor.checkpoints = lambda *objects, **named: given(*objects, **named, name="live", metrics=metrics)
cartpole.build_trainer(epochs=2, hidden_size=16, minibatches=2)
"""
UPDATES = 2 * 13 * 6 * 2
LINE = "rollout = players.play(net, size.steps, ended)\n"
ADDED = (
    '            flor.log("foreseen", 1 - (rollout.returns - rollout.values).var() / '
    "rollout.returns.var())\n"
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = replaying.make(tmp_path / "project")
    (made.root / "hooks").mkdir()
    shutil.copy(RECIPES / "cartpole.py", made.root)
    shutil.copy(RECIPES / "hooks" / "cartpole.py", made.root / "hooks")
    made.write("cartpole.yaml", YAML)
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "recipe")
    return made


@pytest.mark.slow
def test_recipe_answers_in_hindsight_what_a_live_metric_would_have_said(project: Project) -> None:
    project.flor("replay", "cartpole.yaml", "--yes")  # records first
    assert {(one["way"], one["verdict"]) for one in project.verdicts()} == {
        ("state", "exact"),
        ("train", "exact"),
    }
    project.write("live.py", LIVE)
    project.python("live.py")
    names = ("explained_variance", "approx_kl", "clip_fraction", "greedy_return", "mean_return")
    frame = flor.dataframe(*names, store=project.store.root)
    assert [run.params.get("learning_rate") for run in list_runs(project.store)] == [
        2.5e-3,
        5.0e-3,
        None,
    ]
    for name in names:
        slow, fast, live = (rows_of(frame, run, name) for run in ("slow", "fast", "live"))
        assert slow == live and slow.keys() == fast.keys() and slow != fast
    assert len(rows_of(frame, "slow", "approx_kl")) == UPDATES
    returns = rows_of(frame, "slow", "mean_return")
    assert returns[1, UPDATES // 2] < returns[2, UPDATES]
    quick = flor.dataframe("mean_return", where="learning_rate > 4e-3", store=project.store.root)
    assert set(quick["name"]) == {"fast"}


@pytest.mark.slow
def test_line_added_to_the_recipe_is_carried_to_both_versions(project: Project) -> None:
    project.flor("record", "cartpole.yaml")
    text = (project.root / "cartpole.py").read_text()
    assert LINE in text
    project.write("cartpole.py", text.replace(LINE, LINE + ADDED))
    project.flor(
        "replay", "cartpole.yaml", "--metrics", "foreseen", "--where", "foreseen.isna()", "--yes"
    )
    assert {(one["name"], one["way"], one["verdict"]) for one in project.verdicts()} == {
        ("slow", "train", "exact"), ("fast", "train", "exact"),
    }  # fmt: skip
    project.write("live.py", LIVE)
    project.python("live.py")
    frame = flor.dataframe("foreseen", store=project.store.root)
    slow, fast, live = (rows_of(frame, name, "foreseen") for name in ("slow", "fast", "live"))
    assert slow == live and slow.keys() == fast.keys() and slow != fast
    assert len(slow) == 2 * 13 and max(slow.values()) <= 1
