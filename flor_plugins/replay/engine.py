"""Tasks on this machine, at most `workers` at a time; a worker that was killed is replaced."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from signal import Signals
from typing import Any

from flor_plugins.errors import ReplayError
from flor_plugins.records import Grade, Plan, Position, Run, Task
from flor_plugins.replay.engines.rest import rest_of, together
from flor_plugins.replay.tasks import Outcome, Tell, do_task
from flor_plugins.replay.verify import worse
from flor_plugins.store.journal import read_run
from flor_plugins.store.layout import Store

DEATHS = 3  # in a row, without anything that was done between them
DONE = ("position", "stretch", "passed")  # events that say that values are stored


@dataclass(slots=True)
class _Request:
    """What all tasks of a request have in common. is_over: no worker is replaced any more."""

    store: Store
    runs: Mapping[str, Run]
    plan: Plan
    tell: Tell
    is_over: threading.Event = field(default_factory=threading.Event)


def run_all(
    store: Store, runs: dict[str, Run], plan: Plan, tell: Tell, *, workers: int = 1, engine: str = "local"
) -> list[Outcome]:
    """Do all tasks of a plan, the longest first; one that fails does not stop the others. In the order of the plan.

    engine: "local": worker processes of this machine; "ray": those of a Ray cluster. Raises ReplayError for others.
    """
    if engine == "ray":
        from flor_plugins.replay.engines import ray

        return ray.run_all(store, runs, plan, tell, workers=workers)
    if engine != "local":
        raise ReplayError(
            f"the engine {engine!r} was asked for; there are 'local' and 'ray'. Name one of those, "
            f"or none for processes of this machine."
        )
    store.replay(plan.replay_id).mkdir(parents=True, exist_ok=True)
    request = _Request(store, runs, plan, tell)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        begun: dict[int, Future[Outcome]] = {}
        try:
            for number in sorted(range(len(plan.tasks)), key=lambda number: -_seconds(plan.tasks[number])):
                begun[number] = pool.submit(_do, request, plan.tasks[number])
            return [begun[number].result() for number in range(len(plan.tasks))]
        except BaseException:
            request.is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _do(request: _Request, task: Task) -> Outcome:
    """One task, by as many workers one after the other as it takes while they are killed."""
    run, rest = request.runs[task.run_id], task
    before: list[dict[str, Any]] = []
    deaths = 0
    while True:
        told: list[dict[str, Any]] = []
        outcome = do_task(request.store, run, request.plan, rest, _listener(request, told), given_up=request.is_over)
        if outcome.killed_by is None or request.is_over.is_set():
            break
        deaths = 1 if any(event["event"] in DONE for event in told) else deaths + 1
        if deaths >= DEATHS:
            outcome.failure = f"{outcome.failure} (begun {deaths} times, and nothing was done between)"
            break
        before += told
        rest = rest_of(task, before)
        if not rest.passes:
            outcome = Outcome(task, log=outcome.log)
            break
        request.tell(task, {"event": "lost", "message": f"killed by {Signals(outcome.killed_by).name}: begun again"})
    return together(task, before, outcome, _stored(request, run)) if before else replace(outcome, task=task)


def _listener(request: _Request, told: list[dict[str, Any]]) -> Tell:
    def tell(task: Task, event: dict[str, Any]) -> None:
        if request.is_over.is_set():
            raise KeyboardInterrupt
        told.append(event)
        request.tell(task, event)

    return tell


def _stored(request: _Request, run: Run) -> dict[Position, Grade]:
    """The worst verdict of the rows that this request stored, by position."""
    found: dict[Position, Grade] = {}
    for writer, row in read_run(run.path, request.plan.metrics):
        if writer.startswith(f"replay-{request.plan.replay_id}-") and row.verdict is not None:
            found[row.position] = worse(row.verdict, found.get(row.position, row.verdict))
    return found


def _seconds(task: Task) -> float:
    """Estimated; what is unknown may be long."""
    found = [one.seconds for one in task.passes]
    return float("inf") if None in found else sum(s for s in found if s is not None)
