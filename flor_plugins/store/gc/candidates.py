"""Where a run stands before anything is given up: its course, what is there of it, what must
stay in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from flor_plugins.records import Checkpoint, Position, Run
from flor_plugins.store import ranks
from flor_plugins.store.gc.disk_usage import parts_of, read_shelf
from flor_plugins.store.gc.eviction import EvictionCandidate
from flor_plugins.store.gc.replay_cost import RunCourse
from flor_plugins.store.metrics.journal import read_run


def standing_of(run: Run, held: Collection[Position] = ()) -> EvictionCandidate:
    """Read what a run has on disk. held: positions that stay besides those that always do."""
    (shelf, listed), *others = map(read_shelf, parts_of(run.path))
    shelves = [shelf, *(one for one, _ in others)]
    whole = ranks.list_checkpoints(run) if others else listed
    fixed = ends_of(whole) | set(held)
    return EvictionCandidate(
        run.run_id, course_of(run, listed), shelves, fixed, not why_not_trained_again(run, listed)
    )


def ends_of(listed: Iterable[Checkpoint]) -> set[Position]:
    """The first and the last of all checkpoints, of those from which training can go on, and
    of the exact ones.
    """
    found = sorted(listed, key=lambda one: one.position)
    can_train = [one for one in found if one.can_train]
    groups = [found, can_train, [one for one in can_train if one.is_full]]
    return {one.position for group in groups if group for one in (group[0], group[-1])}


def course_of(run: Run, listed: Iterable[Checkpoint]) -> RunCourse:
    """How a run went, by all that was recorded of it."""
    reached = [one.position for one in listed] + ([run.position] if run.position else [])
    rows = (row for writer, row in read_run(run.path, ()) if writer.startswith("record"))
    reached += [row.position for row in rows if row.phase != "test"]
    ends: dict[int, int] = {}
    for position in reached:
        # The first position of an epoch count is the update that completed the epoch before.
        ends[position.epoch] = min(position.step, ends.get(position.epoch, position.step))
    last = max(reached, default=Position(0, 0))
    return RunCourse({**ends, 0: 0}, last, run.timing.epoch_s or 1.0)


def why_not_trained_again(run: Run, listed: Iterable[Checkpoint]) -> str:
    """Why a checkpoint that is given up could not be reached again by training; empty if it
    could.
    """
    lost = "what would be given up of it could not be trained again"
    unable = [one.reason for one in run.obstacles if one.grade == "none"]
    if unable:
        return f"{lost}: {unable[0]}"
    if run.code is None:
        return f"{lost}: its code was not recorded"
    if run.launch.kind == "interactive":
        return f"{lost}: it was started from a prompt or a notebook"
    if not any(one.can_train for one in listed):
        return f"{lost}: it has nothing but weights"
    return ""
