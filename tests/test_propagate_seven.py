"""Seven versions, one edit: each version with the edit in it really trains, and logs the metric at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.replay.propagate.carry import Carried, carry
from flor_plugins.store.commits import find_commit
from tests.editing import edit_of
from tests.edits import Files, edited, versions
from tests.replaying import Project

STEPS = 8  # two epochs of four batches
COMMITTED = ("v1", "v3", "v4", "v7")  # the others are recorded from a working tree that differs from HEAD
Values = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Trained:
    """A version that trained with the edit in it. values: of the metric, by (epoch, step)."""

    name: str
    carried: Carried
    store: Path
    values: Values


def write(project: Project, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        project.write(path, text)


def record_seven(root: Path) -> Project:
    """A repository whose history is the seven versions, with a run named after each."""
    project = Project(root)
    root.mkdir(parents=True)
    project.git("init", "-q", "-b", "main")
    project.write(".gitignore", "__pycache__/\n")
    before: Files = {}
    for name, files in versions().items():
        for path in before.keys() - files.keys():
            (root / path).unlink()
        write(project, files)
        if name in COMMITTED:
            project.git("add", "-A")
            project.git("commit", "-q", "-m", name)
        project.python("train.py", name)
        before = files
    return project


def recorded_files(project: Project, name: str) -> Files:
    """The python files of a run, from its snapshot."""
    (run,) = [one for one in flor.runs(store=project.store.root) if one.name == name]
    assert run.code is not None
    with find_commit(run.code, project.store, project.root) as repo:
        blobs = repo.commit(run.code.vid).tree.traverse()
        return {
            str(one.path): one.data_stream.read().decode()  # type: ignore[union-attr]
            for one in blobs
            if str(one.path).endswith(".py")  # type: ignore[union-attr]
        }


def truth(root: Path, files: Mapping[str, str], carried: Carried, name: str) -> Values:
    """What a version logs that really trains with the edit in it: {(epoch, step): value}."""
    project = Project(root)
    root.mkdir(parents=True)
    project.git("init", "-q", "-b", "main")
    write(project, {**files, **carried.sources})
    project.git("add", "-A")
    project.git("commit", "-q", "-m", name)
    project.python("train.py", name)
    frame = flor.dataframe("margin", store=project.store.root)
    own = frame[frame["margin"].notna()]
    return dict(zip(zip(own["epoch"], own["step"], strict=True), own["margin"], strict=True))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = record_seven(tmp_path_factory.mktemp("seven") / "project")
    write(project, edited())
    return project


def carried_to(project: Project, name: str) -> tuple[Files, Carried]:
    files = recorded_files(project, name)
    assert files == versions()[name]
    working = {path: (project.root / path).read_text() for path in edited()}
    return files, carry(edit_of(recorded_files(project, "v7"), working), files)


@pytest.fixture(scope="module", params=versions())
def trained(recorded: Project, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trained:
    """One version, trained with the edit in it."""
    name = request.param
    files, carried = carried_to(recorded, name)
    root = tmp_path_factory.mktemp("truth") / name
    return Trained(name, carried, root / ".flor", truth(root, files, carried, name))


def test_a_version_with_the_edit_trains_and_logs_every_step(trained: Trained) -> None:
    print(f"{trained.name}: {dict(trained.carried.how)}\n{trained.carried.patch}")
    assert [step for _, step in sorted(trained.values)] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for value in trained.values.values())
    assert len(set(trained.values.values())) == STEPS


def test_the_edit_does_not_change_the_training(recorded: Project, trained: Trained) -> None:
    frames = [flor.dataframe("loss", store=store) for store in (recorded.store.root, trained.store)]
    losses = [frame[frame["name"] == trained.name]["loss"].dropna().tolist() for frame in frames]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
