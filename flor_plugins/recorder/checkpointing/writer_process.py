"""The process that writes checkpoints beside a training. Standard library and xxhash: it starts
in no time.

It gets states as places in shared memory and writes them one after the other, at the lowest
priority. It outlives a training that is killed until all that it was given is written.

A message is 8 bytes with its length and JSON. File descriptors of new buffers come with the
message that names them."""

from __future__ import annotations

import json
import mmap
import os
import queue
import select
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.recorder.checkpointing.maintenance import QUIET_S, Maintenance
from flor_plugins.recorder.checkpointing.priority import USUAL, share, step_back
from flor_plugins.recorder.checkpointing.writer_lock import leave
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import folder_of, known_tensors
from flor_plugins.store.checkpoints.manifest import STATE, read_state, records
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.checkpoints.writer import (
    CheckpointDraft,
    KnownTensors,
    StateTensor,
    write_folder,
)

WriterMessage = dict[str, Any]
LOOK_MS = 500  # how often the writer looks whether the training is still there


class CheckpointWriter:
    """Writes the checkpoints of one run."""

    def __init__(self, run_path: Path, is_needed: Callable[[], bool] = lambda: True) -> None:
        self._run_path = run_path
        self._known = _known(run_path)
        self.upkeep = Maintenance(run_path, self._known, is_needed)

    def write(self, job: WriterMessage, memory: memoryview) -> WriterMessage:
        """Write one state; the answer says the hash of each tensor and the bytes of each
        file, or what went wrong.
        """
        answer: WriterMessage = {"number": job["number"], "position": job["position"]}
        try:
            state = self._written(job, memory)
        except (
            Exception
        ) as error:  # whatever it is: to die of it would cost the states that come after it, too
            why = (
                str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
            )
            return {**answer, "failed": why}
        return {
            **answer,
            "hashes": {key: one.hash for key, one in records(state).items()},
            "files": (written := self._files(job["position"], state)),
            "freed": self.upkeep.wrote(sum(written.values()), job.get("budget")),
        }

    def _files(self, position: str, state: WriterMessage) -> dict[str, int]:
        """The files that were written for it, in bytes."""
        own = {name: size for name, size in state["files"].items() if "/" not in name}
        return {
            **own,
            STATE: (folder_of(self._run_path, Position.parse(position)) / STATE).stat().st_size,
        }

    def _written(self, job: WriterMessage, memory: memoryview) -> WriterMessage:
        """Its state.json."""
        position = Position.parse(job["position"])
        folder = folder_of(self._run_path, position)
        if folder.exists():  # whoever wrote it was killed before it could say so
            return read_state(folder, position)
        pieces = [_piece(one, memory) for one in job["pieces"]]
        draft = CheckpointDraft(job["tree"], pieces, tuple(job["lost"]), job["full"])
        state = write_folder(folder, position, draft, self._known)
        try:
            _still_stands(folder, state)
        except StoreError:
            self._known.clear()  # not replaced: the upkeep has it, too
            self._known.update(_known(self._run_path))
            raise
        return state


def main(handle: int, run_path: str, training: int) -> None:
    """Serve the training at the other end of a socket until it hangs up.

    training: its process id.
    """
    for one in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # a terminal's Ctrl-C is not meant for us
        signal.signal(one, signal.SIG_IGN)
    step_back()
    channel = socket.socket(fileno=handle)
    inbox: queue.SimpleQueue[WriterMessage | None] = queue.SimpleQueue()
    handles: list[int] = []

    def listen() -> None:
        # A queue of its own: the training must never wait until this process has read what it says.
        with suppress(OSError):
            for message in messages(channel, handles, lambda: _hears(channel, training)):
                inbox.put(message)
        share(os.getpid(), USUAL)  # the training is over, one way or another
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    scribe = CheckpointWriter(Path(run_path), lambda: not inbox.empty())
    buffers: dict[int, mmap.mmap] = {}
    while (message := _next(inbox, scribe)) is not None:
        for number, nbytes in message.get("new_buffers", ()):
            given = handles.pop(0)
            buffers[number] = mmap.mmap(given, nbytes, prot=mmap.PROT_READ)
            os.close(given)
        for number in message.get("old_buffers", ()):
            buffers.pop(number)
        if "position" in message:
            answer = scribe.write(message, memoryview(buffers[message["buffer"]]))
            with suppress(OSError):  # the training is gone; what it left is written all the same
                channel.sendall(packed(answer))
    leave(Path(run_path))


def _next(
    inbox: queue.SimpleQueue[WriterMessage | None], scribe: CheckpointWriter
) -> WriterMessage | None:
    """What is to be done next; as long as that is nothing, older checkpoints are seen to."""
    while True:
        try:
            return inbox.get(timeout=QUIET_S)
        except queue.Empty:
            scribe.upkeep.compress()


def packed(message: WriterMessage) -> bytes:
    """A message as it goes over the socket. Raises ValueError for a NaN, which is no JSON."""
    text = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text


def messages(
    channel: socket.socket, handles: list[int], goes_on: Callable[[], bool] = lambda: True
) -> Iterator[WriterMessage]:
    """What comes over a socket until the other end hangs up; descriptors that come with it go
    to `handles`.

    goes_on: asked before each read, and False ends it.
    """
    pending = bytearray()
    while True:
        while len(pending) >= 8 and len(pending) - 8 >= (
            size := int.from_bytes(pending[:8], "little")
        ):
            yield json.loads(pending[8 : 8 + size])
            del pending[: 8 + size]
        if not goes_on():
            return
        data, given, _, _ = socket.recv_fds(channel, 1 << 16, 4)
        handles += given
        if not data:
            return
        pending += data


def _hears(channel: socket.socket, training: int) -> bool:
    """Wait until there is something to read; False once the training is gone, and all that it
    said was read.

    Processes that it forked may live on and keep the other end of the socket open.
    """
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    while not waiting.poll(LOOK_MS):
        # looked at after nothing was there: what a training says comes before its end
        if os.getppid() != training and not waiting.poll(0):
            return False
    return True


def _known(run_path: Path) -> KnownTensors:
    """What is on the disk: of a resumed run there is something, and of one whose writer was
    killed.
    """
    try:
        return known_tensors(run_path)
    except (
        Exception
    ):  # damaged, or deleted this moment; then all is written anew, which costs space and no more
        return {}


def _still_stands(folder: Path, state: WriterMessage) -> None:
    """See that what a new checkpoint refers to was not given up while it was written.

    Raises StoreError.
    """
    if not any("/" in file for file in state["files"]):
        return
    holders = ManifestCache(folder, state)
    try:
        for key in state["tensors"]:
            holders.chain(key)
    except DamagedCheckpoint as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(
            f"the checkpoint {folder} is not kept, because what it needs is gone: {error}"
        ) from error


def _piece(one: list[Any], memory: memoryview) -> StateTensor:
    key, dtype, shape, offset, hash = one
    piece = StateTensor(key, dtype, tuple(shape), None, hash)
    if offset is None:
        return piece
    return StateTensor(key, dtype, tuple(shape), memory[offset : offset + piece.nbytes], hash)
