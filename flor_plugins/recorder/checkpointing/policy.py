"""When a checkpoint is due, and whether the budgets have room for it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock

from flor_plugins.recorder.checkpointing.budgets import (
    SERIES,
    CheckpointSpacing,
    DiskBudget,
    TimeBudget,
)
from flor_plugins.recorder.options import CheckpointSchedule
from flor_plugins.records import Position, SkippedCheckpoint
from flor_plugins.store.sizes import format_size

# A run of unknown length is expected to go on for twice as long as it did so far, and for so
# many checkpoints at least. So what is left of the disk is spent ever more slowly: of 50 GB at
# 1.3 GB each, 15 are left after a hundred epochs and 7 after a thousand; and a short run is not
# thinned much for the sake of a long one that never comes.
LEAST_EXPECTED = 20
NOBODY_KNOWS = 10**6
MOST_SKIPS = 100  # so many of the first, and so many of the last


class CheckpointPolicy:
    """At epoch boundaries, at every n-th update, and inside long epochs by the clock; no
    position twice.

    The first state (no step made) and the last are always taken, whole. What else is wished for
    is taken if both budgets have room for it: of the training's time the share
    `schedule.overhead`, of the disk `disk_bytes`. Where one is short, the optimizer's state is
    left out first.
    saved: positions that have a checkpoint, and used_bytes: what those hold, in a run that goes on.

    `wants...`, `takes_optimizer` and `saved` are for the thread that trains; the others may be
    called from any."""

    def __init__(
        self,
        schedule: CheckpointSchedule,
        saved: Iterable[Position] = (),
        *,
        disk_bytes: int | None = None,
        used_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule = schedule
        self._clock = clock
        self._time = TimeBudget(schedule.overhead, clock)
        self._disk = DiskBudget(disk_bytes, used_bytes)
        self._skips = SkipLog()
        self._saved = set(saved)
        self._last_step = max((one.step for one in self._saved), default=0)
        self._timed_at = self._full_at = self._full_before = clock()
        self._full: Position | None = (
            None  # the last one that was taken at `_full_at`; before it: at `_full_before`
        )
        self._is_late = (
            False  # the clock's wish was refused, and is granted as soon as there is time
        )
        self._end: Position | None = None
        self._refused: Position | None = None
        self._chosen: tuple[Position, bool] | None = None  # what `takes_optimizer` said last
        self._costs: dict[Position, float] = {}  # to come there again, for what is not written yet
        self._to_come: int | None = None
        self._epoch = max((one.epoch for one in self._saved), default=0)
        self._boundaries = 0
        self._wishes = 0  # for which there was time
        self._since_taken = 0  # of these wishes
        self._since_full = 0  # of the checkpoints

    # ---- what is asked

    def expects(self, boundaries: int | None) -> None:
        """So many epoch boundaries are still to come, the last state included; None where
        nobody knows.

        All of them, not only every n-th.
        """
        # For data without a length the HF Trainer counts epochs up to sys.maxsize.
        self._to_come = (
            boundaries if boundaries is not None and 0 <= boundaries < NOBODY_KNOWS else None
        )

    def wants(self, position: Position, *, last: bool = False) -> bool:
        """Is one due at this epoch boundary? last: the training ends here."""
        self._arrive(position)
        if position in self._saved:
            return False
        if last:
            self._end = position
            return True
        if position.step == 0:
            return True
        is_due = position.epoch % self._schedule.every_n_epochs == 0 or self._is_due(position.step)
        return is_due and self._grants(position)

    def wants_inside(self, position: Position) -> bool:
        """Is one due at this step, inside an epoch?"""
        if position in self._saved:
            return False
        if self._is_due(position.step):
            return self._grants(position)
        return self._is_time() and self._grants(position, by_clock=True)

    def is_near(self, position: Position) -> bool:
        """Will one be due inside the epoch once the next update is made?

        Asked at every step boundary: a checkpoint there needs the RNG state of the boundary
        before it."""
        return self._is_due(position.step + 1) or self._is_time()

    def takes_optimizer(self, position: Position) -> bool:
        """Shall the checkpoint that is about to be taken be full? Else it holds the weights."""
        is_full = position.step == 0 or position == self._end
        if not is_full and self._disk.fits(is_full=True) and self._time.allows(is_full=True):
            is_full = self._since_full + 1 >= self._spacing().full
        self._chosen = (position, is_full)
        return is_full

    # ---- what is told

    def saved(self, position: Position) -> None:
        """A checkpoint was taken there."""
        is_full = self._chosen is None or self._chosen[0] != position or self._chosen[1]
        self._costs[position] = self._clock() - self._full_at
        self._saved.add(position)
        self._skips.remove(position)
        self._time.took(is_full=is_full)
        self._disk.took(position, is_full=is_full)
        self._handled(position)
        self._timed_at = self._clock()
        self._wishes += position.step > 0
        self._since_taken = 0
        self._since_full += 1
        if is_full:
            self._since_full, self._full = 0, position
            self._full_before, self._full_at = self._full_at, self._timed_at

    def skipped(self, position: Position, why: str) -> None:
        """None was taken there, or what was taken there is not written: the writer was busy,
        the disk full, ...
        """
        self._saved.discard(position)
        self._disk.dropped(position)
        self._refused, self._timed_at = position, self._clock()
        self._handled(position)
        if position == self._full:  # so the next one is
            self._full, self._full_at, self._since_full = None, self._full_before, SERIES[-1]
        self._skip(position, why)

    def spent(self, seconds: float) -> None:
        """So many seconds of the training went into checkpoints; what rows of steps cost is not
        counted.

        What is copied beside the training shares the memory with it, and counts as if the
        training copied it: by about so much its steps are longer
        (tests/benchmarks/overhead.py)."""
        self._time.spend(seconds)

    def wrote(self, position: Position, weights: int, optimizer: int) -> None:
        """So many bytes it took on disk.

        optimizer: those that a checkpoint of the weights alone would not take.
        """
        self._costs.pop(position, None)
        self._disk.wrote(position, weights, optimizer)

    def trains(self, parameters: int, states: int) -> None:
        """So many bytes of the model and of the optimizer's state does an update change."""
        self._disk.trains(parameters, states)
        self._time.trains(parameters, states)

    def freed(self, nbytes: int) -> None:
        """So many bytes of this run's checkpoints are no more."""
        self._disk.freed(nbytes)

    # ---- what came of it

    @property
    def skips(self) -> tuple[SkippedCheckpoint, ...]:
        """What was due and not taken, in order: the first and the last ones if there are
        very many.
        """
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

    @property
    def share(self) -> float | None:
        """Of the training's time; None before it began."""
        elapsed = self._time.elapsed_s
        return self.spent_s / elapsed if elapsed > 0 else None

    # ---- inside

    def _arrive(self, position: Position) -> None:
        self._time.begin()
        if position.epoch > self._epoch:
            self._boundaries += position.epoch - self._epoch
            if self._to_come is not None:
                self._to_come -= position.epoch - self._epoch
            self._epoch = position.epoch

    def _grants(self, position: Position, *, by_clock: bool = False) -> bool:
        """Is there room for what is due here? A refusal is noted once."""
        if self._refused == position:
            return False
        if not self._has_time():
            self._is_late = self._is_late or by_clock
            return self._refuse(position, self._time.refusal)
        spacing = self._spacing()
        if (
            spacing.taken is None
            or self._since_taken + 1 < spacing.taken
            or not self._disk.fits(is_full=False)
        ):
            self._wishes += 1
            self._since_taken += 1
            self._timed_at = self._clock()
            self._is_late = False
            return self._refuse(
                position,
                f"checkpoints are thinned to fit into {format_size(self._disk.nbytes or 0)}",
            )
        return True

    def _refuse(self, position: Position, why: str) -> bool:
        self._refused = position
        self._last_step = max(self._last_step, position.step)
        self._skip(position, why)
        return False

    def _skip(self, position: Position, why: str) -> None:
        cost = self._costs.pop(position, None)
        cost = self._clock() - self._full_at if cost is None else cost
        self._skips.add(SkippedCheckpoint(position, why, round(cost, 3)))

    def _handled(self, position: Position) -> None:
        """The wish that fell due here is answered: the next one counts from here."""
        self._last_step = max(self._last_step, position.step)
        self._is_late = False

    def _spacing(self) -> CheckpointSpacing:
        return self._disk.spacing(self._expected(), self._since_taken, self._since_full)

    def _expected(self) -> int:
        """How many wishes are to be met, the one at hand included and the last state, which
        has its reserve, not.
        """
        if self._to_come is None or self._to_come < 0:
            return 1 + max(2 * self._wishes, LEAST_EXPECTED)
        each = (self._wishes + 1) / max(self._boundaries, 1)
        return max(math.ceil(self._to_come * each), 1)

    def _is_due(self, step: int) -> bool:
        every = self._schedule.every_n_steps
        # Not `step % every`: with several optimizers a batch makes more than one update.
        return every is not None and step // every > self._last_step // every

    def _is_time(self) -> bool:
        minutes = self._schedule.every_minutes
        if minutes is None or self._clock() - self._timed_at < 60 * minutes:
            return False
        return not self._is_late or self._has_time()

    def _has_time(self) -> bool:
        """For one more checkpoint.

        Of a hundred one is full: no place is ever further from one to go on from.
        """
        return self._time.allows(is_full=self._since_full + 1 >= SERIES[-1])


class SkipLog:
    """Checkpoints that were due and not taken; of very many the first and the last."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()
        self._first: list[SkippedCheckpoint] = []
        self._last: deque[SkippedCheckpoint] = deque(maxlen=MOST_SKIPS)

    def add(self, one: SkippedCheckpoint) -> None:
        """The later word on a position stands."""
        self.remove(one.position)
        with self._lock:
            self.count += 1
            (self._first if len(self._first) < MOST_SKIPS else self._last).append(one)

    def remove(self, position: Position) -> None:
        """A checkpoint was taken there after all."""
        with self._lock:
            for kept in (self._first, self._last):
                for one in [one for one in kept if one.position == position]:
                    kept.remove(one)
                    self.count -= 1

    @property
    def listed(self) -> tuple[SkippedCheckpoint, ...]:
        with self._lock:
            # What was not written is told later.
            return tuple(sorted((*self._first, *self._last), key=lambda one: one.position))
