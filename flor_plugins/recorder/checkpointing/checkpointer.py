"""Keeps States of a training: asks the policy, takes them between two updates, counts what
that costs.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy
from flor_plugins.recorder.checkpointing.staging import CheckpointStaging
from flor_plugins.recorder.checkpointing.update_window import UpdateWindow
from flor_plugins.recorder.options import CheckpointSchedule, RecordOptions
from flor_plugins.records import Position, Run
from flor_plugins.records.sections import OPTIMIZER
from flor_plugins.store import checkpoints

MOST_SKIPPED = 200
BUSY = "the ones before it were still being written"


class Checkpointer:
    """Of one run.

    put: see `CheckpointStaging`. failed: told of what could not be kept; called on any thread.
    """

    def __init__(
        self,
        run: Run,
        options: RecordOptions,
        *,
        put: Callable[[Callable[[], Any]], None],
        sync: Callable[[], Any],
        failed: Callable[[Exception], None],
    ) -> None:
        self._run, self._failed = run, failed  # the run as it was when this process began
        self.policy = _policy(run, options.schedule)
        self._saver = CheckpointStaging(
            run.path, self, put=put, sync=sync, budget=self.policy.disk_bytes
        )
        self._window = UpdateWindow(self._update)
        self._updates = 0

    def watch(self, optimizers: Iterable[Any]) -> None:
        """The optimizers of this training: between their updates parameters stay as they are."""
        self._window.attach(optimizers)

    def keep(
        self, position: Position, state: Callable[[], Mapping[str, Any]], *, last: bool = False
    ) -> tuple[str, ...]:
        """Take the State that `state` gives, unless the writer is behind; returns what could
        not be encoded.

        The first and the last one wait for room.
        """
        started = time.perf_counter()
        must = last or position.step == 0
        try:
            with _no_collection():
                lost = self._save(position, state, must) if must or self._saver.has_room() else None
            if lost is None:
                self.policy.skipped(position, BUSY)
            return lost or ()
        except Exception as error:
            self.not_written(position, error)
            return ()
        finally:
            self.policy.spent(time.perf_counter() - started)

    def skipped(self) -> dict[str, Any]:
        """What was due and left out, as fields of a Run: before an interruption, too."""
        now = {one.position for one in self.policy.skips}
        before = [one for one in self._run.skipped if one.position not in now]
        count = self._run.skipped_count + self.policy.skipped_count
        return {"skipped": (*before, *self.policy.skips)[-MOST_SKIPPED:], "skipped_count": count}

    def finish(self) -> None:
        """No update follows: hand over what is being copied.

        What is handed over is not written yet.
        """
        self._window.detach()
        self._saver.close_window()

    def close(self) -> None:
        """Wait until all is written.

        Not on the thread of `put`, which must be done with its jobs.
        """
        self._saver.close()

    # ---- what the saver tells

    def copied(self, seconds: float) -> None:
        """So long, beside the training: it is counted as the training's own time."""
        self.policy.spent(seconds)

    def written(self, position: Position, files: Mapping[str, int], freed: int) -> None:
        """It is on the disk."""
        optimizer = files.get(f"{OPTIMIZER}.safetensors", 0)
        self.policy.wrote(position, sum(files.values()) - optimizer, optimizer)
        self.policy.freed(freed)

    def not_written(self, position: Position, error: Exception) -> None:
        """It is not."""
        self.policy.skipped(position, str(error))
        self._failed(error)

    # ---- inside

    def _save(
        self, position: Position, state: Callable[[], Mapping[str, Any]], must: bool
    ) -> tuple[str, ...] | None:
        is_full = self.policy.takes_optimizer(position)
        sections = {name: part for name, part in state().items() if is_full or name != OPTIMIZER}
        if not sections:
            self.policy.saved(position)
            return ()
        lost = self._saver.save(
            position, sections, self._window.constants(), is_full=is_full, wait=must
        )
        if lost is not None:
            self.policy.saved(position)
        if must and position.step:  # the last one: no update follows that would end its window
            self._saver.close_window()
        return lost

    def _update(self) -> None:
        """An optimizer is about to change its parameters. Nothing of ours may keep it from that."""
        started = time.perf_counter()
        self._updates += 1
        try:
            self._saver.close_window()
            if self._updates == 2:  # the optimizer has its state
                nbytes = self._window.nbytes()
                self.policy.trains(*nbytes)
                self._saver.prepare(
                    int(1.02 * sum(nbytes))
                )  # buffers of the model have some bytes, too
        except Exception as error:
            self._failed(error)
        self.policy.spent(time.perf_counter() - started)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python looks for cycles whenever some hundreds of objects were made: ten times in a
    State, which has none.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _policy(run: Run, schedule: CheckpointSchedule) -> CheckpointPolicy:
    """Of a run that goes on, what it has counts."""
    saved = checkpoints.list_checkpoints(run.path)
    used, disk = sum(one.nbytes for one in saved), None
    if (
        run.processes == 1
    ):  # several processes have to decide alike, and their disks and clocks differ
        disk = (
            used + shutil.disk_usage(run.path).free // 2 if schedule.disk is None else schedule.disk
        )
    return CheckpointPolicy(
        schedule, (one.position for one in saved), disk_bytes=disk, used_bytes=used
    )
