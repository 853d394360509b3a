"""One task: a sandbox with the run's own code, the worker processes in it, and what they came to.

Nothing here knows where it is done: on this machine, or on a node of a cluster.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from flor_plugins.errors import FlorError
from flor_plugins.records import Plan, Run, Task
from flor_plugins.records.events import (
    Event,
    HookFailure,
    PassResult,
    RangeResult,
    WorkerEnd,
    WorkerFailure,
)
from flor_plugins.replayer.execution.fork_client import servers
from flor_plugins.replayer.execution.worker_group import WorkerGroup, environment
from flor_plugins.replayer.execution.worker_order import WorkerOrder
from flor_plugins.replayer.sandbox.worktree import sandbox, write_sources
from flor_plugins.replayer.verification.comparison import worse
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.commits import find_commit

Tell = Callable[[Task, Event], None]
EventResultT = TypeVar("EventResultT", PassResult, RangeResult)


@dataclass(slots=True)
class Outcome:
    """What became of one task.

    passed: one result per finished pass. stretches: one per range that was trained again.
    killed_by: the number of the signal that ended a worker, where no exception did.
    """

    task: Task
    passed: list[PassResult] = field(default_factory=list)
    stretches: list[RangeResult] = field(default_factory=list)
    hook_failures: list[str] = field(default_factory=list)
    failure: str | None = None
    log: Path | None = None
    killed_by: int | None = None

    @property
    def is_whole(self) -> bool:
        """Was all done, and did no hook fail? Then nothing is left to say."""
        return self.failure is None and not self.hook_failures


def do_task(
    store: Store,
    run: Run,
    plan: Plan,
    task: Task,
    tell: Tell,
    *,
    given_up: threading.Event | None = None,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Do all passes of a task.

    A failure is told in the outcome; what `tell` raises ends the workers and is raised.
    given_up: once it is set, the workers are ended. variables: of their environment, over the
    recorded ones.
    """
    outcome, env = Outcome(task), {**environment(run), **(variables or {})}
    folder = store.replay(plan.replay_id) / task.run_id
    folder.mkdir(parents=True, exist_ok=True)
    outcome.log = folder / "output.txt"
    assert run.code is not None
    parts = _parts(run, task)
    if any(count == 1 for _, count in parts):
        servers().begin(run.framework, env)  # it imports while the sandbox is made
    try:
        with (
            find_commit(run.code, store, Path.cwd()) as repo,
            tempfile.TemporaryDirectory(
                prefix="flor-sandbox-", ignore_cleanup_errors=True
            ) as scratch,
            sandbox(repo, run.code, Path(scratch) / Path(run.code.root).name) as place,
        ):
            write_sources(task.edit.sources if task.edit else {}, place)
            for part, count in parts:
                if outcome.failure is not None:
                    break
                order = WorkerOrder(
                    run=str(run.path),
                    store=str(store.root),
                    sandbox=str(place),
                    replay_id=plan.replay_id,
                    hooks=plan.hooks,
                    task=part,
                    is_alone=count < run.processes,
                )
                group = WorkerGroup(run.framework, env, order, folder, count, given_up=given_up)
                _watch(outcome, run, group, tell)
    except FlorError as error:
        outcome.failure = str(error)
    return outcome


def _parts(run: Run, task: Task) -> list[tuple[Task, int]]:
    """What one process does, and what as many must do as trained together.

    They share the data among them.
    """
    if run.processes == 1:
        return [(task, 1)]
    alone = tuple(replay_pass for replay_pass in task.passes if replay_pass.way == "state")
    together = tuple(replay_pass for replay_pass in task.passes if replay_pass.way != "state")
    parts = [(replace(task, passes=alone), 1), (replace(task, passes=together), run.processes)]
    return [(part, count) for part, count in parts if part.passes]


def _watch(outcome: Outcome, run: Run, group: WorkerGroup, tell: Tell) -> None:
    """Read what the workers tell until they end."""
    passed, ranges = len(outcome.passed), len(outcome.stretches)
    last: Event | None = None
    failed_at = None
    try:
        for last in group.events():
            _note(outcome, last)
            failed_at = last.at if isinstance(last, WorkerFailure) else failed_at
            tell(outcome.task, last)
        code = group.end(at_once=outcome.failure is not None)
    except BaseException:
        group.end(at_once=True)
        raise
    has_ended = isinstance(last, (WorkerEnd, WorkerFailure))
    others = group.failure(failed_at)
    if others is not None:
        outcome.failure = f"a worker of run {run.name} failed: {others}"
    elif not has_ended:
        outcome.failure = (
            f"the worker of run {run.name} died (exit status {code}); its output "
            f"is in {outcome.log}"
        )
    outcome.killed_by = None if has_ended and others is None else group.killed_by()
    for rank in range(1, group.count):
        events = group.events_of(rank)
        outcome.passed[passed:] = _worst(outcome.passed[passed:], events, rank)
        outcome.stretches[ranges:] = _worst(outcome.stretches[ranges:], events, rank)


def _worst(results: list[EventResultT], events: Sequence[Event], rank: int) -> list[EventResultT]:
    """A result is as exact as it is in the process in which it is the least."""
    others = [event for event in events if isinstance(event, type(results[0]))] if results else []
    worst = list(results)
    for number, (result, other) in enumerate(zip(results, others, strict=False)):
        verdict = replace(result.verdict, compared=result.verdict.compared + other.verdict.compared)
        if worse(verdict.grade, other.verdict.grade) != verdict.grade:
            detail = f"rank {rank}: {other.verdict.detail}"
            verdict = replace(other.verdict, compared=verdict.compared, detail=detail)
        worst[number] = replace(result, verdict=verdict)
    return worst


def _note(outcome: Outcome, event: Event) -> None:
    """Keep what matters of an event."""
    match event:
        case PassResult():
            outcome.passed.append(event)
        case RangeResult():
            outcome.stretches.append(event)
        case HookFailure():
            outcome.hook_failures.append(event.message)
        case WorkerFailure():
            outcome.failure = event.message
