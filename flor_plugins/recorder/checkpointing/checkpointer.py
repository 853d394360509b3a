"""Saves States of a training: asks the policy, takes them between updates, counts the cost."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy
from flor_plugins.recorder.checkpointing.staging import CheckpointStaging
from flor_plugins.recorder.checkpointing.update_window import UpdateWindow
from flor_plugins.recorder.options import CheckpointSchedule
from flor_plugins.records import Position, Run
from flor_plugins.records.sections import OPTIMIZER, Sections
from flor_plugins.store import checkpoints

StateSource = Callable[[], Sections]  # takes a State
MOST_SKIPPED = 200
BUSY = "the ones before it were still being written"


class Checkpointer:
    """Saves the States of one run.

    put, sync: see `CheckpointStaging`. failed: called, on any thread, with what went wrong.
    """

    def __init__(
        self,
        run: Run,
        schedule: CheckpointSchedule,
        *,
        put: Callable[[Callable[[], None]], None],
        sync: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._run, self._failed = run, failed  # the run as it was when this process began
        self.policy = _policy(run, schedule)
        self._staging = CheckpointStaging(
            run.path, self, put=put, sync=sync, budget=self.policy.disk_bytes
        )
        self._window = UpdateWindow(self._before_update)
        self._updates = 0

    def watch(self, optimizers: Iterable[object]) -> None:
        """Learn which optimizers train: between their updates parameters stay as they are."""
        self._window.attach(optimizers)

    def save(
        self, position: Position, state: StateSource, *, last: bool = False
    ) -> tuple[str, ...]:
        """Take the State that `state` gives, unless the writer is behind.

        Return what could not be encoded.

        The first and the last one wait for room.
        """
        started = time.perf_counter()
        must = last or position.step == 0
        try:
            with _no_collection():
                has_room = must or self._staging.has_room()
                lost = self._stage(position, state, must) if has_room else None
            if lost is None:
                self.policy.skipped(position, BUSY)
            return lost or ()
        except Exception as error:
            self.not_written(position, error)
            return ()
        finally:
            self.policy.spent(time.perf_counter() - started)

    def with_skips(self, run: Run) -> Run:
        """Return the run with what was due and skipped, before an interruption, too."""
        skips = self.policy.skips
        positions = {skip.position for skip in skips}
        earlier = [skip for skip in self._run.skipped if skip.position not in positions]
        return replace(
            run,
            skipped=(*earlier, *skips)[-MOST_SKIPPED:],
            skipped_count=self._run.skipped_count + self.policy.skipped_count,
        )

    def finish(self) -> None:
        """Hand over what is being copied: no update follows.

        What is handed over is not written yet.
        """
        self._window.detach()
        self._staging.close_window()

    def close(self) -> None:
        """Wait until all is written.

        Not on the thread of `put`, which must be done with its jobs.
        """
        self._staging.close()

    # ---- SaveListener

    def copied(self, seconds: float) -> None:
        """Count what was copied beside the training as the training's own time."""
        self.policy.spent(seconds)

    def written(self, position: Position, files: Mapping[str, int], freed: int) -> None:
        """Tell the policy that a checkpoint is on the disk."""
        optimizer = files.get(f"{OPTIMIZER}.safetensors", 0)
        self.policy.wrote(position, sum(files.values()) - optimizer, optimizer)
        self.policy.freed(freed)

    def not_written(self, position: Position, error: Exception) -> None:
        """Tell the policy and the user that a checkpoint is not there."""
        self.policy.skipped(position, str(error))
        self._failed(error)

    # ---- inside

    def _stage(self, position: Position, state: StateSource, must: bool) -> tuple[str, ...] | None:
        is_full = self.policy.takes_optimizer(position)
        sections = {name: part for name, part in state().items() if is_full or name != OPTIMIZER}
        if not sections:
            self.policy.saved(position)
            return ()
        lost = self._staging.save(
            position, sections, self._window.constants(), is_full=is_full, wait=must
        )
        if lost is not None:
            self.policy.saved(position)
        if must and position.step:  # the last one: no update follows that would end its window
            self._staging.close_window()
        return lost

    def _before_update(self) -> None:
        """Let an optimizer change its parameters. Nothing of ours may keep it from that."""
        started = time.perf_counter()
        self._updates += 1
        try:
            self._staging.close_window()
            if self._updates == 2:  # the optimizer has its state
                nbytes = self._window.nbytes()
                self.policy.trains(*nbytes)
                # buffers of the model have some bytes, too
                self._staging.prepare(int(1.02 * sum(nbytes)))
        except Exception as error:
            self._failed(error)
        self.policy.spent(time.perf_counter() - started)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles.

    It does so whenever some hundreds of objects were made: ten times in a State, which has none.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _policy(run: Run, schedule: CheckpointSchedule) -> CheckpointPolicy:
    """Return the policy of a run; what a resumed run has counts."""
    saved = checkpoints.list_checkpoints(run.path)
    used, disk = sum(checkpoint.nbytes for checkpoint in saved), schedule.disk
    if run.processes > 1:  # they have to decide alike, and their disks differ
        disk = None
    elif disk is None:
        disk = used + shutil.disk_usage(run.path).free // 2
    positions = (checkpoint.position for checkpoint in saved)
    return CheckpointPolicy(schedule, positions, disk_bytes=disk, used_bytes=used)
