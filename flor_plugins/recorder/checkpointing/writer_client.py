"""Brings states to the process that writes them, and its answers back.

A writer that is killed is started again and gets what it had not answered for. Where no process
can be started, or none stays alive, a thread writes.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.writer_lock import announce, leave
from flor_plugins.recorder.checkpointing.writer_process import (
    USUAL,
    CheckpointWriter,
    WriterMessage,
    messages,
    packed,
    set_cpu_share,
)

# How often a writer that is waited for is given its share of the processors: it may not be up yet.
PRIORITY_S = 0.2
RESTARTS = 3  # of a writer that dies; then a thread writes
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flor_plugins.recorder.checkpointing.writer_process import main; "
    "main(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
)

AnswerHandler = Callable[[WriterMessage], None]


@dataclass(frozen=True, slots=True)
class WriteOrder:
    """A state to be written.

    message: all but the buffer. answered: called once, on another thread; must not raise.
    """

    message: WriterMessage
    buffer: SharedBuffer
    answered: AnswerHandler


class WriterClient:
    """The training's side of the one writer of the run at `run_path`.

    in_process: False lets a thread write from the start.
    """

    def __init__(self, run_path: Path, *, in_process: bool = True) -> None:
        self._run_path = run_path
        self._lock = threading.RLock()
        self._answer = threading.Condition(self._lock)
        self._numbers = itertools.count()
        self._unanswered: dict[int, WriteOrder] = {}  # by number, in order
        self._restarts = 0 if in_process else RESTARTS
        self._closed = False
        self._writer: _WriterInProcess | _WriterInThread | None = None
        with self._lock:
            self._start()

    def send(self, order: WriteOrder) -> None:
        """Have a state written. Raises ValueError if it holds what is no JSON."""
        number = next(self._numbers)
        order = replace(order, message={**order.message, "number": number})
        text = packed(order.message)  # raises before anything is promised
        with self._lock:
            # Without a writer, the last one died when nothing was unanswered.
            writer = self._writer or self._start()
            self._unanswered[number] = order
            writer.send(order, text)

    def forget(self, buffer: SharedBuffer) -> None:
        """Tell the writer that it need not keep this buffer any more."""
        with self._lock:
            if self._writer is not None:
                self._writer.forget(buffer)

    def flush(self) -> None:
        """Wait until all is answered."""
        with self._answer:
            while self._unanswered:
                self._answer.wait()

    def close(self) -> None:
        """Wait until all is answered, and end the writer."""
        with self._answer:
            while self._unanswered:
                if self._writer is not None:
                    self._writer.prioritize()
                self._answer.wait(PRIORITY_S)
            self._closed, writer = True, self._writer
        if writer is not None:
            writer.close()

    def _start(self) -> _WriterInProcess | _WriterInThread:
        """Start a new writer, with all that is not answered."""
        writer = self._process() if self._restarts < RESTARTS else None
        if writer is None:
            leave(self._run_path)  # it names a process that is no more
            writer = _WriterInThread(self._run_path, self._answered)
        self._writer = writer
        for order in list(self._unanswered.values()):
            writer.send(order, packed(order.message))
        return writer

    def _process(self) -> _WriterInProcess | None:
        try:
            return _WriterInProcess(self._run_path, self._answered, self._died)
        except OSError:  # no processes, no memory: a thread will do
            self._restarts = RESTARTS
            return None

    def _died(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._restarts += 1
            self._writer = None
            if self._unanswered:
                self._start()

    def _answered(self, answer: WriterMessage) -> None:
        number = answer["number"]
        with self._lock:
            order = self._unanswered.get(number)
        if order is None:
            return
        try:
            order.answered(answer)
        except Exception as error:
            # Reported as Python does for a thread; later answers are handled all the same.
            failure = (type(error), error, error.__traceback__, threading.current_thread())
            threading.excepthook(threading.ExceptHookArgs(failure))
        finally:
            with self._answer:
                self._unanswered.pop(number, None)
                self._answer.notify_all()


class _WriterInProcess:
    """A writer in a process of its own. died: called when it is gone without having been closed."""

    def __init__(self, run_path: Path, answered: AnswerHandler, died: Callable[[], None]) -> None:
        self._answered, self._died = answered, died
        self._process, self._channel = _spawn(run_path)
        # A store that can't be written to: what is sent will be answered so.
        with suppress(OSError):
            announce(run_path, self._process.pid)
        self._outbox: queue.SimpleQueue[tuple[bytes, list[int]] | None] = queue.SimpleQueue()
        self._known: set[int] = set()  # handles of the buffers that it has
        self._threads = [
            threading.Thread(target=target, daemon=True, name="flor-writer-client")
            for target in (self._send_all, self._receive_all)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, order: WriteOrder, text: bytes) -> None:
        buffer = order.buffer
        if buffer.handle not in self._known:
            self._known.add(buffer.handle)
            new = {"new_buffers": [[buffer.handle, buffer.nbytes]]}
            self._outbox.put((packed(new), [buffer.handle]))
        self._outbox.put((text, []))

    def forget(self, buffer: SharedBuffer) -> None:
        if buffer.handle in self._known:
            self._known.discard(buffer.handle)
            self._outbox.put((packed({"old_buffers": [buffer.handle]}), []))

    def prioritize(self) -> None:
        """Give it its usual share of the processors: the training has ended, and waits for it."""
        set_cpu_share(self._process.pid, USUAL)

    def close(self) -> None:
        self._outbox.put(None)
        for thread in self._threads:
            thread.join()

    def _send_all(self) -> None:
        with suppress(OSError):  # it is gone; `_receive_all` sees to it
            while (item := self._outbox.get()) is not None:
                text, handles = item
                sent = socket.send_fds(self._channel, [text], handles) if handles else 0
                self._channel.sendall(text[sent:])
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def _receive_all(self) -> None:
        with suppress(OSError, ValueError):
            for message in messages(self._channel, []):
                self._answered(message)
        self._process.wait()
        self._outbox.put(None)
        self._channel.close()
        self._died()


class _WriterInThread:
    """A writer in a thread, for where there can be no process."""

    def __init__(self, run_path: Path, answered: AnswerHandler) -> None:
        self._writer, self._answered = CheckpointWriter(run_path), answered
        self._orders: queue.SimpleQueue[WriteOrder | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, daemon=True, name="flor-checkpoint-writer"
        )
        self._thread.start()

    def send(self, order: WriteOrder, text: bytes) -> None:
        self._orders.put(order)

    def forget(self, buffer: SharedBuffer) -> None:
        """Do nothing: a thread keeps no buffers."""

    def prioritize(self) -> None:
        """Do nothing: a thread has no priority of its own."""

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            self._answered(self._writer.write(order.message, order.buffer.array.data))


def _spawn(run_path: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process of a writer; return it and the socket to it."""
    ours, theirs = socket.socketpair()
    try:
        # -I and -S: nothing of the user's environment runs there; what is imported is found as
        # it is here
        words = [sys.executable, "-I", "-S", "-c", _START]
        words += [json.dumps([*map(os.path.abspath, sys.path)]), str(theirs.fileno())]
        process = subprocess.Popen(
            [*words, os.path.abspath(run_path), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours
