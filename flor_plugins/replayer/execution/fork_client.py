"""Warm workers: fork servers of this process, one for each environment that runs were recorded in.

A worker that is forked has its imports behind it. What an interpreter or a library reads only
once, when it starts (PYTHONHASHSEED, OMP_NUM_THREADS, ...), must be right in the server: it is
started with the very environment of the run. Only on Linux; elsewhere, and wherever anything
speaks against it, a worker is a fresh process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from flor_plugins.replayer.execution.fork_server import PACKET, READY
from flor_plugins.replayer.sandbox.child_processes import IMPORT_PATH

MOST = 3  # servers at a time: each holds the memory of its imports
PATIENCE_S = 5.0  # for a server to end by itself


class ForkedWorker:
    """A worker that a server has forked, with as much of a `subprocess.Popen` as its crew needs."""

    def __init__(self, pid: int, handle: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._handle, self._status, self._lock = handle, status, threading.Lock()
        self._has_ended = threading.Event()
        threading.Thread(target=self._hear, name=f"flor-worker-{pid}", daemon=True).start()

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with self._lock, suppress(ProcessLookupError):
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, number)

    def _hear(self) -> None:
        """Until its end is told; the server's own end is the worker's, too."""
        with self._status as status:
            try:
                answer = status.recv(PACKET)
            except OSError:
                answer = b""
        if not answer:
            self.kill()  # the system has been told to, or will be in a moment: this only makes sure
            select.select([self._handle], [], [])
        with self._lock:
            os.close(self._handle)
            self._handle = -1
        self.returncode = int(answer) if answer else -signal.SIGKILL
        self._has_ended.set()


class ForkServer:
    """A fork server, and the line to it.

    It begins to import at once; the first `fork` waits until it is ready.
    obstacle: what it says against forking, if it does.
    """

    def __init__(self, framework: str, env: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._is_ready = False
        self.obstacle: str | None = None
        self._forked: list[ForkedWorker] = []
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "flor_plugins.replayer.execution.fork_server",
                    str(theirs.fileno()),
                    framework,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(env),
            )

    @property
    def pid(self) -> int:
        """The server's own process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Does the server run? If not, it has ended by itself, or was killed."""
        return self._process.poll() is None

    @property
    def is_busy(self) -> bool:
        """Does one of its workers run? Then it must not be closed."""
        return any(worker.poll() is None for worker in self._forked)

    def fork(self, task: Path, events_fd: int, log: int) -> ForkedWorker | None:
        """A worker for a task; None where the server can't fork, or is gone."""
        with self._lock:
            if not self._listens():
                return None
            status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            order = json.dumps({"task": str(task), "cwd": os.getcwd()}).encode()
            with theirs:
                try:
                    socket.send_fds(self._control, [order], [theirs.fileno(), events_fd, log])
                except OSError:
                    status.close()
                    return None
            forked = self._begun(status)
            if forked is not None:
                self._forked = [worker for worker in self._forked if worker.poll() is None] + [
                    forked
                ]
            return forked

    def close(self) -> None:
        """End it, and with it the workers that still run."""
        self._control.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listens(self) -> bool:
        """Has it said that it can fork? Waits for what it says."""
        if self.obstacle is None and not self._is_ready:
            try:
                answer = self._control.recv(PACKET)
            except OSError:
                answer = b""
            self._is_ready = answer == READY
            self.obstacle = answer.decode() if answer and answer != READY else None
        return self._is_ready

    @staticmethod
    def _begun(status: socket.socket) -> ForkedWorker | None:
        try:
            answer, handles, _, _ = socket.recv_fds(status, PACKET, 1)
        except OSError:
            answer, handles = b"", []
        if not answer:
            status.close()
            return None
        return ForkedWorker(int(answer), handles[0], status)


class ForkServers:
    """The servers of this process, the one that was used last at the end."""

    def __init__(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._servers: dict[tuple[str, frozenset[tuple[str, str]]], ForkServer] = {}

    def begin(self, framework: str, env: Mapping[str, str]) -> ForkServer | None:
        """Return the server for such workers, started if there is none.

        None where workers must be fresh processes.
        """
        if not _can_fork(env) or os.getpid() != self._owner:
            return None
        key = (framework, frozenset(env.items()))
        with self._lock:
            server = self._servers.pop(key, None)
            if server is not None and not server.is_alive and server.obstacle is None:
                server.close()
                server = None
            if server is None:
                self._make_room()
                server = ForkServer(framework, env)
            self._servers[key] = server
            return server

    def fork(
        self, framework: str, env: Mapping[str, str], task: Path, events_fd: int, log: int
    ) -> ForkedWorker | None:
        """A warm worker for a task; None where it must be a fresh process."""
        for _ in range(2):  # one that has waited for work for long may end while it is asked
            server = self.begin(framework, env)
            if server is None:
                return None
            forked = server.fork(task, events_fd, log)
            if forked is not None or server.is_alive:
                return forked
        return None

    def close(self) -> None:
        """End all servers of this process."""
        if os.getpid() != self._owner:  # a fork of the user's process has no part in them
            return
        with self._lock:
            while self._servers:
                self._servers.popitem()[1].close()

    def _make_room(self) -> None:
        idle = [key for key, server in self._servers.items() if not server.is_busy]
        for key in idle[: max(0, len(self._servers) - MOST + 1)]:
            self._servers.pop(key).close()


@cache
def servers() -> ForkServers:
    """Those that are kept as long as this process lives: several replays use the same."""
    made = ForkServers()
    atexit.register(made.close)
    return made


def _can_fork(env: Mapping[str, str]) -> bool:
    """Where pidfds are, and nothing but this package on PYTHONPATH.

    What else is there may shadow what is imported.
    """
    is_linux = sys.platform.startswith("linux") and hasattr(os, "pidfd_open")
    return is_linux and env.get("PYTHONPATH") == IMPORT_PATH
