"""`gc` and `pin`: what a store gives up, what it says, and what it never touches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flor_plugins.cli.app import app
from flor_plugins.cli.gc import spans
from flor_plugins.errors import FlorError
from flor_plugins.records import Launch, Obstacle, Timing
from flor_plugins.store.checkpoints import folder_of
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.gc import GcPlan, collect, pin, plan_collection, unpin
from flor_plugins.store.gc.leftovers import leftovers, size_of
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import save_run, this_process
from tests.retaining import IDS, at, begin_replay, check_all, ended, forms, save_all, train

FIRST, SECOND, THIRD, *_ = IDS
Flor = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


@pytest.fixture
def flor(store: Store, monkeypatch: pytest.MonkeyPatch) -> Flor:
    monkeypatch.setenv("FLOR_DIR", str(store.root))
    return lambda *words: CliRunner().invoke(app, list(words))


def shares(plan: GcPlan) -> dict[str, Any]:
    return {share.run_id: share for share in plan.shares}


# ---- what is given up


def test_a_plan_changes_nothing(store: Store) -> None:
    run = train(store, 6)
    before = {one: one.stat().st_mtime_ns for one in store.root.rglob("*")}
    plan = plan_collection(store, size_of(store.root) // 2)
    assert plan.steps and {one: one.stat().st_mtime_ns for one in store.root.rglob("*")} == before
    assert check_all(run.path) == dict.fromkeys(range(7), "full")


@pytest.mark.parametrize("part", [0.9, 0.6, 0.45, 0.35])
def test_the_store_fits_the_budget_and_what_is_listed_loads(store: Store, part: float) -> None:
    train(store, 8, FIRST)
    train(store, 5, SECOND, name="other")
    budget = int(size_of(store.root) * part)
    plan = plan_collection(store, budget)
    done = collect(plan)
    assert not plan.problem and not done.problem
    assert size_of(store.root) == done.after <= budget
    for share in done.shares:
        found = check_all(store.run(share.run_id))
        listed = list(found.values())
        assert (listed.count("full"), listed.count("weights")) == (
            share.after.full,
            share.after.weights,
        )
        assert share.after.answers.at_once == tuple(found)
        assert found[0] == found[max(found)] == "full"


def test_nothing_is_given_up_while_compression_is_enough(store: Store) -> None:
    run = train(store, 8, size=30_000)
    budget = int(size_of(store.root) * 0.9)
    plan = plan_collection(store, budget)
    done = collect(plan)
    assert plan.steps and not done.steps
    assert size_of(store.root) <= budget and check_all(run.path, 30_000) == dict.fromkeys(
        range(9), "full"
    )


def test_compressed_checkpoints_can_be_given_up_although_others_are_deltas_to_them(
    store: Store,
) -> None:
    run = train(store, 18, size=8000)
    raw = size_of(store.root)
    collect(plan_collection(store))
    for part in (0.4, 0.3, 0.2):
        done = collect(plan_collection(store, int(raw * part)))
        assert done.problem == "" and size_of(store.root) <= raw * part
        found = check_all(run.path, 8000)
        assert found[0] == found[18] == "full" and len(found) > 2


def test_without_a_budget_no_answer_is_lost(store: Store) -> None:
    run = train(store, 6, size=30_000)
    before = size_of(store.root)
    done = collect(plan_collection(store))
    assert done.steps == () and done.after == size_of(store.root) < before
    assert check_all(run.path, 30_000) == dict.fromkeys(range(7), "full")


def test_the_run_whose_epochs_are_short_gives_up_first(store: Store) -> None:
    quick = train(store, 6, FIRST, timing=Timing(1.0, 1.0, 0.1))
    slow = train(store, 6, SECOND, timing=Timing(1.0, 3600.0, 1.0))
    plan = plan_collection(store, int(size_of(store.root) * 0.8))
    assert {step.run_id for step in plan.steps} == {quick.run_id}
    assert shares(plan)[slow.run_id].after.answers.worst_s == 0.0


def test_what_is_planned_says_what_can_still_be_asked_and_at_what_cost(store: Store) -> None:
    run = train(store, 6)
    plan = plan_collection(store, 0)
    share = shares(plan)[run.run_id]
    assert (share.before.answers.at_once, share.before.full) == (tuple(range(7)), 7)
    assert (share.after.answers.at_once, share.after.full) == ((0, 6), 2)
    assert share.after.answers.worst_s == 500.0 and share.after.answers.mean_s > 0
    assert "first and the last" in plan.problem


# ---- what never is


def held_run(store: Store, how: str) -> str:
    """Make the run FIRST one of which nothing may be given up; returns what is said of it."""
    run = train(store, 6, FIRST)
    if how == "pinned":
        pin(run)
        return "it is pinned"
    if how == "written":
        (run.path / "checkpoints" / f"{PARTIAL}{os.getpid()}-abcd").mkdir()
        return "still writing"
    if how == "running":
        save_run(replace(run, status="running", process=this_process()))
        return "it is running on"
    begin_replay(store, run, [3], this_process() if how == "replayed" else None)
    return "is going on"


@pytest.mark.parametrize(
    "how", ["pinned", "running", "written", "replayed", "replayed by who knows"]
)
def test_of_a_held_run_nothing_is_given_up(store: Store, how: str) -> None:
    said = held_run(store, how)
    train(store, 6, SECOND)
    plan = plan_collection(store, 0, abandon=True)
    done = collect(plan)
    assert said in shares(plan)[FIRST].held and said in done.problem
    assert check_all(store.run(FIRST)) == dict.fromkeys(range(7), "full")
    assert check_all(store.run(SECOND)) == {0: "full", 6: "full"}


def test_a_killed_run_keeps_what_it_can_be_resumed_from(store: Store) -> None:
    run = train(store, 6, status="running", process=ended())
    collect(plan_collection(store, 0))
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_what_an_unfinished_replay_starts_from_stays_unless_it_is_abandoned(store: Store) -> None:
    run = train(store, 6)
    begin_replay(store, run, [3, 5], ended())
    plan = plan_collection(store, 0)
    assert "is unfinished" in shares(plan)[run.run_id].held
    collect(plan)
    assert check_all(run.path) == {0: "full", 3: "full", 5: "full", 6: "full"}
    collect(plan_collection(store, 0, abandon=True))
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_a_finished_replay_holds_nothing(store: Store) -> None:
    run = train(store, 6)
    (begin_replay(store, run, [3], ended()) / "verdicts.json").write_text("{}")
    collect(plan_collection(store, 0))
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_a_run_that_is_pinned_between_plan_and_deed_is_left_alone(store: Store) -> None:
    run = train(store, 6)
    plan = plan_collection(store, 0)
    pin(run)
    done = collect(plan)
    assert done.steps == () and check_all(run.path) == dict.fromkeys(range(7), "full")
    unpin(run)
    assert collect(plan_collection(store, 0)).steps


def test_a_replay_that_begins_meanwhile_stops_the_collection_of_its_run(store: Store) -> None:
    run = train(store, 6)
    plan = plan_collection(store, 0)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 2:  # the second is not begun before this returns
            begin_replay(store, run, [3], this_process())

    done = collect(plan, tell)
    assert (
        "is going on" in done.problem and len([line for line in told if "giving up" in line]) == 2
    )
    found = check_all(run.path)
    assert found[0] == found[6] == "full" and len(found) == 5
    (share,) = done.shares
    assert share.after.full + share.after.weights == len(found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"code": None}, "its code was not recorded"),
        ({"launch": Launch("interactive", "")}, "a prompt or a notebook"),
        (
            {"obstacles": (Obstacle("none", "the trainer was odd", "mend it"),)},
            "the trainer was odd",
        ),
    ],
)
def test_weights_that_could_not_be_trained_again_stay(
    store: Store, changes: dict[str, Any], why: str
) -> None:
    run = train(store, 6, **changes)
    plan = plan_collection(store, 0)
    share = shares(plan)[run.run_id]
    assert why in share.held and share.after.answers.worst_s is None
    collect(plan)
    assert check_all(run.path) == {0: "full", **dict.fromkeys(range(1, 6), "weights"), 6: "full"}


def test_the_last_checkpoint_of_all_processes_stays_where_a_later_one_is_not_whole(
    store: Store,
) -> None:
    run = train(store, 6, processes=2)
    save_all(run.path / "ranks" / "1", range(5))
    collect(plan_collection(store, 0))
    assert forms(run.path) == {0: "full", 4: "full", 6: "full"}
    assert forms(run.path / "ranks" / "1") == {0: "full", 4: "full"}


# ---- leftovers


def test_leftovers_of_processes_that_are_gone_are_removed(store: Store) -> None:
    run = train(store, 2)
    dead, alive = ended().pid, os.getpid()
    folder = run.path / "checkpoints" / f"{PARTIAL}{dead}-abcd"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    file = run.path / "metrics" / f"{PARTIAL}{dead}-abcd"
    file.write_bytes(b"12345")
    stray = folder_of(run.path, at(1)) / "old.safetensors"
    stray.write_bytes(b"123")
    kept = run.path / f"{PARTIAL}{alive}-abcd"
    kept.write_bytes(b"")
    plan = plan_collection(store)
    assert {one.path: one.nbytes for one in plan.leftovers} == {folder: 1000, file: 5, stray: 3}
    collect(plan)
    assert not folder.exists() and not file.exists() and not stray.exists() and kept.exists()
    assert check_all(run.path) == dict.fromkeys(range(3), "full")


def test_a_pid_that_was_given_again_does_not_keep_a_leftover(store: Store) -> None:
    run = train(store, 1)
    left = run.path / f"{PARTIAL}{os.getpid()}-abcd"
    left.write_bytes(b"1")
    os.utime(left, (time.time() - 10**6,) * 2)
    assert [one.path for one in leftovers(store)] == [left]


def test_nothing_of_a_running_run_is_a_leftover(store: Store) -> None:
    run = train(store, 1, status="running", process=this_process())
    (run.path / f"{PARTIAL}{ended().pid}-abcd").write_bytes(b"1")
    assert leftovers(store) == []


# ---- killed in the middle

KILLED = """
import os, pathlib, signal, sys
count = int(sys.argv[3])
real = getattr(os, sys.argv[2])
def deadly(*args, **more):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **more)
setattr(os, sys.argv[2], deadly)
from flor_plugins.store.layout import Store
from flor_plugins.store.gc import collect, plan_collection
from flor_plugins.store.gc.leftovers import size_of
store = Store(pathlib.Path(sys.argv[1]))
collect(plan_collection(store, int(sys.argv[4])))
print("not killed")
"""


@pytest.mark.parametrize("moment", ["rename", "replace", "unlink", "fsync", "rmdir", "write"])
@pytest.mark.parametrize("count", [1, 6])
def test_a_killed_collection_leaves_checkpoints_whole_and_the_next_one_ends(
    store: Store, moment: str, count: int
) -> None:
    run = train(store, 7)
    budget = int(size_of(store.root) * 0.4)
    command = [sys.executable, "-c", KILLED, str(store.root), moment, str(count), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL or "not killed" in done.stdout, done.stderr
    found = check_all(run.path)
    assert found[0] == found[7] == "full"
    assert collect(plan_collection(store, budget)).problem == ""
    assert size_of(store.root) <= budget and not list(store.root.rglob(f"{PARTIAL}*"))
    assert check_all(run.path).keys() <= found.keys()


# ---- the command line


def test_a_dry_run_shows_and_keeps_everything(store: Store, flor: Flor) -> None:
    run = train(store, 6)
    done = flor("gc", "--budget", str(size_of(store.root) // 2), "--dry-run")
    assert done.exit_code == 0 and run.run_id in done.stdout and "7 full" in done.stdout
    assert check_all(run.path) == dict.fromkeys(range(7), "full")


def test_a_program_reads_what_would_be_given_up(store: Store, flor: Flor) -> None:
    run = train(store, 6)
    before = size_of(store.root)
    done = flor("gc", "--budget", "100kB", "--dry-run", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["budget"], said["before"]) == (1, 100_000, before)
    (one,) = said["runs"]
    assert one["run"] == run.run_id and one["before"]["epochs_at_once"] == list(range(7))
    assert one["after"]["epochs_at_once"] == [0, 6] and one["after"]["worst_s"] == 500.0
    assert {"epoch": 3, "step": 30, "from": "full", "to": "gone"} in one["steps"] or {
        "epoch": 3,
        "step": 30,
        "from": "weights",
        "to": "gone",
    } in one["steps"]
    assert said["problem"] in done.stderr


def test_nobody_to_be_asked_is_no_consent(store: Store, flor: Flor) -> None:
    run = train(store, 6)
    done = flor("gc", "--budget", "0")
    assert isinstance(done.exception, FlorError) and "--yes" in str(done.exception)
    assert check_all(run.path) == dict.fromkeys(range(7), "full")


def test_who_agreed_beforehand_is_not_asked(store: Store, flor: Flor) -> None:
    run = train(store, 6)
    budget = size_of(store.root) // 2
    done = flor("gc", "--budget", str(budget), "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["after"] == size_of(store.root) <= budget
    assert check_all(run.path)


def test_a_size_that_is_none_is_a_mistake_of_usage(store: Store, flor: Flor) -> None:
    done = flor("gc", "--budget", "much")
    assert (done.exit_code == 2 and "20GB" in done.stderr) or "50GB" in done.stderr


def test_an_empty_store_has_nothing_to_give_up(store: Store, flor: Flor) -> None:
    assert flor("gc", "--budget", "1GB").exit_code == 0
    assert json.loads(flor("gc", "--json").stdout)["runs"] == []


def test_a_pinned_run_is_pinned_until_it_is_undone(store: Store, flor: Flor) -> None:
    run = train(store, 6)
    assert flor("pin", "toy").exit_code == 0
    done = flor("gc", "--budget", "0", "--yes")
    assert done.exit_code == 1 and "pinned" in done.stderr
    assert check_all(run.path) == dict.fromkeys(range(7), "full")
    assert flor("pin", "--undo", "toy").exit_code == flor("pin", "--undo", "toy").exit_code == 0
    flor("gc", "--budget", "0", "--yes")
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_epochs_are_written_as_spans() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0:2,5,7:8"
    assert spans([]) == ""
