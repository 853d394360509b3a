"""What recording may cost: seconds of the training, bytes of the disk."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from threading import Lock

from flor_plugins.records import Position

ALLOWANCE_S = 2.0  # nobody minds two seconds: a short training keeps every epoch
SERIES = (1, 2, 5, 10, 20, 50, 100)
# A run of unknown length is expected to go on for twice as long as it did so far, and for so
# many checkpoints at least. So what is left of the disk is spent ever more slowly: of 50 GB at
# 1.3 GB each, 15 are left after a hundred epochs and 7 after a thousand; and a short run is not
# thinned much for the sake of a long one that never comes.
LEAST_EXPECTED = 20
UNKNOWN_LENGTH = 10**6  # boundaries: for data without a length the HF Trainer names sys.maxsize
RECENT = 5  # costs and sizes change while a model trains (caches warm up, layers are unfrozen)


class TimeBudget:
    """Seconds of training that recording may cost.

    They are a share of those that have passed, and ALLOWANCE_S.

    Whoever takes a checkpoint whenever the budget allows it takes them the further apart the more
    they cost.
    share: None for no limit.
    """

    def __init__(self, share: float | None, clock: Callable[[], float]) -> None:
        self._share = share
        self._clock = clock
        self._lock = Lock()
        self._began: float | None = None
        self.spent_s = 0.0
        # By checkpoint, what came after it included: what the steps cost is in all of them alike.
        self._full, self._weights = deque([0.0], RECENT), deque[float](maxlen=RECENT)
        self._latest = self._full
        self._weights_share = 1.0

    def begin(self) -> None:
        """Begin to count with the training, if it has not begun.

        Of what came before it (imports, data) no share is taken.
        """
        if self._began is None:
            self._began = self._clock()

    def trains(self, parameters: int, states: int) -> None:
        """Note how many bytes of the model and of the optimizer an update changes."""
        self._weights_share = parameters / (parameters + states) if parameters else 1.0

    def spend(self, seconds: float) -> None:
        """Note how much of the training's time went into checkpoints."""
        self.begin()
        with self._lock:
            self.spent_s += seconds
            self._latest[-1] += seconds

    def took(self, *, is_full: bool) -> None:
        """Note that a checkpoint was taken: what is spent from now on is its cost."""
        with self._lock:
            self._latest = self._full if is_full else self._weights
            self._latest.append(0.0)

    def allows(self, *, is_full: bool) -> bool:
        """Return whether there is time for one more checkpoint, full or of the weights."""
        if self._share is None:
            return True
        with self._lock:
            needed = _typical(self._full)
            if not is_full:  # while none was measured: by its bytes
                needed = _typical(self._weights) or self._weights_share * needed
            needed += self.spent_s
        elapsed = 0.0 if self._began is None else self._clock() - self._began
        return needed <= self._share * elapsed + ALLOWANCE_S

    @property
    def refusal(self) -> str:
        """Why a checkpoint is refused for which there is no time."""
        assert self._share is not None
        return f"recording would cost more than {100 * self._share:.3g} % of the training's time"


@dataclass(frozen=True, slots=True)
class CheckpointSpacing:
    """Every `taken`-th wish becomes a checkpoint, every `full`-th of those a full one.

    taken: None where no wish does.
    """

    taken: int | None
    full: int


