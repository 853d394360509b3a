"""States on their way to the disk: taken between updates, copied beside and written behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from flor_plugins.errors import StoreError
from flor_plugins.recorder.checkpointing import gpu_staging, staging_copy
from flor_plugins.recorder.checkpointing.gpu_staging import GpuStaging
from flor_plugins.recorder.checkpointing.mutation_tracker import MutationTracker, WrittenTensor
from flor_plugins.recorder.checkpointing.shared_buffers import BufferPool, SharedBuffer
from flor_plugins.recorder.checkpointing.staging_copy import (
    BufferSlot,
    CopyThread,
    PendingCopies,
    StagedTensor,
)
from flor_plugins.recorder.checkpointing.writer_client import WriteOrder, WriterClient
from flor_plugins.recorder.checkpointing.writer_process import WriterMessage
from flor_plugins.records import Position
from flor_plugins.records.sections import Sections
from flor_plugins.store.codec import Encoded, survey


class SaveListener(Protocol):
    """Who wants to know what became of a state.

    The last two methods are called on other threads than the training's, too.
    """

    def copied(self, seconds: float) -> None:
        """Hear for how long another thread copied a state beside the training."""

    def written(self, position: Position, files: Mapping[str, int], freed: int) -> None:
        """Hear that a state is on the disk.

        files: bytes of each file that was written for it. freed: bytes of older checkpoints.
        """

    def not_written(self, position: Position, error: Exception) -> None:
        """Hear that a state will not be on the disk."""


@dataclass(slots=True)
class _BufferLayout:
    """The tensors of a state, each with its slot in a buffer of `nbytes`.

    They are copied at once, or later, or only read.

    Those at once may be watched besides. Those on a GPU are copied there first.
    """

    items: list[StagedTensor] = field(default_factory=list)
    at_once: list[StagedTensor] = field(default_factory=list)
    later: list[StagedTensor] = field(default_factory=list)
    watched: list[StagedTensor] = field(default_factory=list)
    on_devices: dict[torch.device, list[StagedTensor]] = field(default_factory=dict)
    nbytes: int = 0

    def add_slot(self, item: StagedTensor) -> None:
        """Give a tensor the next place in the buffer."""
        item.slot = BufferSlot(self.nbytes, item.nbytes)
        self.nbytes += -(-item.nbytes // staging_copy.ALIGNMENT) * staging_copy.ALIGNMENT


@dataclass(slots=True)
class _StagedState:
    """A state that is being copied."""

    position: Position
    encoded: Encoded
    is_full: bool
    items: list[StagedTensor]
    copies: PendingCopies
    taken: dict[str, WrittenTensor]

    @property
    def buffer(self) -> SharedBuffer:
        return self.copies.buffer

    def message(self, budget: int | None) -> WriterMessage:
        """Return what the writer needs to know."""
        pieces = []
        for item in self.items:
            offset = None if item.slot is None else item.slot.offset
            pieces.append([item.key, item.dtype, list(item.shape), offset, item.hash])
        return {
            "position": str(self.position),
            "buffer": self.buffer.handle,
            "tree": self.encoded.tree,
            "lost": list(self.encoded.lost),
            "full": self.is_full,
            "pieces": pieces,
            "budget": budget,
        }

    def let_go(self) -> None:
        """Forget the training's own tensors: their memory must not be kept until all is written."""
        for item in self.items:
            item.tensor = None
        self.encoded.tensors.clear()


