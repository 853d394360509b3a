"""Tasks on this machine: the longest first, each on its own, and a worker that is killed is
replaced.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.errors import ReplayError
from flor_plugins.records import (
    Code,
    Launch,
    Plan,
    Position,
    RecordingProcess,
    ReplayPass,
    Run,
    Task,
    Verdict,
)
from flor_plugins.records.events import Event, PassResult, PositionResult, WorkerLoss
from flor_plugins.replayer.execution import local_executor, retries
from flor_plugins.replayer.execution.executors import executor_of
from flor_plugins.replayer.execution.gpu_assignment import VARIABLE
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.store.layout import Store

POSITIONS = tuple(Position(epoch, 8 * epoch) for epoch in range(1, 6))


def task(name: str, seconds: float | None = 1.0) -> Task:
    return Task(
        name, name, "0" * 40, (ReplayPass("state", ("m",), "", POSITIONS, seconds=seconds),)
    )


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Outcome], list[Event]]]:
    """Runs tasks by a worker that is given as a function; the outcomes, and the events that
    were told.
    """

    def asked(
        tasks: list[Task], worker: Callable[..., Outcome], engine: str = "local", workers: int = 1
    ) -> tuple[list[Outcome], list[Event]]:
        runs = {
            one.run_id: Run(
                one.run_id, one.name, "p", "hf", "finished", "", Launch("script", "train.py"),
                Code("0" * 40, "", ""), RecordingProcess("", 0, ""), tmp_path / "runs" / one.run_id,
            )
            for one in tasks
        }  # fmt: skip
        monkeypatch.setattr(local_executor, "do_task", worker)
        heard: list[Event] = []
        plan = Plan("20270101-000000-000-abcdef", ("m",), None, (), tuple(tasks))
        outcomes = executor_of(engine).run_all(
            Store(tmp_path), runs, plan, lambda _, event: heard.append(event), workers=workers
        )
        return outcomes, heard

    return asked


def passed(one: Task) -> list[PassResult]:
    return [PassResult(p.way, p.epochs, 0.1, Verdict("exact", 1)) for p in one.passes]


def dies_after(count: int, seen: list[Task]) -> Callable[..., Outcome]:
    """A worker that does so many positions and is killed, until no more than those are left."""

    def worker(_s: Any, _r: Any, _p: Any, one: Task, tell: Any, **_: Any) -> Outcome:
        seen.append(one)
        due = one.passes[0].positions
        for position in due[:count]:
            tell(one, PositionResult(position, "state"))
        if len(due) > count:
            return Outcome(one, failure="it died", killed_by=signal.SIGKILL)
        return Outcome(one, passed=passed(one))

    return worker


def test_the_longest_task_is_begun_first_and_the_order_of_the_plan_is_kept(ask: Any) -> None:
    begun: list[str] = []

    def worker(_s: Any, _r: Any, _p: Any, one: Task, _t: Any, **_: Any) -> Outcome:
        begun.append(one.name)
        return Outcome(one, passed=passed(one))

    outcomes, _ = ask([task("short", 1.0), task("long", 9.0), task("unknown", None)], worker)
    assert begun == ["unknown", "long", "short"]
    assert [outcome.task.name for outcome in outcomes] == ["short", "long", "unknown"]


def test_a_task_that_fails_does_not_stop_the_others(ask: Any) -> None:
    def worker(_s: Any, _r: Any, _p: Any, one: Task, _t: Any, **_: Any) -> Outcome:
        return Outcome(one, failure="no" if one.name == "b" else None)

    outcomes, _ = ask([task("a"), task("b"), task("c")], worker)
    assert [outcome.failure for outcome in outcomes] == [None, "no", None]


def test_a_killed_worker_is_replaced_by_one_that_does_the_rest(ask: Any) -> None:
    seen: list[Task] = []
    [outcome], heard = ask([task("a")], dies_after(2, seen))
    assert [one.passes[0].positions for one in seen] == [POSITIONS, POSITIONS[2:], POSITIONS[4:]]
    assert sum(isinstance(event, WorkerLoss) for event in heard) == 2
    assert outcome.is_whole and outcome.task.passes[0].positions == POSITIONS
    assert [one.epochs for one in outcome.passed] == [(1, 2, 3, 4, 5)]


def test_a_task_whose_workers_die_without_progress_is_given_up(ask: Any) -> None:
    seen: list[Task] = []
    [outcome], _ = ask([task("a")], dies_after(0, seen))
    assert len(seen) == retries.DEATHS
    assert (
        outcome.failure is not None
        and "it died" in outcome.failure
        and f"{retries.DEATHS} times" in outcome.failure
    )


def test_a_task_whose_workers_die_after_its_last_position_is_given_up(ask: Any) -> None:
    """The last position stays in the rest until its pass has ended: to do it once more is no
    progress.
    """
    seen: list[Task] = []

    def worker(_s: Any, _r: Any, _p: Any, one: Task, tell: Any, **_: Any) -> Outcome:
        seen.append(one)
        for position in one.passes[0].positions:
            tell(one, PositionResult(position, "state"))
        return Outcome(one, failure="it died", killed_by=signal.SIGKILL)

    [outcome], _ = ask([task("a")], worker)
    assert [len(one.passes[0].positions) for one in seen] == [5, 1, 1]
    assert outcome.failure is not None and "it died" in outcome.failure


def test_a_worker_that_raised_is_not_begun_again(ask: Any) -> None:
    seen: list[Task] = []

    def worker(_s: Any, _r: Any, _p: Any, one: Task, _t: Any, **_: Any) -> Outcome:
        seen.append(one)
        return Outcome(one, failure="ValueError")

    [outcome], _ = ask([task("a")], worker)
    assert (len(seen), outcome.failure) == (1, "ValueError")


def test_an_interrupt_ends_the_workers_that_say_nothing(ask: Any) -> None:
    ended: list[bool] = []
    is_busy = threading.Event()

    def worker(
        _s: Any, _r: Any, _p: Any, one: Task, _t: Any, given_up: threading.Event, **_: Any
    ) -> Outcome:
        if one.name == "b":
            is_busy.wait(30)
            raise KeyboardInterrupt
        is_busy.set()
        ended.append(given_up.wait(30))
        return Outcome(one, failure="it died", killed_by=signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        ask([task("b", 2.0), task("a", 1.0)], worker, workers=2)
    assert ended == [True]


@pytest.mark.parametrize(("workers", "expected"), [(2, {"0", "1"}), (1, {None})])
def test_workers_at_a_time_have_a_device_each(
    ask: Any, workers: int, expected: set[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, seen = threading.Barrier(workers), []

    def worker(
        _s: Any, _r: Any, _p: Any, one: Task, _t: Any, *, variables: dict[str, str], **_: Any
    ) -> Outcome:
        seen.append(variables.get(VARIABLE))
        both.wait(30)
        return Outcome(one, passed=passed(one))

    monkeypatch.setenv(VARIABLE, "0,1")
    ask([task("a"), task("b")], worker, workers=workers)
    assert set(seen) == expected


def test_an_unknown_engine_is_refused_by_name(ask: Any) -> None:
    with pytest.raises(ReplayError, match="'spark' was asked for; there are 'local' and 'ray'"):
        ask([task("a")], dies_after(0, []), engine="spark")
