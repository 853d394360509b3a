"""When a checkpoint is due, and whether the budgets have room for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from threading import Lock

from flor_plugins.recorder.checkpointing.budgets import (
    SERIES,
    CheckpointSpacing,
    DiskBudget,
    TimeBudget,
    WishForecast,
)
from flor_plugins.recorder.options import CheckpointSchedule
from flor_plugins.records import Position, SkippedCheckpoint
from flor_plugins.store.sizes import format_size

MOST_SKIPS = 100  # that are listed of the first, and as many of the last
Clock = Callable[[], float]  # seconds


class CheckpointPolicy:
    """Decides where checkpoints are taken.

    They are due at epoch boundaries, at every n-th update, and inside long epochs by the clock; at
    no position twice.

    The first state (no step made) and the last are always taken, whole. What else is wished for
    is taken if both budgets have room for it: of the training's time the share
    `schedule.overhead`, of the disk `disk_bytes`. Where one is short, the optimizer's state is
    left out first.
    saved: positions that have a checkpoint, and used_bytes: what those hold, in a resumed run.

    `wants...`, `takes_optimizer` and `saved` are for the thread that trains; the others may be
    called from any.
    """

    def __init__(
        self,
        schedule: CheckpointSchedule,
        saved: Iterable[Position] = (),
        *,
        disk_bytes: int | None = None,
        used_bytes: int = 0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._saved = set(saved)
        self._time = TimeBudget(schedule.overhead, clock)
        self._disk = DiskBudget(disk_bytes, used_bytes)
        self._timer = _CheckpointTimer(
            schedule, clock, max((position.step for position in self._saved), default=0)
        )
        self._forecast = WishForecast(max((position.epoch for position in self._saved), default=0))
        self._full = _FullCheckpoints(clock)
        self._skips = SkipLog()
        self._end: Position | None = None
        self._refused: Position | None = None
        self._choice: tuple[Position, bool] | None = None  # the last answer of `takes_optimizer`

    # ---- questions

    def expects(self, boundaries: int | None) -> None:
        """Note how many epoch boundaries are still to come; None where nobody knows.

        The last state is counted, and not only every n-th.
        """
        self._forecast.expects(boundaries)

    def wants(self, position: Position, *, last: bool = False) -> bool:
        """Is a checkpoint due at this epoch boundary? last: the training ends here."""
        self._time.begin()
        self._forecast.reaches(position.epoch)
        if position in self._saved:
            return False
        if last:
            self._end = position
            return True
        return position.step == 0 or (self._timer.is_due_at(position) and self._grants(position))

    def wants_inside(self, position: Position) -> bool:
        """Return whether a checkpoint is due at this step, inside an epoch."""
        if position in self._saved:
            return False
        if self._timer.is_step_due(position.step):
            return self._grants(position)
        return self._is_time() and self._grants(position, by_clock=True)

    def is_near(self, position: Position) -> bool:
        """Return whether a checkpoint will be due inside the epoch once the next update is made.

        Asked at every step boundary: a checkpoint there needs the RNG state of the boundary
        before it.
        """
        return self._timer.is_step_due(position.step + 1) or self._is_time()

    def takes_optimizer(self, position: Position) -> bool:
        """Shall the checkpoint that is about to be taken be full? Else it holds the weights."""
        is_full = position.step == 0 or position == self._end
        if not is_full and self._disk.fits(is_full=True) and self._time.allows(is_full=True):
            is_full = self._full.since + 1 >= self._spacing().full
        self._choice = (position, is_full)
        return is_full

    # ---- reports

    def saved(self, position: Position) -> None:
        """Note that a checkpoint was taken there."""
        is_full = self._choice is None or self._choice[0] != position or self._choice[1]
        self._saved.add(position)
        self._skips.remove(position)
        self._time.took(is_full=is_full)
        self._disk.took(position, is_full=is_full)
        self._timer.restart(position)
        self._forecast.met(is_wish=position.step > 0)
        self._full.took(position, is_full=is_full)

    def skipped(self, position: Position, why: str) -> None:
        """Note that no checkpoint was taken there, or that what was taken is not written.

        The writer was busy, the disk full, ...
        """
        self._saved.discard(position)
        self._disk.dropped(position)
        self._refused = position
        self._timer.restart(position)
        self._full.dropped(position)
        self._skip(position, why)

    def spent(self, seconds: float) -> None:
        """Note that so many seconds of the training went into checkpoints.

        What rows of steps cost is not counted.

        What is copied beside the training shares the memory with it, and counts as if the
        training copied it: by about so much its steps are longer
        (tests/benchmarks/overhead.py).
        """
        self._time.spend(seconds)

    def wrote(self, position: Position, weights: int, optimizer: int) -> None:
        """Note how many bytes a checkpoint took on disk.

        optimizer: those that a checkpoint of the weights alone would not take.
        """
        self._full.wrote(position)
        self._disk.wrote(position, weights, optimizer)

    def trains(self, parameters: int, states: int) -> None:
        """Note how many bytes of the model and of the optimizer's state an update changes."""
        self._disk.trains(parameters, states)
        self._time.trains(parameters, states)

    def freed(self, nbytes: int) -> None:
        """Note that so many bytes of this run's checkpoints are no more."""
        self._disk.freed(nbytes)

    # ---- results

    @property
    def skips(self) -> tuple[SkippedCheckpoint, ...]:
        """What was due and not taken, in order: the first and the last if there are very many."""
        return self._skips.listed

    @property
    def skipped_count(self) -> int:
        """How many were due and not taken."""
        return self._skips.count

    @property
    def disk_bytes(self) -> int | None:
        """What the checkpoints may take; None for no limit."""
        return self._disk.nbytes

    @property
    def spent_s(self) -> float:
        """Seconds of training that recording has cost."""
        return self._time.spent_s

    # ---- inside

    def _grants(self, position: Position, *, by_clock: bool = False) -> bool:
        """Is there room for what is due here? A refusal is noted once."""
        if self._refused == position:
            return False
        if not self._has_time():
            self._timer.is_late |= by_clock
            why = self._time.refusal
        elif self._forecast.is_thinned(self._spacing()) or not self._disk.fits(is_full=False):
            self._forecast.refused()
            self._timer.restart()
            why = f"checkpoints are thinned to fit into {format_size(self._disk.nbytes or 0)}"
        else:
            return True
        self._refused = position
        self._timer.passed(position.step)
        self._skip(position, why)
        return False

    def _skip(self, position: Position, why: str) -> None:
        self._skips.add(SkippedCheckpoint(position, why, round(self._full.cost(position), 3)))

    def _spacing(self) -> CheckpointSpacing:
        return self._disk.spacing(
            self._forecast.remaining(), self._forecast.since_taken, self._full.since
        )

    def _is_time(self) -> bool:
        return self._timer.is_time() and (not self._timer.is_late or self._has_time())

    def _has_time(self) -> bool:
        """Return whether there is time for one more checkpoint.

        Of a hundred one is full: no place is ever further from one that training resumes from.
        """
        return self._time.allows(is_full=self._full.since + 1 >= SERIES[-1])