class CheckpointStaging:
    """Saves the states of one run.

    put: runs a job on the thread that writes the run's rows, in order. sync: makes those rows
    safe. It is called there before a state is handed over, because a run that is resumed from a
    checkpoint needs the rows before it.
    """

    def __init__(
        self,
        run_path: Path,
        listener: SaveListener,
        *,
        put: Callable[[Callable[[], None]], None],
        sync: Callable[[], None],
        budget: int | None = None,
        in_process: bool = True,
    ) -> None:
        self._listener, self._budget = listener, budget
        self._put, self._sync = put, sync
        self._writer = WriterClient(run_path, in_process=in_process)
        self._pool = BufferPool(self._drop)
        self._devices: dict[torch.device, GpuStaging] = {}
        self._copier: CopyThread | None = None
        self._tracker = MutationTracker()
        self._open: _StagedState | None = None

    def has_room(self) -> bool:
        """Return whether another state could be taken now, without a wait for room."""
        return not self._pool.is_full()

    def prepare(self, nbytes: int) -> None:
        """Have the memory ready when the first state of that size comes."""

        def prepare() -> None:
            with suppress(StoreError):  # it is tried again, and reported, when the state is there
                self._pool.prepare(nbytes)

        self._in_background(prepare)

    def save(
        self,
        position: Position,
        sections: Sections,
        constants: set[int],
        *,
        is_full: bool = True,
        wait: bool = False,
    ) -> tuple[str, ...] | None:
        """Take a state as it is now; return what of it could not be encoded.

        constants: addresses of the tensors that stay as they are until `close_window` is
        called. wait: for room; else None is returned where there is none. Raises EncodingError
        as `codec.encode` does.
        """
        self.close_window()
        encoded = survey(sections)
        layout = self._lay_out(encoded.tensors, constants)
        buffer = self._pool.take(layout.nbytes, wait=wait)
        if buffer is None:
            return None
        copies = self._begin_copies(layout, buffer, constants)
        taken: dict[str, WrittenTensor] = {}
        for item in layout.items:
            entry = self._tracker.taken(item.key, item.live(), constants)
            if entry is not None:
                taken[item.key] = entry
        self._open = _StagedState(position, encoded, is_full, layout.items, copies, taken)
        if layout.later or layout.on_devices:
            self._in_background(copies.work)
        else:
            copies.work(in_background=False)
        return encoded.lost

    def close_window(self) -> None:
        """See that all is copied before the constants change, and hand the state over."""
        state, self._open = self._open, None
        if state is None:
            return
        copies = state.copies
        try:
            copies.close()
        except BaseException as error:
            self._pool.give(state.buffer)
            if not isinstance(error, Exception):
                raise
            self._listener.not_written(state.position, error)
            return
        self._listener.copied(copies.background_s)
        for key, is_unchanged in copies.unchanged.items():
            self._tracker.watched(key, is_unchanged=is_unchanged)
        if copies.torn:
            self._give_up(state)
            return
        state.let_go()
        self._put(partial(self._hand_over, state))

    def flush(self) -> None:
        """Wait until everything is written that was handed over. Not on the thread of `put`."""
        self._writer.flush()

    def close(self) -> None:
        """End threads and process; what was handed over is written before."""
        self._writer.close()
        if self._copier is not None:
            self._copier.close()
        self._pool.close()

    # ---- inside

    def _in_background(self, job: Callable[[], None]) -> None:
        self._copier = self._copier or CopyThread()
        self._copier.start(job)

    def _lay_out(self, tensors: Mapping[str, torch.Tensor], constants: set[int]) -> _BufferLayout:
        layout = _BufferLayout()
        for key, tensor in tensors.items():
            item = StagedTensor.of(key, tensor)
            mode = self._tracker.copy_mode(key, tensor, constants)
            is_small = mode == "later" and tensor.is_cpu and item.nbytes <= staging_copy.AT_ONCE
            if is_small or tensor.device.type not in ("cpu", "cuda"):
                mode = "now"
            layout.items.append(item)
            if mode == "same":
                item.hash = self._tracker.known_hash(key)
            else:
                layout.add_slot(item)
            if tensor.device.type == "cuda":
                if item.slot is not None:
                    layout.on_devices.setdefault(tensor.device, []).append(item)
                continue
            (layout.later if mode in ("later", "same") else layout.at_once).append(item)
            if mode == "watch":
                layout.watched.append(item)
        return layout

    def _begin_copies(
        self, layout: _BufferLayout, buffer: SharedBuffer, constants: set[int]
    ) -> PendingCopies:
        """Copy what is copied at once, and begin with what is on a GPU."""
        try:
            devices = []
            for device, items in layout.on_devices.items():
                gpu_staging.pin(buffer)
                if device not in self._devices:
                    self._devices[device] = GpuStaging(device)
                self._devices[device].begin(items, constants)
                devices.append(self._devices[device])
            copies = PendingCopies(buffer, layout.later, layout.watched, devices)
            for item in layout.at_once:
                staging_copy.copy(item, buffer)
        except BaseException:
            self._pool.give(buffer)
            raise
        return copies

    def _drop(self, buffer: SharedBuffer) -> None:
        gpu_staging.unpin(buffer)
        self._writer.forget(buffer)

    def _give_up(self, state: _StagedState) -> None:
        torn = state.copies.torn
        for key in torn:
            self._tracker.torn(key)
        self._pool.give(state.buffer)
        reason = (
            f"no checkpoint at {state.position}: {', '.join(torn[:3])} changed before they were "
            f"copied, though no optimizer had made an update. They are copied at once from now on"
        )
        self._listener.not_written(state.position, StoreError(reason))

    def _hand_over(self, state: _StagedState) -> None:
        """Send a state to the writer, on the thread that writes rows."""

        def answered(answer: WriterMessage) -> None:
            self._pool.give(state.buffer)
            if "failed" in answer:
                self._tracker.not_written(state.taken)
                self._listener.not_written(state.position, StoreError(answer["failed"]))
            else:
                self._tracker.written(state.taken, answer["hashes"])
                self._listener.written(state.position, answer["files"], answer.get("freed", 0))

        try:
            for device in state.copies.devices:
                device.wait()
            self._sync()
            self._writer.send(WriteOrder(state.message(self._budget), state.buffer, answered))
        except Exception as error:
            self._pool.give(state.buffer)
            self._listener.not_written(state.position, error)
