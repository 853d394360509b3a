"""The same replay on Ray gives the same values as on this machine, also where a worker is
killed on the way.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flor_plugins as flor
from flor_plugins.errors import MissingDependency, ReplayError
from flor_plugins.records import Position, ReplayPass, Task, TrainingRange, Verdict
from flor_plugins.records.events import Event, PassResult, PositionResult, RangeResult
from flor_plugins.replayer.execution.ray import cluster
from flor_plugins.replayer.execution.remaining_work import rest_of, together
from flor_plugins.replayer.execution.remote_sync import upload
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.remote.mirror import Mirror
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import HOOKS, METRICS, Project

REPLAY = "20270101-000000-000-abcdef"
THREE = """
for number in range(3):
    callback = FlorCallback(f"run{number}", every_n_epochs=1 + number // 2)
    train(callback, epochs=4, lr=0.01 * (1 + number))
"""
# What a driver does, in a process of its own: Ray changes the signal handlers and the threads
# of the one it is in.
ASK = """
import json, os, signal, sys
from dataclasses import asdict, replace
from pathlib import Path

asked = json.loads(sys.argv[1])
if asked["nodes"]:
    import ray
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20,
             runtime_env={"env_vars": asked["nodes"]}, log_to_driver=False)

from flor_plugins.records import ReplayRequest
from flor_plugins.records.events import event_to_json
from flor_plugins.replayer.planning import planner
from flor_plugins.replayer.execution.executors import executor_of
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.mirror import open_url
from flor_plugins.store.runs import list_runs

def main():
    store = open_url(asked["store"]) if "://" in asked["store"] else Store(Path(asked["store"]))
    runs = list_runs(store)
    request = ReplayRequest(tuple(asked["metrics"]), hooks=(Path(asked["hook"]),))
    made = replace(planner.make(store, runs, request), replay_id=asked["replay_id"])
    if "://" in asked["store"]:
        kept = store.replay(made.replay_id) / "hooks" / Path(asked["hook"]).name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(Path(asked["hook"]).read_bytes())
        made = replace(made, hooks=(str(kept),))
    placed, events, killed = {}, [], []

    def tell(task, told):
        event = event_to_json(told)
        events.append(event["event"])
        if event["event"] == "placed":
            placed.setdefault(task.run_id, []).append(event["process"]["pid"])
        if event["event"] == asked["kill_at"] and not killed:
            killed.append(placed[task.run_id][-1])
            os.kill(killed[0], signal.SIGKILL)

    executor, by_id = executor_of(asked["engine"]), {run.run_id: run for run in runs}
    outcomes = executor.run_all(store, by_id, made, tell, workers=2)
    print(json.dumps({
        "passed": [
            [[one.way, one.epochs, one.verdict.grade] for one in o.passed] for o in outcomes
        ],
        "stretches": [
            [
                [asdict(one.range.start), asdict(one.range.end), one.verdict.grade]
                for one in o.stretches
            ]
            for o in outcomes
        ],
        "failures": [
            line for o in outcomes for line in [*o.hook_failures, o.failure] if line is not None
        ],
        "placed": placed, "killed": killed, "events": sorted(set(events)), "driver": os.getpid(),
        "order": [o.task.run_id for o in outcomes],
    }))

