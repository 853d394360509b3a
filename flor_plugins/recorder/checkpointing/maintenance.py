"""What the writer does besides: it keeps the disk budget, and compresses on an idle machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.checkpoints.manifest import STATE
from flor_plugins.store.checkpoints.writer import KnownTensors

QUIET_S = 30.0  # without a state to write, before anything is compressed
IDLE_LOAD = 0.5  # of the processors, in the mean of the last minute: less, and the machine is idle
# Thinning reads all of the run's state.json, so it frees more than the one byte too many: down to
# this share of the budget.
ROOM = 0.9


class MaintenanceInterruptedError(Exception):
    """There is something more important to do."""


class Maintenance:
    """The maintenance of one run's checkpoints.

    known: what the writer takes to be on the disk. is_needed: is a state waiting to be written?
    """

    def __init__(
        self, run_path: Path, known: KnownTensors, is_needed: Callable[[], bool] | None
    ) -> None:
        self._run_path, self._known, self._is_needed = run_path, known, is_needed
        self._used = self._on_disk()
        self._freed = 0

    def wrote(self, nbytes: int, budget: int | None) -> int:
        """Count a checkpoint that was written; reduce older ones where all exceed the budget.

        Return the bytes that were freed since the last one was written.
        """
        self._used += nbytes
        if budget is not None and self._used > budget:
            from flor_plugins.store.gc.thinning import thin

            with suppress(StoreError):  # it is tried again after the next one
                thin(self._run_path, int(ROOM * budget), self._known)
            self._count()
        freed, self._freed = self._freed, 0
        return freed

    def compress(self) -> None:
        """Compress older checkpoints on an idle machine, until something more important comes."""
        if os.getloadavg()[0] > IDLE_LOAD * (os.cpu_count() or 1):
            return
        # It loads numpy and pyarrow: not before it is used.
        from flor_plugins.store.checkpoints.compression import compress_run

        # What is done is done; gc does the rest one day.
        with suppress(MaintenanceInterruptedError, StoreError, OSError):
            compress_run(self._run_path, pace=self._stop_if_needed)
        self._count()

    def _count(self) -> None:
        before, self._used = self._used, self._on_disk()
        self._freed += before - self._used

    def _stop_if_needed(self) -> None:
        if self._is_needed is not None and self._is_needed():
            raise MaintenanceInterruptedError

    def _on_disk(self) -> int:
        # Damaged, or deleted this moment: it is counted again after the next thinning.
        with suppress(Exception):
            saved = list_checkpoints(self._run_path)
            return sum(one.nbytes + (one.path / STATE).stat().st_size for one in saved)
        return 0
