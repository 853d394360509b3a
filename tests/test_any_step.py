"""Metrics at any step: from the checkpoint there, or from the one before it by training on."""

from __future__ import annotations

import pytest
import torch

import flor_plugins as flor
from flor_plugins.errors import NoCheckpoint, ReplayError
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import list_checkpoints
from tests import replaying
from tests.replaying import HOOKS, METRICS, Project, rows_of

# One epoch, as language models are trained; the second run is the same one with checkpoints inside.
TRAININGS = """
train(FlorCallback("epochs"), epochs=1)
train(FlorCallback("steps", every_n_steps=3), epochs=1)
"""


@pytest.fixture(scope="module", params=["lightning", "hf"])
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def recorded(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = replaying.make(tmp_path_factory.mktemp(framework) / "project")
    project.write("train.py", replaying.TRAIN[framework] + TRAININGS)
    project.python("train.py")
    return project


def asked(project: Project, framework: str, kind: str, run: str) -> dict[tuple[int, int], object]:
    """The metric of the weights ("state") or of the updates ("step"), at one place of a run."""
    metric = METRICS[framework][("state", "step").index(kind)]
    frame = flor.replay(
        metric, hooks=[project.root / HOOKS[framework]], run=run, store=project.store.root
    )
    return rows_of(frame, run.partition("@")[0], metric)


def test_checkpoints_lie_at_every_third_step_and_at_the_ends(recorded: Project) -> None:
    runs = {run.name: run for run in flor.runs(store=recorded.store.root)}
    positions = {
        name: [one.position for one in list_checkpoints(run.path)] for name, run in runs.items()
    }
    assert positions["epochs"] == [Position(0, 0), Position(1, 8)]
    assert positions["steps"] == [Position(0, 0), Position(0, 3), Position(0, 6), Position(1, 8)]
    assert all(one.is_full for run in runs.values() for one in list_checkpoints(run.path))


def test_a_metric_of_the_weights_is_the_same_from_a_checkpoint_and_by_training_on(
    recorded: Project, framework: str
) -> None:
    restored = asked(recorded, framework, "state", "steps@step=6")
    assert [one["way"] for one in recorded.verdicts()] == ["state"]
    trained = asked(recorded, framework, "state", "epochs@step=6")
    assert [(one["way"], one["verdict"]) for one in recorded.verdicts()] == [("train", "exact")]
    assert list(restored) == list(trained) == [(0, 6)]
    assert restored == trained


def test_a_step_metric_starts_at_the_checkpoint_nearest_before(
    recorded: Project, framework: str
) -> None:
    near = asked(recorded, framework, "step", "steps@step=5")
    plan = recorded.flor(
        "replay",
        "--run",
        "steps@step=8",
        "--hook",
        HOOKS[framework],
        "--dry-run",
        "--json",
        "--metrics",
        METRICS[framework][1],
    ).stdout
    assert '"epoch=0,step=6"' in plan
    far = asked(recorded, framework, "step", "epochs@step=5")
    assert near == far and list(near) == [(0, 5)]


def test_weights_are_read_at_a_step(recorded: Project) -> None:
    store = recorded.store.root
    early, late = (
        flor.checkpoint("steps@step=3", store=store),
        flor.checkpoint("steps@epoch=1", store=store),
    )
    assert early.keys() == late.keys()
    assert any(not torch.equal(early[name], late[name]) for name in early)
    with pytest.raises(NoCheckpoint, match="at step=4; it has epoch=0,step=0; epoch=0,step=3"):
        flor.checkpoint("steps@step=4", store=store)


def test_a_step_that_was_never_made_is_told(recorded: Project, framework: str) -> None:
    with pytest.raises(ReplayError, match="asked for step 99; it made 8"):
        asked(recorded, framework, "state", "steps@step=99")


def test_verify_goes_from_checkpoint_to_checkpoint(recorded: Project) -> None:
    found = flor.verify("steps", store=recorded.store.root)
    ends = [Position(0, 3), Position(0, 6), Position(1, 8)]
    assert [(one["verdict"], one["end"]) for one in found] == [("exact", end) for end in ends]
    (up_to,) = flor.verify("epochs@step=5", store=recorded.store.root)
    assert (up_to["verdict"], up_to["end"]) == ("exact", Position(0, 5))
