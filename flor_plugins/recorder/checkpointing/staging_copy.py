"""Copies of the tensors of a state.

A thread of their own makes them until the next update of an optimizer is due.

The training's own thread copies what that thread has not reached by then, and waits for no more
than that.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.store.checkpoints.hashes import hash_of
from flor_plugins.store.codec.tensors import DTYPE_NAMES

ALIGNMENT = LINE = 64  # bytes of a cache line
AT_ONCE = 4096  # bytes of a tensor that is copied as fast as it is sampled to be copied later
# How much is sampled of a tensor that is copied later: lines where it is row-major, else elements.
LINES, ELEMENTS = 4, 16
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class BufferSlot:
    """Where the copy of a tensor lies in a buffer, row-major."""

    offset: int
    nbytes: int


@dataclass(slots=True, eq=False)
class StagedTensor:
    """One tensor of a state.

    slot: where its copy goes, or has gone; None: it is not copied, and must have the hash `hash`.
    version: of the tensor when the state was taken. tensor: None once nobody needs it any more.
    sample: some of its bytes when the state was taken, if it is copied later.
    """

    key: str
    tensor: torch.Tensor | None
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    version: int
    slot: BufferSlot | None = None
    hash: str | None = None
    sample: bytes = b""

    @classmethod
    def of(cls, key: str, tensor: torch.Tensor) -> StagedTensor:
        """Describe a tensor as it is now."""
        version = 0 if tensor.is_inference() else tensor._version
        nbytes = tensor.numel() * tensor.element_size()
        return cls(key, tensor, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), nbytes, version)

    def live(self) -> torch.Tensor:
        """Return the training's own tensor."""
        assert self.tensor is not None
        return self.tensor

    def copied(self, buffer: SharedBuffer) -> np.ndarray:
        """Return the bytes of its slot."""
        assert self.slot is not None
        return buffer.array[self.slot.offset : self.slot.offset + self.slot.nbytes]

    def is_touched(self) -> bool:
        """Return whether its version says that it was written to since the state was taken."""
        return self.live()._version != self.version


class DeviceCopy(Protocol):
    """Copies that a device makes by itself; see gpu_staging.py."""

    def copy_to_host(self, buffer: SharedBuffer) -> None:
        """Queue the copies to the host."""

    def before_update(self) -> None:
        """See that the next update does not change what is still copied."""

    def wait(self) -> None:
        """Return when all is on the host."""


class PendingCopies:
    """The tensors of one state that are copied later, or compared.

    Two threads work on them until none is left.

    devices: copies of tensors that are not on the CPU, begun already.
    After `close`, torn holds the keys of tensors that were written to before they were copied, and
    unchanged says of each watched tensor whether it stayed as it was.
    """

    def __init__(
        self,
        buffer: SharedBuffer,
        later: list[StagedTensor],
        watched: list[StagedTensor],
        devices: Sequence[DeviceCopy] = (),
    ) -> None:
        self.buffer, self.devices = buffer, devices
        self.torn: list[str] = []
        self.unchanged: dict[str, bool] = {}
        self.background_s = 0.0  # seconds of a processor, taken beside the training
        self._later, self._watched = later, watched
        self._queue = deque(later)
        for item in later:
            if item.slot is not None:
                item.sample = _sample(item, array_of(item.live()))
        self._begun = threading.Lock()  # held by the thread that sees to the devices
        self._done: Future[None] = Future()  # of the thread that holds `_begun`

    def work(self, *, in_background: bool = True) -> None:
        """Copy, first come first, until nothing is left."""
        if not self._begun.acquire(blocking=False):  # the other thread was faster
            return
        began, failure = time.thread_time(), None
        try:
            for device in self.devices:
                device.copy_to_host(self.buffer)
            while self._step(self._queue.popleft):
                pass
        except BaseException as error:
            failure = error
        if in_background:
            self.background_s = time.thread_time() - began
        self._done.set_exception(failure)

    def close(self) -> None:
        """Copy what is left, with the background thread, and look for torn tensors.

        The training's own thread calls it when the first update is about to be made. Raises what
        went wrong in the background.
        """
        # unless the other thread has begun: it may have been busy with something else
        self.work(in_background=False)
        try:
            while self._step(self._queue.pop):
                pass
        finally:
            self._done.exception()  # waits for the one tensor that the other may still be copying
        self._done.result()
        for device in self.devices:
            device.before_update()
        self.torn = sorted({*self.torn, *(item.key for item in self._later if item.is_touched())})
        self.unchanged = {item.key: self._is_unchanged(item) for item in self._watched}

    def _step(self, take: Callable[[], StagedTensor]) -> bool:
        try:
            item = take()
        except IndexError:
            return False
        if item.slot is None:
            is_torn = hash_of(memory_of(item.live())) != item.hash
        else:
            copy(item, self.buffer)
            is_torn = _sample(item, _copied(item, self.buffer)) != item.sample
        if is_torn:
            self.torn.append(item.key)
        return True

    def _is_unchanged(self, item: StagedTensor) -> bool:
        copied = item.copied(self.buffer)
        return not item.is_touched() and hash_of(memory_of(item.live())) == hash_of(copied.data)


class CopyThread:
    """The thread that copies."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="flor-copier", daemon=True)
        self._thread.start()

    def start(self, job: Callable[[], None]) -> None:
        """Queue a job, which must not raise."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def copy(item: StagedTensor, buffer: SharedBuffer) -> None:
    """Copy a tensor to its slot, row-major, on the calling thread and on no other.

    Not by torch: `Tensor.copy_` on a second thread would start a second team of threads beside
    the training's.
    """
    tensor, target = item.live(), item.copied(buffer)
    if not target.size:
        return
    if not tensor.is_cpu:
        torch.from_numpy(target).view(tensor.dtype).view(tensor.shape).copy_(tensor)
    elif tensor.is_contiguous():  # several times faster than the next one where tensors are small
        assert item.slot is not None
        ctypes.memmove(buffer.address + item.slot.offset, tensor.data_ptr(), item.slot.nbytes)
    else:
        source = array_of(tensor)
        np.copyto(target.view(source.dtype).reshape(source.shape), source)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """View a CPU tensor's memory as integers as wide as its elements, strides and all."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.detach().view(_INTS[tensor.element_size()]).numpy()


def _sample(item: StagedTensor, array: np.ndarray) -> bytes:
    """Return some elements of the tensor or of its copy, spread over all.

    By them a write is found that no version counts.

    Such a write changes most elements and seldom all: `data.add_(1)` and `data.sub_(1)` leave
    half of them as they were. What costs time is a cache line that has to be fetched; all that
    it holds is looked at, if it can be.
    """
    if array.nbytes <= LINES * LINE:
        return array.tobytes()
    if not item.live().is_contiguous():
        return array.flat[:: array.size // ELEMENTS].tobytes()
    lines = array.reshape(-1).view(np.uint8)[: array.nbytes // LINE * LINE].reshape(-1, LINE)
    return lines[:: len(lines) // LINES].tobytes()


def _copied(item: StagedTensor, buffer: SharedBuffer) -> np.ndarray:
    """View the copy as `array_of` views the tensor, in one row."""
    return item.copied(buffer).view(array_of(item.live()).dtype)


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, row-major; they are copied only if they don't lie so."""
    return np.ascontiguousarray(array_of(tensor)).reshape(-1).view(np.uint8).data
