"""States of a training on their way to the disk: taken between two updates, copied beside
it, written behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from flor_plugins.store.codec import Encoded, survey


class SaveListener(Protocol):
    """Who wants to know what became of a state.

    The last two are called on other threads than the training's, too.
    """

    def copied(self, seconds: float) -> None:
        """It was copied, for so long beside the training, by another thread."""

    def written(self, position: Position, files: Mapping[str, int], freed: int) -> None:
        """It is on the disk.

        files: bytes of each file that was written for it. freed: bytes of older checkpoints.
        """

    def not_written(self, position: Position, error: Exception) -> None:
        """It is not."""


@dataclass(slots=True)
class _BufferLayout:
    """The tensors of a state, each with its place in a buffer of `nbytes`: copied at once, or
    later, or only read.

    Those at once may be watched besides. Those on a GPU are copied there first.
    """

    items: list[StagedTensor] = field(default_factory=list)
    at_once: list[StagedTensor] = field(default_factory=list)
    later: list[StagedTensor] = field(default_factory=list)
    watched: list[StagedTensor] = field(default_factory=list)
    on_devices: dict[torch.device, list[StagedTensor]] = field(default_factory=dict)
    nbytes: int = 0

    def place(self, item: StagedTensor) -> None:
        item.place = BufferSlot(self.nbytes, item.nbytes)
        self.nbytes += -(-item.nbytes // staging_copy.ALIGNMENT) * staging_copy.ALIGNMENT


@dataclass(slots=True)
class _StagedState:
    """A state that is being copied."""

    position: Position
    encoded: Encoded
    is_full: bool
    buffer: SharedBuffer
    items: list[StagedTensor]
    copies: PendingCopies
    taken: dict[str, WrittenTensor]

    def job(self) -> WriterMessage:
        pieces = [
            [
                one.key,
                one.dtype,
                list(one.shape),
                None if one.place is None else one.place.offset,
                one.hash,
            ]
            for one in self.items
        ]
        return {
            "position": str(self.position),
            "buffer": self.buffer.handle,
            "tree": self.encoded.tree,
            "lost": list(self.encoded.lost),
            "full": self.is_full,
            "pieces": pieces,
        }


class CheckpointStaging:
    """Saves the states of one run.

    put: runs a job on the thread that writes the run's rows, in order. sync: makes those rows
    safe; called there before a state is handed over, because a run that goes on from a
    checkpoint needs the rows before it."""

    def __init__(
        self,
        run_path: Path,
        told: SaveListener,
        *,
        put: Callable[[Callable[[], Any]], None],
        sync: Callable[[], Any],
        budget: int | None = None,
        in_process: bool = True,
    ) -> None:
        self._told, self._budget = told, budget
        self._put, self._sync = put, sync
        self._courier = WriterClient(run_path, in_process=in_process)
        self._pool = BufferPool(self._dropped)
        self._devices: dict[torch.device, GpuStaging] = {}
        self._copier: CopyThread | None = None
        self._habits = MutationTracker()
        self._open: _StagedState | None = None

    def has_room(self) -> bool:
        """Could another state be taken now, without waiting for one to be written?"""
        return not self._pool.is_full()

    def prepare(self, nbytes: int) -> None:
        """States of that size are to come: have the memory ready when the first one does."""

        def prepare() -> None:
            with suppress(StoreError):  # it is tried again, and said, when the state is there
                self._pool.prepare(nbytes)

        self._in_background(prepare)

    def save(
        self,
        position: Position,
        sections: Mapping[str, Any],
        constants: set[int],
        *,
        is_full: bool = True,
        wait: bool = False,
    ) -> tuple[str, ...] | None:
        """Take a state as it is now; returns what of it could not be encoded.

        constants: addresses of the tensors that stay as they are until `close_window` is
        called. wait: for room; else None is returned where there is none. Raises EncodingError
        as `codec.encode` does."""
        self.close_window()
        encoded = survey(sections)
        layout = self._lay_out(encoded.tensors, constants)
        buffer = self._pool.take(layout.nbytes, wait=wait)
        if buffer is None:
            return None
        try:
            copies = PendingCopies(
                buffer,
                layout.later,
                layout.watched,
                self._begin_on(layout.on_devices, constants, buffer),
            )
            for item in layout.at_once:
                staging_copy.copy(item, buffer)
        except BaseException:
            self._pool.give(buffer)
            raise
        taken = {
            item.key: self._habits.taken(item.key, item.live(), constants) for item in layout.items
        }
        known = {key: entry for key, entry in taken.items() if entry is not None}
        self._open = _StagedState(position, encoded, is_full, buffer, layout.items, copies, known)
        if layout.later or layout.on_devices:
            self._in_background(copies.work)
        else:
            copies.work(beside=False)
        return encoded.lost

    def close_window(self) -> None:
        """The constants are about to change: see that all is copied, and hand the state over."""
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
            self._told.not_written(state.position, error)
            return
        self._told.copied(copies.beside_s)
        for key, is_still in copies.still.items():
            self._habits.watched(key, is_still=is_still)
        if copies.torn:
            self._give_up(state, copies.torn)
            return
        for (
            item
        ) in state.items:  # the training's own memory must not be kept alive until all is written
            item.tensor = None
        state.encoded.tensors.clear()
        self._put(lambda: self._hand_over(state))

    def flush(self) -> None:
        """Wait until everything is written that was handed over. Not on the thread of `put`."""
        self._courier.flush()

    def close(self) -> None:
        """End threads and process; what was handed over is written before."""
        self._courier.close()
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
            how, item = self._habits.treatment(key, tensor, constants), StagedTensor.of(key, tensor)
            is_small = how == "later" and tensor.is_cpu and item.nbytes <= staging_copy.AT_ONCE
            if is_small or tensor.device.type not in ("cpu", "cuda"):
                how = "now"
            layout.items.append(item)
            if how == "same":
                item.hash = self._habits.known_hash(key)
            else:
                layout.place(item)
            if tensor.device.type == "cuda":
                if item.place is not None:
                    layout.on_devices.setdefault(tensor.device, []).append(item)
                continue
            (layout.later if how in ("later", "same") else layout.at_once).append(item)
            if how == "watch":
                layout.watched.append(item)
        return layout

    def _begin_on(
        self,
        items: Mapping[torch.device, list[StagedTensor]],
        constants: set[int],
        buffer: SharedBuffer,
    ) -> list[GpuStaging]:
        for device, ones in items.items():
            gpu_staging.pin(buffer)
            if device not in self._devices:
                self._devices[device] = GpuStaging(device)
            self._devices[device].begin(ones, constants)
        return [self._devices[device] for device in items]

    def _dropped(self, buffer: SharedBuffer) -> None:
        gpu_staging.unpin(buffer)
        self._courier.forget(buffer)

    def _give_up(self, state: _StagedState, torn: Collection[str]) -> None:
        for key in torn:
            self._habits.surprised(key)
        self._pool.give(state.buffer)
        names = ", ".join(sorted(torn)[:3])
        self._told.not_written(
            state.position,
            StoreError(
                f"no checkpoint at {state.position}: {names} changed before they were copied, "
                f"though no optimizer "
                f"had made an update. They are copied at once from now on"
            ),
        )

    def _hand_over(self, state: _StagedState) -> None:
        """On the thread that writes rows."""

        def answered(answer: WriterMessage) -> None:
            self._pool.give(state.buffer)
            if "failed" in answer:
                self._habits.not_written(state.taken)
                self._told.not_written(state.position, StoreError(answer["failed"]))
            else:
                self._habits.written(state.taken, answer["hashes"])
                self._told.written(state.position, answer["files"], answer.get("freed", 0))

        try:
            for device in state.copies.devices:
                device.wait()
            self._sync()
            self._courier.send(
                WriteOrder({**state.job(), "budget": self._budget}, state.buffer, answered)
            )
        except Exception as error:
            self._pool.give(state.buffer)
            self._told.not_written(state.position, error)
