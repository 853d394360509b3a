"""Where the tasks of a plan are done: one name per engine.

Nothing of a task knows which one it was.
"""

from __future__ import annotations

from importlib import import_module

from flor_plugins.errors import ReplayError
from flor_plugins.records import Plan, Run
from flor_plugins.replayer.execution.task_runner import Outcome, Tell
from flor_plugins.store.layout import Store

ENGINES = {
    "local": "flor_plugins.replayer.execution.local_executor",  # worker processes of this machine
    "ray": "flor_plugins.replayer.execution.ray.executor",  # those of a Ray cluster
}


def check(engine: str) -> None:
    """Raise ReplayError for an engine that does not exist, with the names of those that do."""
    if engine not in ENGINES:
        raise ReplayError(
            f"the engine {engine!r} was asked for; there are "
            f"{' and '.join(map(repr, ENGINES))}. Name one of those, "
            f"or none for processes of this machine."
        )


def run_all(
    store: Store,
    runs: dict[str, Run],
    plan: Plan,
    tell: Tell,
    *,
    workers: int = 1,
    engine: str = "local",
) -> list[Outcome]:
    """Do all tasks of a plan, the longest first; one that fails does not stop the others. In
    the order of the plan.

    workers: tasks at a time. tell: hears each event of a task as it happens, one at a time;
    what it raises ends the replay. Raises ReplayError for an engine that does not exist or
    can't be reached, MissingDependency for one that is not installed."""
    check(engine)
    return import_module(ENGINES[engine]).run_all(store, runs, plan, tell, workers=workers)
