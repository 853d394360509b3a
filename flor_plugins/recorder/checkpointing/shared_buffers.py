"""Memory that this process fills and the writer's process reads: allocated once, used again.

Fresh memory is zeroed page by page as it is touched, several times slower than copying into
memory that was used before.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from operator import attrgetter

import numpy as np

from flor_plugins.errors import StoreError

ROUND = 1 << 20  # bytes; a state that grows a little fits the buffer it had
SMALL = 256 << 20  # bytes of small states that may wait to be written


class SharedBuffer:
    """Shared memory of at least `nbytes`, at `address`.

    handle: its file descriptor, for the other process.
    """

    def __init__(self, nbytes: int) -> None:
        """Allocate the memory. Raises StoreError if the system has none."""
        self.nbytes = -(-max(nbytes, 1) // ROUND) * ROUND
        try:
            self.handle = _shared_memory()
            try:
                os.ftruncate(self.handle, self.nbytes)
                self._map = mmap.mmap(self.handle, self.nbytes)
            except BaseException:
                os.close(self.handle)
                raise
        except OSError as error:
            raise StoreError(
                f"a checkpoint needs {self.nbytes} bytes of shared memory for its copy, and "
                f"there are none: {error}. "
                f"Look at the limits of memory and of file sizes (ulimit -v, ulimit -f)"
            ) from error
        self.array = np.frombuffer(self._map, np.uint8)
        self.address = self.array.ctypes.data
        self.is_pinned = False

    def close(self) -> None:
        """Give the memory back. Views of it that somebody still holds keep it alive."""
        del self.array
        os.close(self.handle)


class BufferPool:
    """Buffers for states on their way to the disk.

    At most two large ones are in use, or SMALL bytes of small ones.

    dropped: called for each buffer before its memory is given back.
    """

    def __init__(self, dropped: Callable[[SharedBuffer], None]) -> None:
        self._dropped = dropped
        self._free: list[SharedBuffer] = []
        self._used: list[SharedBuffer] = []
        self._changed = threading.Condition()

    def take(self, nbytes: int, *, wait: bool = False) -> SharedBuffer | None:
        """Return a buffer of at least that many bytes.

        While too many are in use, wait for one or return None.
        """
        with self._changed:
            while not self._has_room(nbytes):
                if not wait:
                    return None
                self._changed.wait()
            fitting = [buffer for buffer in self._free if buffer.nbytes >= nbytes]
            buffer = min(fitting, key=attrgetter("nbytes"), default=None)
            if buffer is None:
                self._drop_free()
                buffer = SharedBuffer(nbytes)
            else:
                self._free.remove(buffer)
            self._used.append(buffer)
            return buffer

    def prepare(self, nbytes: int) -> None:
        """Have a buffer of that size ready, its pages touched; any thread may do that."""
        with self._changed:
            if any(buffer.nbytes >= nbytes for buffer in self._free):
                return
        buffer = SharedBuffer(nbytes)
        buffer.array[:: mmap.PAGESIZE] = 0
        with self._changed:
            self._free.append(buffer)

    def give(self, buffer: SharedBuffer) -> None:
        """Take a buffer back whose state was written or given up; a second time does nothing."""
        with self._changed:
            if buffer in self._used:
                self._used.remove(buffer)
                self._free.append(buffer)
                self._changed.notify_all()

    def is_full(self) -> bool:
        """Return whether a state as large as the largest one in use would have to wait."""
        with self._changed:
            return not self._has_room(max((buffer.nbytes for buffer in self._used), default=0))

    def close(self) -> None:
        """Give all free memory back."""
        with self._changed:
            self._drop_free()

    def _has_room(self, nbytes: int) -> bool:
        used = sum(buffer.nbytes for buffer in self._used)
        return len(self._used) < 2 or used + nbytes <= SMALL

    def _drop_free(self) -> None:
        for buffer in self._free:
            self._dropped(buffer)
            buffer.close()
        self._free = []


def _shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flor")
    with tempfile.TemporaryFile(prefix="flor-") as file:  # macOS: a file without a name
        return os.dup(file.fileno())
