"""What a worker process is told to do; it reads that from a file (see worker.py)."""

from __future__ import annotations

from dataclasses import dataclass

from flor_plugins.records import Task


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """A task, where it is done, and by which process.

    run, store, sandbox: folders. hooks: paths of hook files. is_alone: one process does what
    several trained together. rank: the number of this one among those that do the task.
    """

    run: str
    store: str
    sandbox: str
    replay_id: str
    hooks: tuple[str, ...]
    task: Task
    is_alone: bool
    rank: int = 0