class _CheckpointTimer:
    """When the schedule wishes for a checkpoint.

    step: of the last checkpoint that was due.
    is_late: the clock's wish was refused, and is granted as soon as there is time.
    """

    def __init__(self, schedule: CheckpointSchedule, clock: Clock, step: int) -> None:
        self._schedule, self._clock = schedule, clock
        self._step, self._restarted = step, clock()
        self.is_late = False

    def is_due_at(self, boundary: Position) -> bool:
        """Return whether this is an n-th epoch, or an n-th update."""
        is_nth = boundary.epoch % self._schedule.every_n_epochs == 0
        return is_nth or self.is_step_due(boundary.step)

    def is_step_due(self, step: int) -> bool:
        """Return whether an n-th update has come since the last checkpoint that was due."""
        every = self._schedule.every_n_steps
        # Not `step % every`: with several optimizers a batch makes more than one update.
        return every is not None and step // every > self._step // every

    def is_time(self) -> bool:
        """Return whether the minutes have passed."""
        minutes = self._schedule.every_minutes
        return minutes is not None and self._clock() - self._restarted >= 60 * minutes

    def restart(self, position: Position | None = None) -> None:
        """Count the minutes from here, and the updates from an answered wish."""
        self._restarted, self.is_late = self._clock(), False
        if position is not None:
            self.passed(position.step)

    def passed(self, step: int) -> None:
        """Count updates from here."""
        self._step = max(self._step, step)


class _FullCheckpoints:
    """The last full checkpoint: from there the training would be run again to a skipped position.

    since: checkpoints that were taken after it.
    """

    def __init__(self, clock: Clock) -> None:
        self.since = 0
        self._clock = clock
        self._position: Position | None = None
        self._taken_at = self._previous_at = clock()
        self._costs: dict[Position, float] = {}  # to come there again, for what is not written yet

    def took(self, position: Position, *, is_full: bool) -> None:
        """Note that a checkpoint was taken."""
        now = self._clock()
        self._costs[position] = now - self._taken_at
        self.since += 1
        if is_full:
            self.since, self._position = 0, position
            self._previous_at, self._taken_at = self._taken_at, now

    def dropped(self, position: Position) -> None:
        """Note that what was taken there is not written: if it was full, the next one is."""
        if position == self._position:
            self._position, self._taken_at = None, self._previous_at
            self.since = SERIES[-1]

    def wrote(self, position: Position) -> None:
        """Note that a checkpoint is on disk."""
        self._costs.pop(position, None)

    def cost(self, position: Position) -> float:
        """Return the seconds of training from the last full checkpoint to a skipped position."""
        cost = self._costs.pop(position, None)
        return self._clock() - self._taken_at if cost is None else cost


class SkipLog:
    """Checkpoints that were due and not taken; of very many the first and the last."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()
        self._first: list[SkippedCheckpoint] = []
        self._last: deque[SkippedCheckpoint] = deque(maxlen=MOST_SKIPS)

    def add(self, skip: SkippedCheckpoint) -> None:
        """Add a skip, in place of an earlier one of its position."""
        self.remove(skip.position)
        with self._lock:
            self.count += 1
            (self._first if len(self._first) < MOST_SKIPS else self._last).append(skip)

    def remove(self, position: Position) -> None:
        """Note that a checkpoint was taken there after all."""
        with self._lock:
            for listed in (self._first, self._last):
                for skip in [skip for skip in listed if skip.position == position]:
                    listed.remove(skip)
                    self.count -= 1

    @property
    def listed(self) -> tuple[SkippedCheckpoint, ...]:
        """The skips, in order."""
        with self._lock:
            # What was not written is reported later.
            return tuple(sorted((*self._first, *self._last), key=attrgetter("position")))
