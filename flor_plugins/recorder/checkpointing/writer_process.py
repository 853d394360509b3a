"""The process that writes checkpoints beside a training.

Standard library and xxhash: it starts in no time.

It gets states as places in shared memory and writes them one after the other, at the lowest
priority. It outlives a training that is killed until all that it was given is written.

A message is 8 bytes with its length and JSON. File descriptors of new buffers come with the
message that names them.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import queue
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.recorder.checkpointing.maintenance import QUIET_S, Maintenance
from flor_plugins.recorder.checkpointing.writer_lock import leave
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.checkpoints import folder_of, known_tensors
from flor_plugins.store.checkpoints.manifest import STATE, read_manifest, records
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.checkpoints.writer import (
    CheckpointDraft,
    KnownTensors,
    StateTensor,
    write_folder,
)

WriterMessage = JsonObject
Inbox = queue.SimpleQueue[WriterMessage | None]
POLL_MS = 500  # how often the writer looks whether the training is still there
# System call numbers of ioprio_set (linux/asm-generic/unistd.h and x86's own).
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IDLE = 3 << 13  # linux/ioprio.h: class idle
LOWEST, USUAL = 19, 0  # niceness


class CheckpointWriter:
    """Writes the checkpoints of one run.

    is_needed: is a state waiting to be written? None: there is no way to know.
    """

    def __init__(self, run_path: Path, is_needed: Callable[[], bool] | None = None) -> None:
        self._run_path = run_path
        self._known = _known(run_path)
        self.maintenance = Maintenance(run_path, self._known, is_needed)

    def write(self, message: WriterMessage, memory: memoryview) -> WriterMessage:
        """Write one state.

        The answer holds the hash of each tensor and the bytes of each file, or what went wrong.
        """
        answer: WriterMessage = {"number": message["number"], "position": message["position"]}
        try:
            position = Position.parse(message["position"])
            folder = folder_of(self._run_path, position)
            state = self._state(folder, position, message, memory)
        except Exception as error:  # to die of it would cost the states that come after it, too
            known = isinstance(error, StoreError)
            answer["failed"] = str(error) if known else f"{type(error).__name__}: {error}"
            return answer
        files = {name: size for name, size in state["files"].items() if "/" not in name}
        files[STATE] = (folder / STATE).stat().st_size
        return {
            **answer,
            "hashes": {key: record.hash for key, record in records(state).items()},
            "files": files,
            "freed": self.maintenance.wrote(sum(files.values()), message.get("budget")),
        }

    def _state(
        self, folder: Path, position: Position, message: WriterMessage, memory: memoryview
    ) -> JsonObject:
        """Write a checkpoint and return its state.json."""
        if folder.exists():  # whoever wrote it was killed before it could say so
            return read_manifest(folder, position)
        pieces = [_piece(memory, *piece) for piece in message["pieces"]]
        draft = CheckpointDraft(message["tree"], pieces, tuple(message["lost"]), message["full"])
        state = write_folder(folder, position, draft, self._known)
        try:
            _check_references(folder, state)
        except StoreError:
            self._known.clear()  # not replaced: the maintenance has it, too
            self._known.update(_known(self._run_path))
            raise
        return state


def main(handle: int, run_path: str, training: int) -> None:
    """Serve the training at the other end of a socket until it hangs up.

    training: its process id.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C is not meant for us
    lower_priority()
    channel = socket.socket(fileno=handle)
    inbox: Inbox = queue.SimpleQueue()
    handles: list[int] = []
    # A thread of its own: the training must never wait until this process has read a message.
    threading.Thread(target=_receive, args=(channel, inbox, handles, training), daemon=True).start()
    writer = CheckpointWriter(Path(run_path), partial(_has_messages, inbox))
    buffers: dict[int, mmap.mmap] = {}
    while (message := _next(inbox, writer)) is not None:
        for number, nbytes in message.get("new_buffers", ()):
            descriptor = handles.pop(0)
            buffers[number] = mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ)
            os.close(descriptor)
        for number in message.get("old_buffers", ()):
            buffers.pop(number)
        if "position" in message:
            answer = writer.write(message, memoryview(buffers[message["buffer"]]))
            with suppress(OSError):  # the training is gone; what it left is written all the same
                channel.sendall(packed(answer))
    leave(Path(run_path))


