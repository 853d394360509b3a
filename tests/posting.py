"""States as bytes in shared memory, sent to a writer without a training."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flor_plugins.errors import StoreError
from flor_plugins.recorder.checkpointing import writer_lock
from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.writer_client import WriteOrder, WriterClient
from flor_plugins.recorder.checkpointing.writer_process import WriterMessage
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.files import read_json

SIZE = 1 << 18  # elements


class Post:
    """States sent to a writer, and what was answered."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.client = WriterClient(folder, **options)
        self.buffers: list[SharedBuffer] = []
        self.answers: list[WriterMessage] = []

    def send(self, step: int, size: int = SIZE) -> None:
        buffer = SharedBuffer(4 * size)
        self.buffers.append(buffer)
        np.copyto(buffer.array[: 4 * size].view(np.float32), np.float32(step))
        self.client.send(WriteOrder(job(step, buffer.handle, size), buffer, self.answers.append))

    def close(self) -> None:
        self.client.close()
        for one in self.buffers:
            one.close()
        self.buffers.clear()

    def arrived(self) -> list[int]:
        """The steps whose states are whole on the disk."""
        found = list_checkpoints(self.folder)
        for one in found:
            weight = load_checkpoint(self.folder, one.position)["model"]["w"]
            assert torch.equal(weight, torch.full_like(weight, one.position.step))
        return [one.position.step for one in found]


def job(step: int, handle: int, size: int = SIZE) -> WriterMessage:
    node = {"$": "tensor", "key": "model/w", "dtype": "float32", "shape": [size]}
    pieces = [["model/w", "float32", [size], 0, None]]
    tree = {"model": {"w": node}}
    return {
        "position": f"epoch=0,step={step}",
        "buffer": handle,
        "tree": tree,
        "lost": [],
        "full": True,
        "pieces": pieces,
    }


def writer_of(folder: Path) -> int | None:
    """The id of the process that writes a run's checkpoints."""
    with suppress(StoreError):
        return read_json(folder / writer_lock.FILE)["pid"]
    return None


def open_files() -> set[tuple[str, str]]:
    """The handles of this process, each with what it is of."""
    gc.collect()  # what earlier tests left is closed before it is looked at
    found = set()
    for handle in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add((handle, os.readlink(f"/proc/self/fd/{handle}")))
    return found


def wait_until(claim: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def kill_writer(folder: Path) -> None:
    pid = writer_of(folder)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() or writer_of(folder) != pid,
        "the writer was not buried",
    )
