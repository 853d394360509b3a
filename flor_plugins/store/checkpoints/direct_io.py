"""Files that are written past the page cache of the system.

Nobody reads a checkpoint while it is written, and to bring a gigabyte through the page cache
takes two seconds of a processor: pages to be found, cleared, filled and flushed, much of it by
threads of the kernel that no priority holds back. Written directly (open(2), O_DIRECT) it takes
a tenth of one.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

ROOM = 4 << 20  # bytes of one write
BLOCK = 4096  # address, length and place of a direct write have to be multiples of it
WORTH = 4 * ROOM  # bytes; a small file is better off in the cache


class DirectFile:
    """A new file of about `nbytes`, written from its beginning to its end.

    A context manager: it closes the file.

    Where the file system has no direct writes, or the file is small, it is written as any other.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self._direct = getattr(os, "O_DIRECT", 0) if nbytes >= WORTH else 0
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            self._handle = os.open(path, flags | self._direct, 0o666)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)  # before Linux 6.6, tmpfs makes the file and refuses
            self._direct = 0
            self._handle = os.open(path, flags, 0o666)
        self._room = memoryview(mmap.mmap(-1, ROOM)) if self._direct else memoryview(b"")
        self._filled = self._size = 0

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None and self._direct:
                self._flush()
                os.ftruncate(self._handle, self._size)
        finally:
            os.close(self._handle)

    def write(self, memory: memoryview) -> None:
        """Append some bytes."""
        self._size += len(memory)
        if not self._direct:
            self._write_all(memory)
            return
        while memory:
            count = min(ROOM - self._filled, len(memory))
            self._room[self._filled : self._filled + count] = memory[:count]
            self._filled += count
            memory = memory[count:]
            if self._filled == ROOM:
                self._flush()

    def _flush(self) -> None:
        """Write what is in the buffer, up to a whole block.

        What is too much of the last block is cut off in the end.
        """
        self._write_all(self._room[: -(-self._filled // BLOCK) * BLOCK])
        self._filled = 0

    def _write_all(self, memory: memoryview) -> None:
        while memory:
            try:
                memory = memory[os.write(self._handle, memory) :]
            except OSError as error:
                flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
                if error.errno != errno.EINVAL or not flags & getattr(os, "O_DIRECT", 0):
                    raise
                # some file systems refuse only here, or want larger blocks
                fcntl.fcntl(self._handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)
