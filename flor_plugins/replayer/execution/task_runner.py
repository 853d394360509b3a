"""One task: a sandbox with the run's own code, the worker processes in it, and what they came to.

Nothing here knows where it is done: on this machine, or on a node of a cluster.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError
from flor_plugins.records import Plan, Run, Task, to_json
from flor_plugins.replayer.execution.fork_client import servers
from flor_plugins.replayer.execution.worker_group import WorkerGroup, environment
from flor_plugins.replayer.sandbox import laying
from flor_plugins.replayer.sandbox.worktree import sandbox
from flor_plugins.replayer.verification.comparison import worse
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.commits import find_commit

Tell = Callable[[Task, dict[str, Any]], None]


@dataclass(slots=True)
class Outcome:
    """What became of one task.

    passed: one event per finished pass (way, epochs, seconds, grade, ...). stretches: one per
    stretch of training.
    killed_by: the number of the signal that ended a worker, where no exception did.
    """

    task: Task
    passed: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[dict[str, Any]] = field(default_factory=list)
    hook_failures: list[str] = field(default_factory=list)
    failure: str | None = None
    log: Path | None = None
    killed_by: int | None = None

    @property
    def is_whole(self) -> bool:
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
    """Do all passes of a task. A failure is told in the outcome; what `tell` raises ends the
    workers and is raised.

    given_up: once it is set, the workers are ended. variables: of their environment, over the
    recorded ones."""
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
            laying.lay(task.edit.sources if task.edit else {}, place)
            for part, count in parts:
                order = {
                    "run": str(run.path),
                    "store": str(store.root),
                    "sandbox": str(place),
                    "replay_id": plan.replay_id,
                    "hooks": list(plan.hooks),
                    "task": to_json(part),
                    "is_alone": count < run.processes,
                }
                if outcome.failure is None:
                    _watch(
                        outcome,
                        run,
                        WorkerGroup(run.framework, env, order, folder, count, given_up=given_up),
                        tell,
                    )
    except FlorError as error:
        outcome.failure = str(error)
    return outcome


def _parts(run: Run, task: Task) -> list[tuple[Task, int]]:
    """What one process does, and what as many must do as trained together: they share the
    data among them.
    """
    if run.processes == 1:
        return [(task, 1)]
    alone = tuple(one for one in task.passes if one.way == "state")
    together = tuple(one for one in task.passes if one.way != "state")
    parts = [(replace(task, passes=alone), 1), (replace(task, passes=together), run.processes)]
    return [(part, count) for part, count in parts if part.passes]


def _watch(outcome: Outcome, run: Run, crew: WorkerGroup, tell: Tell) -> None:
    """Read what the workers tell until they end."""
    passed, stretches = len(outcome.passed), len(outcome.stretches)
    ended, failed_at = False, None
    try:
        for event in crew.events():
            ended = _note(outcome, event) or ended
            failed_at = event["at"] if event["event"] == "failed" else failed_at
            tell(outcome.task, event)
        code = crew.end(at_once=outcome.failure is not None)
    except BaseException:
        crew.end(at_once=True)
        raise
    others = crew.failure(failed_at)
    if others is not None:
        outcome.failure = f"a worker of run {run.name} failed: {others}"
    elif not ended:
        outcome.failure = (
            f"the worker of run {run.name} died (exit status {code}); its output "
            f"is in {outcome.log}"
        )
    outcome.killed_by = None if ended and others is None else crew.killed_by()
    for rank in range(1, crew.count):
        told = crew.told_by_others(rank)
        _worsen(outcome.passed[passed:], [one for one in told if one["event"] == "passed"], rank)
        _worsen(
            outcome.stretches[stretches:], [one for one in told if one["event"] == "stretch"], rank
        )


def _worsen(events: list[dict[str, Any]], others: list[dict[str, Any]], rank: int) -> None:
    """A pass is as exact as it is in the process in which it is the least."""
    for event, other in zip(events, others, strict=False):
        event["compared"] += other["compared"]
        if worse(event["grade"], other["grade"]) != event["grade"]:
            event.update(
                grade=other["grade"], first=other["first"], detail=f"rank {rank}: {other['detail']}"
            )


def _note(outcome: Outcome, event: dict[str, Any]) -> bool:
    """Keep what matters of an event; True for the last one."""
    kind = event["event"]
    if kind == "passed":
        outcome.passed.append(event)
    elif kind == "stretch":
        outcome.stretches.append(event)
    elif kind == "hook_failed":
        outcome.hook_failures.append(event["message"])
    elif kind == "failed":
        outcome.failure = event["message"]
    return kind in ("done", "failed")