# First optimizers are left out, up to 99 of 100. Then weights, too: of a hundred wishes one is
# still full, so that no place is ever further than that from one that training resumes from;
# and at last full ones are thinned.
SPACINGS = (
    *(CheckpointSpacing(1, k) for k in SERIES),
    *(CheckpointSpacing(m, SERIES[-1] // m) for m in SERIES[1:]),
    *(CheckpointSpacing(m * SERIES[-1], 1) for m in SERIES[1:]),
)


class WishForecast:
    """How many wishes for a checkpoint the rest of the training will have.

    epoch: that a resumed run has reached. since_taken: wishes that were refused since the last
    checkpoint.
    """

    def __init__(self, epoch: int) -> None:
        self.since_taken = 0
        self._wishes = 0  # for which there was time
        self._epoch, self._boundaries = epoch, 0
        self._to_come: int | None = None

    def expects(self, boundaries: int | None) -> None:
        """Note how many epoch boundaries are to come; None where nobody knows."""
        is_known = boundaries is not None and 0 <= boundaries < UNKNOWN_LENGTH
        self._to_come = boundaries if is_known else None

    def reaches(self, epoch: int) -> None:
        """Note that the training has come to an epoch boundary."""
        passed = epoch - self._epoch
        if passed > 0:
            self._epoch = epoch
            self._boundaries += passed
            if self._to_come is not None:
                self._to_come -= passed

    def met(self, *, is_wish: bool) -> None:
        """Note that a checkpoint was taken."""
        self._wishes += is_wish
        self.since_taken = 0

    def refused(self) -> None:
        """Note that a wish was refused because the disk is short."""
        self._wishes += 1
        self.since_taken += 1

    def is_thinned(self, spacing: CheckpointSpacing) -> bool:
        """Return whether this spacing refuses the next wish."""
        return spacing.taken is None or self.since_taken + 1 < spacing.taken

    def remaining(self) -> int:
        """Return how many wishes are to be met, the one at hand included.

        The last state has its reserve and is not counted.
        """
        if self._to_come is None or self._to_come < 0:
            return 1 + max(2 * self._wishes, LEAST_EXPECTED)
        each = (self._wishes + 1) / max(self._boundaries, 1)
        return max(math.ceil(self._to_come * each), 1)


class DiskBudget:
    """Bytes that the checkpoints of a run may take.

    The writer reports from its own thread what they took.

    nbytes: None for no limit. used: by checkpoints that are there already.
    """

    def __init__(self, nbytes: int | None, used: int) -> None:
        self.nbytes = nbytes
        self._used = used
        self._lock = Lock()
        self._coming: dict[Position, bool] = {}  # taken and not yet written; is it full?
        # Kept apart: it alone writes what never changes, and its optimizer has no state yet.
        self._first: int | None = None
        self._trained: tuple[int, int] | None = None
        self._weights: deque[int] = deque(maxlen=RECENT)
        self._optimizer: deque[int] = deque(maxlen=RECENT)

    def trains(self, parameters: int, states: int) -> None:
        """Note how many bytes of the model and of the optimizer an update changes.

        What is frozen is stored once.
        """
        with self._lock:
            self._trained = (parameters, states)

    def took(self, position: Position, *, is_full: bool) -> None:
        """Note that a checkpoint will be written."""
        with self._lock:
            self._coming[position] = is_full

    def dropped(self, position: Position) -> None:
        """Note that a checkpoint will not be written."""
        with self._lock:
            self._coming.pop(position, None)

    def wrote(self, position: Position, weights: int, optimizer: int) -> None:
        """Note that a checkpoint is on disk, and how many bytes it took there."""
        with self._lock:
            is_full = self._coming.pop(position, optimizer > 0)
            self._used += weights + optimizer
            if position.step == 0:
                self._first = weights
                return
            self._weights.append(weights)
            if is_full:
                self._optimizer.append(optimizer)

    def freed(self, nbytes: int) -> None:
        """Note that checkpoints were deleted or made smaller."""
        with self._lock:
            self._used = max(self._used - nbytes, 0)

    def spacing(self, wishes: int, since_taken: int = 0, since_full: int = 0) -> CheckpointSpacing:
        """Return the densest spacing with which the wishes fit, and a full last state.

        since_taken: wishes that were not met since the last one; since_full: checkpoints since
        the last full one. While sizes are unknown all are taken: one has to be, to be measured.
        """
        with self._lock:
            if self.nbytes is None or not self._weights:
                return CheckpointSpacing(1, 1)
            weights, optimizer = _mean(self._weights), _mean(self._optimizer)
            left = self.nbytes - self._reserved()
            for spacing in SPACINGS:
                taken = _every(spacing.taken or 1, wishes, since_taken)
                full = _every(spacing.full, taken, since_full)
                if taken * weights + full * optimizer <= left:
                    return spacing
            return CheckpointSpacing(None, 1)

    def fits(self, *, is_full: bool) -> bool:
        """Return whether there is room for one more, and for the last one after it."""
        with self._lock:
            if self.nbytes is None:
                return True
            if self._trained is None and not (is_full or self._weights or self._coming):
                # The first one says too much where most weights are frozen. To be measured, one
                # is let in as if the optimizer had no state.
                return self._used + 2 * (self._first or 0) <= self.nbytes
            return self._reserved() + self._size(is_full) <= self.nbytes

    def _reserved(self) -> int:
        """Return the bytes of what is there, of what is being written, and of the last one."""
        return self._used + sum(map(self._size, self._coming.values())) + self._size(True)

    def _size(self, is_full: bool) -> int:
        """Return the most that one checkpoint takes."""
        # Adam keeps two numbers for each weight; other optimizers keep less.
        parameters, states = self._trained or (self._first or 0, None)
        weights = max(self._weights, default=parameters)
        states = 2 * weights if states is None else states
        return weights + (max(self._optimizer, default=states) if is_full else 0)


def _typical(costs: Iterable[float]) -> float:
    """Return the median of those that are known: that of the newest checkpoint may still be 0."""
    return median([cost for cost in costs if cost > 0] or [0.0])


def _every(n: int, count: int, since: int) -> int:
    """Return how many of `count` are an n-th one, when `since` have gone by since the last."""
    return (min(since, n - 1) + count) // n


def _mean(sizes: deque[int]) -> float:
    return sum(sizes) / len(sizes) if sizes else 0.0
