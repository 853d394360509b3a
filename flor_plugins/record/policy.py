"""When a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flor_plugins.record.options import Options
from flor_plugins.records import Position


class Policy:
    """At epoch boundaries, at every n-th update, and inside long epochs by the clock; no position twice."""

    def __init__(self, options: Options, saved: Iterable[Position] = ()) -> None:
        self._options = options
        self._saved = set(saved)
        self._last_step = max((one.step for one in self._saved), default=0)
        self._saved_at = time.monotonic()

    def saved(self, position: Position) -> None:
        """A checkpoint was taken there."""
        self._saved.add(position)
        self._last_step = max(self._last_step, position.step)
        self._saved_at = time.monotonic()

    def wants(self, position: Position, *, last: bool = False) -> bool:
        """Is one due at this epoch boundary? last: the training ends here."""
        is_due = last or position.epoch % self._options.every_n_epochs == 0 or self._is_due(position.step)
        return is_due and position not in self._saved

    def wants_inside(self, position: Position) -> bool:
        """Is one due at this step, inside an epoch?"""
        return (self._is_due(position.step) or self._is_time()) and position not in self._saved

    def is_near(self, position: Position) -> bool:
        """Will one be due inside the epoch once the next update is made?

        Asked at every step boundary: a checkpoint there needs the RNG state of the boundary before it.
        """
        return self._is_due(position.step + 1) or self._is_time()

    def _is_due(self, step: int) -> bool:
        every = self._options.every_n_steps
        # Not `step % every`: with several optimizers a batch makes more than one update.
        return every is not None and step // every > self._last_step // every

    def _is_time(self) -> bool:
        minutes = self._options.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