main()
"""
LOCAL, RAY = "local", "ray"


def ask(project: Project, store: Path | str, engine: str, **also: Any) -> dict[str, Any]:
    """What a driver process says of a replay of all metrics of all runs in that store."""
    framework = "lightning" if "lightning" in project.root.parent.name else "hf"
    asked = {
        "store": str(store), "engine": engine, "replay_id": REPLAY, "metrics": METRICS[framework],
        "hook": str(project.root / HOOKS[framework]), "kill_at": None, "nodes": {}, **also,
    }  # fmt: skip
    project.write("ignored/ask.py", ASK)
    env = {"XDG_CACHE_HOME": str(project.root.parent / "driver")}
    done = project.python("ignored/ask.py", json.dumps(asked), **env)
    return json.loads(done.stdout.splitlines()[-1])


def copy(project: Project, name: str) -> Path:
    """The store as it was recorded, once more.

    (It is no place in the project: a sandbox has no link to it.)
    """
    return Path(shutil.copytree(project.store.root, project.root.parent / name))


def frame(project: Project, store: Path) -> pd.DataFrame:
    framework = "lightning" if "lightning" in project.root.parent.name else "hf"
    return flor.dataframe(*METRICS[framework], source=True, store=store)


def stored_more_than_once(store: Path) -> list[tuple[str, str, Position]]:
    seen, twice = set(), []
    for run in list_runs(Store(store)):
        for source, row in read_run(run.path):
            for name in row.values if source.is_replay else ():
                if (run.run_id, name, row.position) in seen:
                    twice.append((run.run_id, name, row.position))
                seen.add((run.run_id, name, row.position))
    return twice


@pytest.fixture(scope="module", params=["lightning", pytest.param("hf", marks=pytest.mark.slow)])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three trainings in one process; of the last one only every second epoch has a checkpoint."""
    made = replaying.make(tmp_path_factory.mktemp(request.param) / "project")
    made.write("train.py", replaying.TRAIN[request.param] + THREE)
    made.python("train.py")
    return made


@pytest.fixture(scope="module")
def local(project: Project) -> tuple[dict[str, Any], pd.DataFrame]:
    """The replay by processes of this machine: what it says, and the frame."""
    store = copy(project, "local")
    said = ask(project, store, LOCAL)
    assert said["failures"] == []
    return said, frame(project, store)


def test_ray_gives_the_frame_of_the_local_engine(
    project: Project, local: tuple[dict[str, Any], pd.DataFrame]
) -> None:
    store = copy(project, "ray")
    said = ask(project, store, RAY)
    assert said["failures"] == []
    pd.testing.assert_frame_equal(frame(project, store), local[1])
    assert (said["passed"], said["stretches"], said["order"]) == tuple(
        local[0][name] for name in ("passed", "stretches", "order")
    )
    pids = {pid for placed in said["placed"].values() for pid in placed}
    assert len(pids) >= 2 and said["driver"] not in pids
    assert {"position", "passed"} <= set(said["events"])
    assert stored_more_than_once(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["placed", "pass", "position", "stretch", "passed"])
def test_a_killed_ray_worker_changes_nothing(
    project: Project, local: tuple[dict[str, Any], pd.DataFrame], moment: str
) -> None:
    store = copy(project, f"killed-{moment}")
    said = ask(project, store, RAY, kill_at=moment)
    assert said["failures"] == []
    assert len(said["killed"]) == 1 and "lost" in said["events"]
    assert sorted(map(len, said["placed"].values())) == [1, 1, 2]
    pd.testing.assert_frame_equal(frame(project, store), local[1])
    assert stored_more_than_once(store) == []
    assert said["passed"] == local[0]["passed"]


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(
    project: Project, local: tuple[dict[str, Any], pd.DataFrame]
) -> None:
    store = copy(project, "damaged")
    # of one process: those after a damaged one could not be come to
    *others, last = list_runs(Store(store))
    for file in last.path.rglob("model.safetensors"):
        file.write_bytes(b"torn")
    said = ask(project, store, RAY)
    assert len(said["failures"]) == 1 and "model.safetensors" in said["failures"][0]
    theirs, whole = frame(project, store), local[1]
    names = [run.name for run in others]
    pd.testing.assert_frame_equal(
        theirs[theirs["name"].isin(names)].reset_index(drop=True),
        whole[whole["name"].isin(names)].reset_index(drop=True),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [None, "position"])
