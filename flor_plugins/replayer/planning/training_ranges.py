"""The least training that leads to wanted positions of a run, from the checkpoints it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flor_plugins.errors import NoCheckpoint
from flor_plugins.records import Position, TrainingRange
from flor_plugins.store.run_index import BEGINNING, RunIndex


def nearest_start(index: RunIndex, position: Position, *, whole: bool = False) -> Position:
    """Return the last checkpoint from which training leads to a position.

    whole: only one at an epoch's end. Raises NoCheckpoint.
    """
    earlier = [
        start for start in index.starts if start < position and (not whole or index.is_end(start))
    ]
    if not earlier:
        raise NoCheckpoint(
            f"run {index.run.name} ({index.run.run_id}) has no checkpoint before {position} "
            f"from which it could be trained again; it has {_saved(index)}"
        )
    return earlier[-1]


def ranges_through(
    index: RunIndex, positions: Iterable[Position], *, whole: bool = False
) -> tuple[TrainingRange, ...]:
    """Return the least training that leads through all positions.

    It begins at the checkpoint nearest before each. whole: only whole epochs, for what is
    summed up over an epoch. Raises NoCheckpoint.
    """
    ends: dict[Position, Position] = {}
    for position in positions:
        start = nearest_start(index, position, whole=whole)
        ends[start] = max(position, ends.get(start, position))
    return tuple(_range(index, start, ends[start]) for start in sorted(ends))


def range_from_beginning(
    index: RunIndex, positions: Iterable[Position]
) -> tuple[TrainingRange, ...]:
    """Return all training up to the last of the positions, in one range.

    Raises NoCheckpoint without the State that the run began with.
    """
    if BEGINNING not in index.starts:
        raise NoCheckpoint(
            f"run {index.run.name} ({index.run.run_id}) would have to be trained again from "
            f"its beginning, and has no checkpoint there; it has {_saved(index)}"
        )
    return (_range(index, BEGINNING, max(positions)),)


def ranges_between_checkpoints(index: RunIndex) -> tuple[TrainingRange, ...]:
    """Return all of a run, from checkpoint to checkpoint."""
    last = [index.last] if index.starts and index.last > index.starts[-1] else []
    return ranges_through(index, [*index.starts[1:], *last])


def count_steps(ranges: Sequence[TrainingRange]) -> int:
    """Count the updates that some ranges make."""
    return sum(one.end.step - one.start.step for one in ranges)


def _range(index: RunIndex, start: Position, end: Position) -> TrainingRange:
    last = max(index.epoch_of(end), start.epoch + 1)
    return TrainingRange(start, end, tuple(range(start.epoch + 1, last + 1)))


def _saved(index: RunIndex) -> str:
    return "; ".join(map(str, index.saved)) or "none"
