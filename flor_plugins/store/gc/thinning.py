"""Thinning of one run beside its training, where nobody knows yet how long it will be.

Loads nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import Checkpoint, Position
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.checkpoints.writer import KnownTensors
from flor_plugins.store.gc.candidates import first_and_last
from flor_plugins.store.gc.checkpoint_sizes import CheckpointSizes
from flor_plugins.store.gc.disk_usage import read_sizes, reduce
from flor_plugins.store.gc.eviction import EvictionCandidate, choose
from flor_plugins.store.gc.pins_and_holds import held_by_replays, is_pinned
from flor_plugins.store.gc.replay_cost import CheckpointForm
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import estimated_progress
from flor_plugins.store.runs import load_run


def thin(run_path: Path, budget: int, known: KnownTensors | None = None) -> list[Position]:
    """Reduce checkpoints of a run that is being recorded to at most `budget` bytes.

    It goes as far as possible.

    For the process that writes them, and no other. The journal is not read: all epochs so far
    count as equally long and equally likely. The first and the last checkpoint stay, and what
    is pinned or a replay needs. known: what the writer takes to be on disk; what is given up is
    taken out of it. Returns the positions that were reduced.

    The part of another process than the first (`ranks/<r>`) follows that one, whatever the budget.
    Raises StoreError if something can't be removed: what was done before stays done.
    """
    sizes, listed = read_sizes(run_path)
    was = dict(sizes.forms)
    if run_path.parent.name == "ranks":
        _follow(run_path, sizes)
    else:
        _decide(run_path, sizes, listed, budget)
    done = []
    for position, form in reduce(run_path, sizes, was):
        if (
            known is not None
        ):  # before it is removed: a reference to what is gone would be worse than a second copy
            _forget(known, sizes, position, form)
        done.append(position)
    return done


def _decide(run_path: Path, sizes: CheckpointSizes, listed: list[Checkpoint], budget: int) -> None:
    run_id = run_path.name
    holds = held_by_replays(Store(run_path.parents[1]))
    if is_pinned(run_path) or run_id in holds.runs:
        return
    try:
        epoch_s = load_run(run_path).timing.epoch_s
    except StoreError:  # only the unit of the costs is unknown then
        epoch_s = None
    progress = estimated_progress((checkpoint.position for checkpoint in listed), epoch_s)
    fixed = first_and_last(listed) | set(holds.positions.get(run_id, ()))
    choose([EvictionCandidate(run_id, progress, [sizes], fixed)], sizes.nbytes - budget)


def _follow(part: Path, sizes: CheckpointSizes) -> None:
    """What the first process has given up is of no use.

    It may not have written its newest one yet.
    """
    there = {checkpoint.position for checkpoint in list_checkpoints(part.parents[1])}
    for position in [
        position
        for position in sizes.forms
        if position not in there and position < max(there, default=position)
    ]:
        sizes.put(position, "gone")


def _forget(
    known: KnownTensors, sizes: CheckpointSizes, position: Position, form: CheckpointForm
) -> None:
    kept = sizes.kept(position)
    of_optimizer = sizes.contents[position].of_optimizer
    for identity, (place, _, _) in list(known.items()):
        key = identity[0]
        if place == str(position) and key not in kept and (form == "gone" or key in of_optimizer):
            del known[identity]
