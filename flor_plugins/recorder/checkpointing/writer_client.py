"""Brings states to the process that writes them, and its answers back.

A writer that is killed is started again and gets what it had not answered for. Where no process
can be started, or none stays alive, a thread writes."""

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

from flor_plugins.recorder.checkpointing.priority import USUAL, share
from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.writer_lock import announce, leave
from flor_plugins.recorder.checkpointing.writer_process import (
    CheckpointWriter,
    WriterMessage,
    messages,
    packed,
)

# how often a writer that is waited for is given its share of the processors: it may not be up
# yet
HURRY_S = 0.2
RESTARTS = 3  # of a writer that dies; then a thread writes
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flor_plugins.recorder.checkpointing.writer_process import main; "
    "main(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
)


@dataclass(frozen=True, slots=True)
class WriteOrder:
    """A state to be written.

    job: all but the buffer. answered: called once, on another thread; must not raise.
    """

    job: WriterMessage
    buffer: SharedBuffer
    answered: Callable[[WriterMessage], None]


class WriterClient:
    """One writer for the run at `run_path`.

    in_process: False lets a thread write from the start.
    """

    def __init__(self, run_path: Path, *, in_process: bool = True) -> None:
        self._run_path = run_path
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._numbers = itertools.count()
        self._waiting: dict[int, WriteOrder] = {}  # by number, in order; sent and not answered
        self._restarts = 0 if in_process else RESTARTS
        self._writer: _WriterInProcess | _WriterInThread | None = None
        self._closed = False
        with self._lock:
            self._start()

    def send(self, letter: WriteOrder) -> None:
        """Have a state written. Raises ValueError if it holds what is no JSON."""
        number = next(self._numbers)
        letter = replace(letter, job={**letter.job, "number": number})
        text = packed(letter.job)  # before anything is promised
        with self._lock:
            if self._writer is None:  # it died, and nothing was waiting then
                self._start()
            self._waiting[number] = letter
            assert self._writer is not None
            self._writer.send(letter, text)

    def forget(self, buffer: SharedBuffer) -> None:
        """The writer need not keep this buffer any more."""
        with self._lock:
            if self._writer is not None:
                self._writer.forget(buffer)

    def flush(self) -> None:
        """Wait until all is answered."""
        with self._idle:
            while self._waiting:
                self._idle.wait()

    def close(self) -> None:
        """Wait until all is answered, and end the writer."""
        with self._idle:
            while self._waiting:
                if self._writer is not None:
                    self._writer.hurry()
                self._idle.wait(HURRY_S)
            self._closed, writer = True, self._writer
        if writer is not None:
            writer.close()

    def _start(self) -> None:
        """A new writer, with all that is not answered."""
        if self._restarts < RESTARTS:
            try:
                self._writer = _WriterInProcess(self._run_path, self._answered, self._died)
            except OSError:  # no processes, no memory: a thread will do
                self._restarts = RESTARTS
        if self._restarts >= RESTARTS:
            leave(self._run_path)  # it names a process that is no more
            self._writer = _WriterInThread(self._run_path, self._answered)
        assert self._writer is not None
        for letter in list(self._waiting.values()):
            self._writer.send(letter, packed(letter.job))

    def _died(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._restarts += 1
            self._writer = None
            if self._waiting:
                self._start()

    def _answered(self, answer: WriterMessage) -> None:
        with self._idle:
            letter = self._waiting.get(answer["number"])
        if letter is None:
            return
        try:
            letter.answered(answer)
        except Exception as error:
            # said as Python says it of a thread; those that come after it are answered all the same
            thread = threading.current_thread()
            threading.excepthook(
                threading.ExceptHookArgs((type(error), error, error.__traceback__, thread))
            )
        finally:
            with self._idle:
                self._waiting.pop(answer["number"], None)
                self._idle.notify_all()


class _WriterInProcess:
    """A writer in a process of its own. died: called when it is gone without having been closed."""

    def __init__(
        self, run_path: Path, answered: Callable[[WriterMessage], None], died: Callable[[], None]
    ) -> None:
        ours, theirs = socket.socketpair()
        # -I and -S: nothing of the user's environment runs there; what is imported is found as
        # it is here
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _START,
            json.dumps([*map(os.path.abspath, sys.path)]),
        ]
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), os.path.abspath(run_path), str(os.getpid())],
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
        with suppress(
            OSError
        ):  # of a store that can't be written to; what is sent will be answered so
            announce(run_path, self._process.pid)
        self._channel, self._answered, self._died = ours, answered, died
        self._outbox: queue.SimpleQueue[tuple[bytes, list[int]] | None] = queue.SimpleQueue()
        self._known: set[int] = set()
        both = (self._talk, self._listen)
        self._threads = [
            threading.Thread(target=one, daemon=True, name="flor-courier") for one in both
        ]
        for one in self._threads:
            one.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, letter: WriteOrder, text: bytes) -> None:
        number = letter.buffer.handle
        if number not in self._known:
            self._known.add(number)
            self._outbox.put((packed({"new_buffers": [[number, letter.buffer.nbytes]]}), [number]))
        self._outbox.put((text, []))

    def forget(self, buffer: SharedBuffer) -> None:
        if buffer.handle in self._known:
            self._known.discard(buffer.handle)
            self._outbox.put((packed({"old_buffers": [buffer.handle]}), []))

    def hurry(self) -> None:
        """The training has ended, and waits for it."""
        share(self.pid, USUAL)

    def close(self) -> None:
        self._outbox.put(None)
        for one in self._threads:
            one.join()

    def _talk(self) -> None:
        with suppress(OSError):  # it is gone; `_listen` sees to it
            while (item := self._outbox.get()) is not None:
                text, handles = item
                sent = socket.send_fds(self._channel, [text], handles) if handles else 0
                self._channel.sendall(text[sent:])
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        with suppress(OSError, ValueError):
            for message in messages(self._channel, []):
                self._answered(message)
        self._process.wait()
        self._outbox.put(None)
        self._channel.close()
        self._died()


class _WriterInThread:
    """A writer in a thread, for where there can be no process."""

    def __init__(self, run_path: Path, answered: Callable[[WriterMessage], None]) -> None:
        self._scribe, self._answered = CheckpointWriter(run_path), answered
        self._letters: queue.SimpleQueue[WriteOrder | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="flor-scribe")
        self._thread.start()

    def send(self, letter: WriteOrder, text: bytes) -> None:
        self._letters.put(letter)

    def forget(self, buffer: SharedBuffer) -> None:
        """Nothing is kept here."""

    def hurry(self) -> None:
        """A thread has no priority of its own."""

    def close(self) -> None:
        self._letters.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (letter := self._letters.get()) is not None:
            self._answered(self._scribe.write(letter.job, letter.buffer.array.data))
