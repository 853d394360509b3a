"""Where a run has been: its epochs' ends, its checkpoints, and the stretches between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flor_plugins.errors import NoCheckpoint
from flor_plugins.records import Checkpoint, Position, Row, Run, TrainingRange
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.ranks import list_checkpoints


@dataclass(frozen=True, slots=True)
class RunIndex:
    """ends: epoch to the step that completed it (0: the beginning). saved: every whole
    checkpoint by position.

    validated: where the run was validated inside an epoch. last: how far the run came.
    starts: the checkpoints from which training goes on; bit for bit where there are such.
    steps: every update of which something was recorded, ascending.
    """

    run: Run
    ends: dict[int, int]
    saved: dict[Position, Checkpoint]
    validated: frozenset[Position]
    last: Position
    starts: tuple[Position, ...] = ()
    steps: tuple[Position, ...] = ()

    def end_of(self, epoch: int) -> Position:
        """The position at which that epoch was completed. Raises NoCheckpoint if it was not."""
        if epoch not in self.ends:
            raise NoCheckpoint(
                f"run {self.run.name} ({self.run.run_id}) was asked for epoch {epoch}; "
                f"it completed {', '.join(map(str, sorted(self.ends))) or 'none'}"
            )
        return Position(epoch, self.ends[epoch])

    def at_step(self, step: int) -> Position:
        """The position of an optimizer update.

        Raises NoCheckpoint if the run has not come so far.
        """
        if step > self.last.step:
            raise NoCheckpoint(
                f"run {self.run.name} ({self.run.run_id}) was asked for step {step}; it made "
                f"{self.last.step}"
            )
        done = [epoch for epoch, end in self.ends.items() if end <= step]
        return Position(max(done, default=0), step)

    def epoch_of(self, position: Position) -> int:
        """The number of the epoch in which the update of that position was made: 1 for the
        first.
        """
        is_end = self.ends.get(position.epoch) == position.step
        return position.epoch if is_end else position.epoch + 1

    def before(self, position: Position, *, whole: bool = False) -> Position:
        """The last checkpoint, or the last at an epoch's end, from which training leads there.

        Raises NoCheckpoint.
        """
        ends = {Position(*end) for end in self.ends.items()}
        earlier = [
            start for start in self.starts if start < position and (not whole or start in ends)
        ]
        if not earlier:
            raise NoCheckpoint(
                f"run {self.run.name} ({self.run.run_id}) has no checkpoint before {position} "
                f"from which it could be "
                f"trained again; it has {'; '.join(map(str, self.saved)) or 'none'}"
            )
        return earlier[-1]

    def stretches(
        self, wanted: Iterable[Position], *, whole: bool = False
    ) -> tuple[TrainingRange, ...]:
        """The least training that leads through all wanted positions, from the checkpoints
        nearest before each.

        whole: only whole epochs, for what is summed up over an epoch. Raises NoCheckpoint.
        """
        ends: dict[Position, Position] = {}
        for position in wanted:
            start = self.before(position, whole=whole)
            ends[start] = max(position, ends.get(start, position))
        return tuple(
            TrainingRange(start, ends[start], self._touched(start, ends[start]))
            for start in sorted(ends)
        )

    def from_the_beginning(self, wanted: Iterable[Position]) -> tuple[TrainingRange, ...]:
        """All training up to the last wanted position, in one.

        Raises NoCheckpoint without the State it began with.
        """
        start, end = Position(0, 0), max(wanted)
        if start not in self.starts:
            raise NoCheckpoint(
                f"run {self.run.name} ({self.run.run_id}) would have to be trained again from "
                f"its beginning, and has "
                f"no checkpoint there; it has {'; '.join(map(str, self.saved)) or 'none'}"
            )
        return (TrainingRange(start, end, self._touched(start, end)),)

    def intervals(self) -> tuple[TrainingRange, ...]:
        """All of the run, from checkpoint to checkpoint."""
        last = [self.last] if self.starts and self.last > self.starts[-1] else []
        return self.stretches([*self.starts[1:], *last])

    def steps_in(self, stretches: Sequence[TrainingRange]) -> int:
        """How many updates they make."""
        return sum(stretch.end.step - stretch.start.step for stretch in stretches)

    def _touched(self, start: Position, end: Position) -> tuple[int, ...]:
        return tuple(range(start.epoch + 1, max(self.epoch_of(end), start.epoch + 1) + 1))


def places_of(run: Run, rows: Iterable[tuple[str, Row]] | None = None) -> RunIndex:
    """Where a run has been. rows: its journals, if they were read already."""
    checkpoints = list_checkpoints(run)
    saved = {one.position: one for one in checkpoints}
    first: dict[int, int] = {}
    inside: set[Position] = set()
    steps: set[Position] = set()
    reached = [*saved, *([run.position] if run.position else [])]
    for writer, row in read_run(run.path, ()) if rows is None else rows:
        if not writer.startswith("record") or row.phase == "test":
            continue
        reached.append(row.position)
        if row.phase == "validation" and row.level == "step":
            inside.add(row.position)
        elif row.phase == "train" and row.level == "step":
            steps.add(row.position)
    for position in reached:
        # The first position of an epoch count is the update that completed the epoch before.
        first[position.epoch] = min(position.step, first.get(position.epoch, position.step))
    # Rows begin at the first update, not at the beginning.
    ends = {**first, 0: 0} if 0 in first else first
    whole = [one for one in checkpoints if one.can_train]
    full = [one.position for one in whole if one.is_full] or [one.position for one in whole]
    validated = frozenset(one for one in inside if ends.get(one.epoch) != one.step)
    last = max(reached, default=Position(0, 0))
    return RunIndex(run, ends, saved, validated, last, tuple(full), tuple(sorted(steps)))
