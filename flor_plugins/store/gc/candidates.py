"""What gc knows of a run before it evicts anything.

That is its progress, the bytes of its checkpoints, and which of them must stay in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter

from flor_plugins.records import Checkpoint, Position, Run
from flor_plugins.store import ranks
from flor_plugins.store.gc.disk_usage import parts_of, read_sizes
from flor_plugins.store.gc.eviction import EvictionCandidate
from flor_plugins.store.run_index import index_run, why_not_trainable


def read_candidate(run: Run, held: Collection[Position] = ()) -> EvictionCandidate:
    """Read what a run has on disk. held: positions that stay besides those that always do."""
    (sizes, loadable), *others = map(read_sizes, parts_of(run.path))
    checkpoints = ranks.list_checkpoints(run) if others else loadable
    return EvictionCandidate(
        run.run_id,
        index_run(run, checkpoints=loadable).progress,
        [sizes, *(part for part, _ in others)],
        first_and_last(checkpoints) | set(held),
        not why_not_trainable(run, loadable),
    )


def first_and_last(checkpoints: Iterable[Checkpoint]) -> set[Position]:
    """Return the positions of the first and the last checkpoint.

    Of all checkpoints, of those from which training can go on, and of the exact ones.
    """
    ordered = sorted(checkpoints, key=attrgetter("position"))
    trainable = [checkpoint for checkpoint in ordered if checkpoint.can_train]
    groups = [ordered, trainable, [checkpoint for checkpoint in trainable if checkpoint.is_full]]
    return {
        checkpoint.position for group in groups if group for checkpoint in (group[0], group[-1])
    }
