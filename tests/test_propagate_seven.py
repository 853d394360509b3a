"""Seven versions, one edit: asked from the working tree, each version gives what it really
logs with the edit in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.records import Plan, ReplayRequest
from flor_plugins.replayer.backport.backport import Backport, carry
from flor_plugins.replayer.planning import planner
from flor_plugins.store.remote.commits import find_commit
from flor_plugins.store.runs import list_runs
from tests.editing import edit_of
from tests.edits import Files, edited, versions
from tests.replaying import Project, rows_of

# Seven workers are started one after the other, on a machine that others may use.
pytestmark = pytest.mark.timeout(900)
STEPS = 8  # two epochs of four batches
# the others are recorded from a working tree that differs from HEAD
COMMITTED = (
    "v1",
    "v3",
    "v4",
    "v7",
)
STEPS_FILE = "toys/steps.py"
Values = dict[tuple[int, int], float]


@dataclass(frozen=True)
class Trained:
    """A version that trained with the edit in it. values: of the metric, by (epoch, step)."""

    name: str
    carried: Backport
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
    project.write(".gitignore", "__pycache__/\n*.log\n")
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


def truth(root: Path, files: Mapping[str, str], carried: Backport, name: str) -> Values:
    """What a version logs that really trains with the edit in it: {(epoch, step): value}."""
    project = Project(root)
    root.mkdir(parents=True)
    project.git("init", "-q", "-b", "main")
    write(project, {**files, **carried.sources})
    project.git("add", "-A")
    project.git("commit", "-q", "-m", name)
    project.python("train.py", name)
    return rows_of(flor.dataframe("margin", store=project.store.root), name, "margin")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = record_seven(tmp_path_factory.mktemp("seven") / "project")
    write(project, edited())
    return project


@pytest.fixture(scope="module", params=versions())
def trained(
    recorded: Project,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Trained:
    """One version, trained with the edit in it."""
    name = request.param
    files = recorded_files(recorded, name)
    assert files == versions()[name]
    carried = carry(edit_of(recorded_files(recorded, "v7"), edited()), files)
    root = tmp_path_factory.mktemp("truth") / name
    return Trained(name, carried, root / ".flor", truth(root, files, carried, name))


@pytest.fixture(scope="module")
def asked(recorded: Project) -> str:
    """What the command prints; all seven are asked, from the edited working tree."""
    before = recorded.git("status", "--porcelain")
    words = ("replay", "--metrics", "margin", "--show-patches", "--yes", "--workers", "2")
    done = recorded.flor(*words, timeout_s=500)
    assert recorded.git("status", "--porcelain") == before
    return done.stdout


def planned(project: Project, *metrics: str) -> Plan:
    runs = list_runs(project.store)
    return planner.make(project.store, runs, ReplayRequest(metrics))


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


def test_each_version_gives_what_it_logs_when_it_is_really_trained(
    recorded: Project, asked: str, trained: Trained
) -> None:
    frame = flor.dataframe("margin", source=True, store=recorded.store.root)
    assert rows_of(frame, trained.name, "margin") == trained.values
    own = frame[frame["name"] == trained.name]
    assert set(own["margin.verdict"]) == {"exact"} and all(
        one.startswith("replay") for one in own["margin.source"]
    )


def test_the_patch_of_each_version_is_printed(asked: str) -> None:
    heads = [line.split()[1] for line in asked.splitlines() if line.startswith("# ")]
    assert heads == list(versions())
    assert asked.count('+            flor.log("margin"') == len(versions())
    assert (
        '+            flor.log("margin", logit_margin(out.detach(), smooth_targets(y)))  # '
        "after the loss" in asked
    )


def test_every_verdict_is_exact(recorded: Project, asked: str) -> None:
    rows = recorded.verdicts()
    assert [(row["way"], row["verdict"]) for row in rows] == [("train", "exact")] * len(versions())
    assert min(row["compared"] for row in rows) >= STEPS


def test_asked_again_nothing_is_computed(recorded: Project, asked: str) -> None:
    count = len(list(recorded.store.replays.iterdir()))
    frame = flor.replay(["margin"], store=recorded.store.root)
    assert frame["margin"].notna().sum() == STEPS * len(versions())
    assert len(list(recorded.store.replays.iterdir())) == count


def test_a_learning_rate_slipped_in_beside_the_log_line_is_refused(
    recorded: Project, asked: str
) -> None:
    model = edited()["toys/model.py"]
    slower = model.replace("self.hparams.lr,", "self.hparams.lr * 0.5,")
    line = slower[: slower.index("self.hparams.lr * 0.5")].count("\n") + 1
    recorded.write("toys/model.py", slower)
    try:
        done = recorded.flor("replay", "--metrics", "margin", "--yes", ok=False)
    finally:
        recorded.write("toys/model.py", model)
    assert done.returncode == 1
    assert f"toys/model.py:{line} was `return torch.optim.SGD" in done.stderr


def test_another_edit_is_another_value(recorded: Project, asked: str) -> None:
    text = edited()[STEPS_FILE]
    recorded.write(
        STEPS_FILE, text.replace('"margin", logit_margin(', '"margin", 2 * logit_margin(')
    )
    try:
        assert len(planned(recorded, "margin").tasks) == len(versions())
        before = rows_of(flor.dataframe("margin", store=recorded.store.root), "v2", "margin")
        frame = flor.replay(["margin"], run="v2", store=recorded.store.root)
    finally:
        recorded.write(STEPS_FILE, text)
    assert rows_of(frame, "v2", "margin") == {place: 2 * value for place, value in before.items()}
    assert planned(recorded, "margin").tasks == ()  # those of the first edit are still there


def test_a_version_that_logs_it_itself_is_where_the_edit_leads_to(
    recorded: Project, asked: str
) -> None:
    # The edit is committed, so to say, and trained: what it is compared with is still the
    # version before.
    recorded.python("train.py", "v8")
    made = planned(recorded, "margin")
    assert made.tasks == () and made.skipped == {}