def test_nodes_that_share_only_an_object_store_give_the_same_frame(
    project: Project,
    local: tuple[dict[str, Any], pd.DataFrame],
    tmp_path: Path,
    kill_at: str | None,
) -> None:
    """Neither the recorded store nor the repository is in reach, and driver and nodes have
    folders of their own.
    """
    url, home = f"file://{tmp_path}/bucket/flor", copy(project, f"home-{kill_at}")
    mirror = Mirror(url, home)
    assert upload(mirror.store, url, list_runs(mirror.store))
    again = upload(mirror.store, url, list_runs(mirror.store))
    assert not [path for path in again if path.endswith(".safetensors")]
    away = project.root / "ignored" / "git"
    (project.root / ".git").rename(away)
    try:
        said = ask(
            project, url, RAY, kill_at=kill_at, nodes={"XDG_CACHE_HOME": str(tmp_path / "nodes")}
        )
    finally:
        away.rename(project.root / ".git")
    assert said["failures"] == [] and len(said["killed"]) == (kill_at is not None)
    assert list((tmp_path / "nodes").rglob("model.safetensors"))
    assert not list((project.root.parent / "driver").rglob("model.safetensors"))
    mirror.pull_records(media=True)
    pd.testing.assert_frame_equal(frame(project, home), local[1])
    assert stored_more_than_once(home) == []


# ---- what needs no cluster


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingDependency, match=r"pip install 'flor-plugins\[ray\]'"),
        cluster.connected(2),
    ):
        pass


def test_a_client_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ReplayError, match="ray job submit"), cluster.connected(2):
        pass


PLACES = [Position(epoch, 10 * epoch) for epoch in range(5)]
STATE = ReplayPass("state", ("acc",), "", positions=tuple(PLACES[1:]))
TRAIN = ReplayPass(
    "train",
    ("norm",),
    "",
    stretches=tuple(TrainingRange(PLACES[e], PLACES[e + 1], (e + 1,)) for e in range(3)),
)
BOTH = Task("r", "toy", "a" * 40, (STATE, TRAIN))


def events_of(
    task: Task, positions: set[Position], stretches: set[TrainingRange], ended: set[str]
) -> list[Event]:
    """What a worker tells of those parts of a task."""
    told: list[Event] = []
    for one in task.passes:
        is_ended = one.way in ended
        its = [p for p in one.positions if p in positions or is_ended]
        told += [PositionResult(p, one.way) for p in its]
        again = [s for s in one.stretches if s in stretches or is_ended]
        told += [RangeResult(s, Verdict("exact"), ()) for s in again]
        if is_ended:
            told.append(PassResult(one.way, one.epochs, 0.1, Verdict("exact")))
    return told


parts = given(
    st.sets(st.sampled_from(STATE.positions)),
    st.sets(st.sampled_from(TRAIN.stretches)),
    st.sets(st.sampled_from(["state", "train"])),
)


@parts
def test_what_was_told_as_done_is_not_done_again_and_all_else_is(
    positions: set[Position], stretches: set[TrainingRange], ended: set[str]
) -> None:
    rest = rest_of(BOTH, events_of(BOTH, positions, stretches, ended))
    left = {one.way: one for one in rest.passes}
    assert left.keys() == {"state", "train"} - ended
    if "state" in left:  # of a pass that did not end its last part is done again
        assert set(left["state"].positions) == (
            set(STATE.positions) - positions or {STATE.positions[-1]}
        )
    if "train" in left:
        assert set(left["train"].stretches) == (
            set(TRAIN.stretches) - stretches or {TRAIN.stretches[-1]}
        )


@parts
def test_all_workers_together_show_every_epoch_once_with_the_worst_grade(
    positions: set[Position], stretches: set[TrainingRange], ended: set[str]
) -> None:
    before = events_of(BOTH, positions, stretches, ended)
    rest = rest_of(BOTH, before)
    later = events_of(rest, set(STATE.positions), set(TRAIN.stretches), {"state", "train"})
    last = Outcome(rest)
    last.passed += [one for one in later if isinstance(one, PassResult)]
    last.stretches += [one for one in later if isinstance(one, RangeResult)]
    diverged = dict.fromkeys(positions, "diverged")
    found = together(BOTH, before, last, diverged)  # pyright: ignore[reportArgumentType]
    assert [(one.way, one.epochs) for one in found.passed] == [
        ("state", (1, 2, 3, 4)),
        ("train", (1, 2, 3)),
    ]
    assert len(found.stretches) == 3
    has_two_parts = "state" not in ended and len(positions) > 0
    assert found.passed[0].verdict.grade == ("diverged" if has_two_parts else "exact")