def _receive(channel: socket.socket, inbox: Inbox, handles: list[int], training: int) -> None:
    with suppress(OSError):
        for message in messages(channel, handles, partial(_wait_for_bytes, channel, training)):
            inbox.put(message)
    set_cpu_share(os.getpid(), USUAL)  # the training is over, one way or another
    inbox.put(None)


def _has_messages(inbox: Inbox) -> bool:
    return not inbox.empty()


def _next(inbox: Inbox, writer: CheckpointWriter) -> WriterMessage | None:
    """Return the next message; compress older checkpoints while there is none."""
    while True:
        try:
            return inbox.get(timeout=QUIET_S)
        except queue.Empty:
            writer.maintenance.compress()


def packed(message: WriterMessage) -> bytes:
    """Return a message as it goes over the socket.

    Raises ValueError for a NaN, which is no JSON.
    """
    text = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text


def messages(
    channel: socket.socket, handles: list[int], wait: Callable[[], bool] | None = None
) -> Iterator[WriterMessage]:
    """Yield what comes over a socket until the other end hangs up.

    Descriptors that come with it go to `handles`.

    wait: called before each read; False ends the messages.
    """
    pending = bytearray()
    while wait is None or wait():
        data, received, _, _ = socket.recv_fds(channel, 1 << 16, 4)
        handles += received
        if not data:
            return
        pending += data
        while len(pending) >= 8:
            end = 8 + int.from_bytes(pending[:8], "little")
            if len(pending) < end:
                break
            yield json.loads(pending[8:end])
            del pending[:end]


def _wait_for_bytes(channel: socket.socket, training: int) -> bool:
    """Wait until there is something to read; return False when nothing will be.

    Then the training is gone and all that it sent was read.

    Processes that it forked may live on and keep the other end of the socket open.
    """
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    while not waiting.poll(POLL_MS):
        # looked at after nothing was there: what a training sends comes before its end
        if os.getppid() != training and not waiting.poll(0):
            return False
    return True


def lower_priority() -> None:
    """Let the training come first, for the processors and for the disk.

    Called by the writer, in a session of its own.
    """
    with suppress(OSError):
        os.nice(LOWEST)
    set_cpu_share(os.getpid(), LOWEST)
    number = IOPRIO_SET.get(os.uname().machine)
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, IDLE)


def set_cpu_share(pid: int, niceness: int) -> None:
    """Give the session of a process that share of the processors, if the system can.

    Where Linux has autogroups (sched(7)) it divides the processors among sessions before it
    looks at anybody's niceness: a process that is alone in its session takes as much as a whole
    training. That share may be raised again, which a niceness may not. Linux refuses more than
    ten changes a second.
    """
    # OSError: no autogroups, no Linux, or too soon.
    with suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as file:
        file.write(str(niceness))


def _known(run_path: Path) -> KnownTensors:
    """Return the tensors on the disk.

    A resumed run has some, and so has one whose writer was killed.
    """
    try:
        return known_tensors(run_path)
    except Exception:  # damaged, or just deleted: then all is written anew, which costs only space
        return {}


def _check_references(folder: Path, state: JsonObject) -> None:
    """Check that what a new checkpoint refers to was not given up while it was written.

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


def _piece(
    memory: memoryview,
    key: str,
    dtype: str,
    shape: list[int],
    offset: int | None,
    known_hash: str | None,
) -> StateTensor:
    piece = StateTensor(key, dtype, tuple(shape), None, known_hash)
    if offset is None:
        return piece
    return replace(piece, memory=memory[offset : offset + piece.nbytes])
