"""Checkpoints without the optimizer's state: a budget asks for them.

All questions are still answered.
"""

from __future__ import annotations

import pytest

import flor_plugins as flor
from flor_plugins.records import Run
from flor_plugins.store.checkpoints import list_checkpoints
from tests import replaying
from tests.replaying import HOOKS, METRICS, Project, rows_of

# The same training: every checkpoint full; and, of those inside, the one of epoch 3 alone.
TRAININGS = """
from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy

train(FlorCallback("full"), epochs=5)
takes = CheckpointPolicy.takes_optimizer
CheckpointPolicy.takes_optimizer = (
    lambda self, position: takes(self, position) and position.epoch in (0, 3, 5)
)
train(FlorCallback("light"), epochs=5)
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


def test_a_checkpoint_without_optimizer_is_smaller_and_says_so(recorded: Project) -> None:
    full, light = (
        {one.position.epoch: one for one in list_checkpoints(run.path)} for run in by_name(recorded)
    )
    assert [one.is_full and one.can_train for one in full.values()] == [True] * 6
    assert [one.is_full and one.can_train for one in light.values()] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert all(one.can_validate for one in light.values())
    assert light[2].nbytes < full[2].nbytes


def test_every_way_gives_the_values_of_the_full_run(recorded: Project, framework: str) -> None:
    frame = flor.replay(
        METRICS[framework], hooks=[recorded.root / HOOKS[framework]], store=recorded.store.root
    )
    ways = {(one["name"], one["way"]): one["verdict"] for one in recorded.verdicts()}
    assert ways == {
        (name, way): "exact" for name in ("full", "light") for way in ("state", "validate", "train")
    }
    for metric in METRICS[framework]:
        full, light = (rows_of(frame, name, metric) for name in ("full", "light"))
        assert full and full == light, metric


def by_name(project: Project) -> list[Run]:
    return sorted(flor.runs(store=project.store.root), key=lambda run: run.name)
