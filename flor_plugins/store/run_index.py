"""Where a run's epochs end, where its checkpoints are, and from which it can be trained again.

It is known once, for the planner of replays and for gc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil

from flor_plugins.errors import NoCheckpoint
from flor_plugins.records import Checkpoint, Position, Run
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.row_source import SourcedRow
from flor_plugins.store.ranks import list_checkpoints

BEGINNING = Position(0, 0)


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run came.

    ends: epoch to the step that completed it, 0 for the beginning. last: the last position.
    epoch_s: seconds of one epoch; 1 where nothing was measured, so that costs count epochs.
    """

    ends: Mapping[int, int]
    last: Position
    epoch_s: float = 1.0

    @property
    def epochs(self) -> tuple[int, ...]:
        """Return the completed epochs, ascending, without the beginning."""
        return tuple(sorted(epoch for epoch in self.ends if epoch > 0))

    def epochs_done(self, position: Position) -> float:
        """Epochs completed at a position, with the part of the one that was begun."""
        begun = self.ends.get(position.epoch, 0 if position.epoch == 0 else None)
        if begun is None or position.step <= begun:
            return float(position.epoch)
        length = self.ends.get(position.epoch + 1, begun + self._steps_per_epoch()) - begun
        return position.epoch + min((position.step - begun) / max(length, 1), 0.999)

    def is_end(self, position: Position) -> bool:
        """Say whether an epoch was completed at a position, or the run began there."""
        return position == BEGINNING or self.ends.get(position.epoch) == position.step

    def _steps_per_epoch(self) -> int:
        last = max(self.epochs, default=0)
        # Before the first epoch is over nobody knows its length: all that was done counts as one.
        return max(self.last.step + 1, 1) if last == 0 else max(ceil(self.ends[last] / last), 1)


@dataclass(frozen=True, slots=True)
class RunIndex:
    """What is known of a run's positions.

    saved: every whole checkpoint by position. starts: the checkpoints from which training goes
    on; bit for bit where there are such. validated: where the run was validated inside an
    epoch. steps: every update of which something was recorded, ascending.
    """

    run: Run
    progress: RunProgress
    saved: Mapping[Position, Checkpoint]
    starts: tuple[Position, ...] = ()
    validated: frozenset[Position] = frozenset()
    steps: tuple[Position, ...] = ()

    @property
    def ends(self) -> Mapping[int, int]:
        """Return the step that completed each epoch."""
        return self.progress.ends

    @property
    def last(self) -> Position:
        """Return the last position."""
        return self.progress.last

    def is_end(self, position: Position) -> bool:
        """Say whether an epoch was completed at a position, or the run began there."""
        return self.progress.is_end(position)

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
        """Return the number of the epoch in which the update of a position was made, from 1."""
        return position.epoch if self.is_end(position) else position.epoch + 1


def index_run(
    run: Run,
    rows: Iterable[SourcedRow] | None = None,
    checkpoints: Iterable[Checkpoint] | None = None,
) -> RunIndex:
    """Read where a run has been.

    rows, checkpoints: what its journals and folders hold, if they were read already.
    """
    saved = {
        checkpoint.position: checkpoint
        for checkpoint in (list_checkpoints(run) if checkpoints is None else checkpoints)
    }
    reached = [*saved, *([run.position] if run.position else [])]
    validated: set[Position] = set()
    steps: set[Position] = set()
    for source, row in read_run(run.path, ()) if rows is None else rows:
        if source.is_replay or row.phase == "test":
            continue
        reached.append(row.position)
        if row.level == "step":
            (validated if row.phase == "validation" else steps).add(row.position)
    ends = _ends(reached)
    progress = RunProgress(ends, max(reached, default=BEGINNING), run.timing.epoch_s or 1.0)
    return RunIndex(
        run,
        progress,
        saved,
        _starts(saved.values()),
        frozenset(position for position in validated if not progress.is_end(position)),
        tuple(sorted(steps)),
    )


def _ends(reached: Iterable[Position]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for position in reached:
        # The first position of an epoch count is the update that completed the epoch before.
        ends[position.epoch] = min(position.step, ends.get(position.epoch, position.step))
    # Rows begin at the first update, not at the beginning.
    return {**ends, 0: 0} if 0 in ends else ends


def _starts(checkpoints: Iterable[Checkpoint]) -> tuple[Position, ...]:
    trainable = [checkpoint for checkpoint in checkpoints if checkpoint.can_train]
    exact = [checkpoint for checkpoint in trainable if checkpoint.is_full]
    return tuple(checkpoint.position for checkpoint in exact or trainable)


def estimated_progress(positions: Iterable[Position], epoch_s: float | None) -> RunProgress:
    """Estimate how far a run came from its checkpoints, where the journal is not read.

    All epochs count as equally long.
    """
    reached = sorted(positions)
    last = reached[-1] if reached else BEGINNING
    # A position inside an epoch has more steps for its count of epochs than the end of that epoch.
    steps_per_epoch = min(
        (position.step / position.epoch for position in reached if position.epoch), default=0.0
    )
    ends = {epoch: round(steps_per_epoch * epoch) for epoch in range(1, last.epoch + 1)}
    return RunProgress({0: 0, **ends}, last, epoch_s or 1.0)


def why_not_trainable(run: Run, checkpoints: Iterable[Checkpoint]) -> str:
    """Say why a run can't be trained again from its checkpoints; empty if it can."""
    obstacles = [obstacle.reason for obstacle in run.obstacles if obstacle.grade == "none"]
    if obstacles:
        return obstacles[0]
    if run.code is None:
        return "its code was not recorded"
    if run.launch.kind == "interactive":
        return "it was started from a prompt or a notebook"
    if not any(checkpoint.can_train for checkpoint in checkpoints):
        return "it has nothing but weights"
    return ""
