"""Where the tasks of a plan are done: one name per engine.

Nothing of a task knows which one it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from flor_plugins.errors import ReplayError
from flor_plugins.records import Plan, Run
from flor_plugins.replayer.execution.task_runner import Outcome, Tell
from flor_plugins.store.layout import Store

ENGINES = {
    "local": "flor_plugins.replayer.execution.local_executor",  # worker processes of this machine
    "ray": "flor_plugins.replayer.execution.ray.executor",  # those of a Ray cluster
}


class Executor(Protocol):
    """A module that does the tasks of a plan somewhere."""

    def run_all(
        self, store: Store, runs: Mapping[str, Run], plan: Plan, tell: Tell, *, workers: int
    ) -> list[Outcome]:
        """Do all tasks of a plan, the longest first; one that fails does not stop the others.

        Returns their outcomes in the order of the plan. workers: tasks at a time. tell: hears
        each event of a task as it happens, one at a time; what it raises ends the replay.
        Raises ReplayError for a cluster that can't be reached, MissingDependency for an engine
        that is not installed.
        """
        ...


def executor_of(engine: str) -> Executor:
    """Return an engine. Raises ReplayError for an unknown one, with the names of the others."""
    if engine not in ENGINES:
        raise ReplayError(
            f"the engine {engine!r} was asked for; there are "
            f"{' and '.join(map(repr, ENGINES))}. Name one of those, "
            f"or none for processes of this machine."
        )
    return cast(Executor, import_module(ENGINES[engine]))
