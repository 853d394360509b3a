"""Copies of a state's tensors, made by a thread of their own until the next update of an
optimizer is due.

What that thread has not come to by then, the training's own thread copies: it waits for no more
than that."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.store.checkpoints.hashes import hash_of
from flor_plugins.store.codec.tensors import DTYPE_NAMES

ALIGNMENT = LINE = 64  # bytes of a cache line
AT_ONCE = 4096  # bytes of a tensor that is copied as fast as it is looked at to be copied later
LINES, ELEMENTS = (
    4,
    16,
)  # that are sampled of a tensor that is copied later: lines where it is row-major
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class BufferSlot:
    """Where the copy of a tensor lies in a buffer, row-major."""

    offset: int
    nbytes: int


@dataclass(slots=True, eq=False)
class StagedTensor:
    """One tensor of a state.

    place: where its copy goes, or has gone; None: it is not copied, and has to have the hash
    `hash`.
    version: of the tensor when the state was taken. tensor: None once nobody needs it any more.
    """

    key: str
    tensor: torch.Tensor | None
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    version: int
    place: BufferSlot | None = None
    hash: str | None = None

    @classmethod
    def of(cls, key: str, tensor: torch.Tensor) -> StagedTensor:
        dtype = DTYPE_NAMES[tensor.dtype]
        version = 0 if tensor.is_inference() else tensor._version
        return cls(
            key, tensor, dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size(), version
        )

    def live(self) -> torch.Tensor:
        assert self.tensor is not None
        return self.tensor

    def is_touched(self) -> bool:
        """Was anything written to it, as far as its version says, since the state was taken?"""
        return self.live()._version != self.version


class DeviceCopy(Protocol):
    """Copies that a device makes by itself; see devices.py."""

    def copy_to_host(self, buffer: SharedBuffer) -> None: ...
    def before_update(self) -> None: ...
    def wait(self) -> None: ...


class PendingCopies:
    """The tensors of one state that are copied later, or compared: worked on by two threads,
    until none is left.

    devices: copies of tensors that are not on the CPU, begun already.
    """

    def __init__(
        self,
        buffer: SharedBuffer,
        later: list[StagedTensor],
        watched: list[StagedTensor],
        devices: Sequence[DeviceCopy] = (),
    ) -> None:
        self.buffer, self.devices = buffer, devices
        self.torn: list[str] = []  # keys of tensors that were written to before they were copied
        self.still: dict[str, bool] = {}  # key of each watched tensor: did it stay as it was?
        self._later, self._watched = later, watched
        self._left = deque(later)
        self._samples = {
            item.key: _sample(item, array_of(item.live()))
            for item in later
            if item.place is not None
        }
        self._begun = threading.Lock()  # held by the one that sees to the devices
        self._worked = threading.Event()
        self.beside_s = 0.0  # seconds of a processor that copying beside the training has taken
        self._error: BaseException | None = None

    def work(self, *, beside: bool = True) -> None:
        """What the background thread does: copy, first come first, until nothing is left."""
        if not self._begun.acquire(blocking=False):  # it came too late
            return
        began = time.thread_time()
        try:
            for device in self.devices:
                device.copy_to_host(self.buffer)
            while self._step(from_end=False):
                pass
        except BaseException as error:
            self._error = error
        finally:
            if beside:
                self.beside_s = time.thread_time() - began
            self._worked.set()

    def close(self) -> None:
        """Copy what is left, together with the background thread, and look whether anything was
        written to meanwhile.

        Called by the training's own thread when the first update is about to be made. Raises
        what went wrong in the background."""
        self.work(
            beside=False
        )  # unless the other thread has begun: it may have been busy with something else
        try:
            while self._step(from_end=True):
                pass
        finally:
            self._worked.wait()  # for the one tensor that the other thread may still be copying
        if self._error is not None:
            raise self._error
        for device in self.devices:
            device.before_update()
        self.torn = sorted({*self.torn, *(item.key for item in self._later if item.is_touched())})
        self.still = {item.key: self._is_as_it_was(item) for item in self._watched}

    def _step(self, *, from_end: bool) -> bool:
        try:
            item = self._left.pop() if from_end else self._left.popleft()
        except IndexError:
            return False
        if item.place is not None:
            copy(item, self.buffer)
            if _sample(item, _copied(item, self.buffer)) != self._samples[item.key]:
                self.torn.append(item.key)
        elif hash_of(memory_of(item.live())) != item.hash:
            self.torn.append(item.key)
        return True

    def _is_as_it_was(self, item: StagedTensor) -> bool:
        assert item.place is not None
        copied = self.buffer.array[item.place.offset : item.place.offset + item.place.nbytes]
        return not item.is_touched() and hash_of(memory_of(item.live())) == hash_of(copied.data)


class CopyThread:
    """The thread that copies."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="flor-copier", daemon=True)
        self._thread.start()

    def start(self, job: Callable[[], None]) -> None:
        """Do this when what was begun before is done. A job raises nothing."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def copy(item: StagedTensor, buffer: SharedBuffer) -> None:
    """Copy a tensor to its place, row-major, on the thread that calls and on no other.

    Not by torch: `Tensor.copy_` on a second thread would start a second team of threads beside
    the training's."""
    assert item.place is not None
    tensor, place = item.live(), item.place
    if not place.nbytes:
        return
    if not tensor.is_cpu:
        memory = buffer.array[place.offset : place.offset + place.nbytes]
        torch.from_numpy(memory).view(tensor.dtype).view(tensor.shape).copy_(tensor)
    elif tensor.is_contiguous():  # several times faster than the next one where tensors are small
        ctypes.memmove(buffer.address + place.offset, tensor.data_ptr(), place.nbytes)
    else:
        source = array_of(tensor)
        memory = buffer.array[place.offset : place.offset + place.nbytes]
        np.copyto(memory.view(source.dtype).reshape(source.shape), source)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor's memory as integers as wide as its elements, strides and all; nothing is
    copied.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.detach().view(_INTS[tensor.element_size()]).numpy()


def _sample(item: StagedTensor, array: np.ndarray) -> bytes:
    """Some elements of the tensor or of its copy, spread over all, by which a write that no
    version counts is found.

    Such a write changes most elements and seldom all: `data.add_(1)` and `data.sub_(1)` leave
    half of them as they were. What costs time is a cache line that has to be fetched; all that
    it holds is looked at, if it can be."""
    if array.nbytes <= LINES * LINE:
        return array.tobytes()
    if not item.live().is_contiguous():
        return array.flat[:: array.size // ELEMENTS].tobytes()
    lines = array.reshape(-1).view(np.uint8)[: array.nbytes // LINE * LINE].reshape(-1, LINE)
    return lines[:: len(lines) // LINES].tobytes()


def _copied(item: StagedTensor, buffer: SharedBuffer) -> np.ndarray:
    """What `array_of` was copied, in one row."""
    assert item.place is not None
    source = array_of(item.live())
    return buffer.array[item.place.offset : item.place.offset + item.place.nbytes].view(
        source.dtype
    )


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, row-major; copied only if they don't lie so."""
    return np.ascontiguousarray(array_of(tensor)).reshape(-1).view(np.uint8).data
