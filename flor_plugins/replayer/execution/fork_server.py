"""A process that has imported what every worker imports first, and forks a worker per task.

    python -P -m flor_plugins.replayer.execution.fork_server CONTROL_FD FRAMEWORK

It imports nothing of a user's, starts no thread and no device: both would be lost or broken in
a fork (an operation of torch that finds its threads gone waits for ever). Orders come as one
packet each: JSON, with three descriptors (`warm.Server.fork` sends them). It ends when the
other side does, or when nobody has asked for a while.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from flor_plugins import adapter
from flor_plugins.replayer.sandbox.child_processes import IMPORT_PATH

IDLE_S = 600.0  # without a worker, before it ends by itself
LOOK_S = 2.0  # between two looks whether the process that started it is still there
PACKET = 65_536
PR_SET_PDEATHSIG = 1  # linux/prctl.h
READY = b"ready"
# of the jemalloc in pyarrow, which has a thread even where it is not used
ARROW_MEMORY = "JE_ARROW_MALLOC_CONF"


@dataclass(slots=True)
class ForkOrder:
    """What a forked worker is to do. log: where its output goes; events_fd: where its events go."""

    task: str
    cwd: str
    log: int
    events_fd: int

    def do(self) -> int:
        """In the worker: as in a fresh `python -m flor_plugins.replayer.execution.worker`.

        Returns its exit status.
        """
        os.chdir(self.cwd)
        for standard in (1, 2):
            os.dup2(self.log, standard)
        os.close(self.log)
        # A fresh process draws its first seeds from the system; python's are drawn again in a
        # fork, numpy's are not.
        import_module("numpy").random.seed()
        return import_module("flor_plugins.replayer.execution.worker").main(
            self.task, self.events_fd
        )


def main(control_fd: int, framework: str) -> NoReturn:
    """Serve until the other side ends.

    Leaves the process: what was imported is not taken apart first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides, and hears of it, too
    with socket.socket(fileno=control_fd) as control:
        try:
            _preload(framework)
        except Exception as error:
            control.send(f"{type(error).__name__}: {error}".encode()[:PACKET])
            raise
        _keep_at_exit()
        gc.collect()
        gc.freeze()  # so that a collection in a worker doesn't write to, and copy, every page
        reason = _unfit()
        control.send(reason.encode() if reason else READY)
        order = None if reason else _ForkServerLoop(control).serve()
    status = 0
    if order is not None:
        status = order.do()
        # As an interpreter does at its end: threads, exit hooks, output.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _preload(framework: str) -> None:
    """What a worker imports before its script: with no folder of a user's on the import path."""
    sys.dont_write_bytecode = True
    with _own_path():
        _preload_journals()
        import_module("flor_plugins.replayer.execution.worker")
        adapter.replay_driver_of(framework)  # and with it the session of a worker
        adapter.adapter_of(framework)
        import_module("flor_plugins.replayer.sandbox.trackers").silence_hub()


def _preload_journals() -> None:
    """What reading and sealing a journal imports.

    Before all else: a framework may import it with its thread.
    """
    if find_spec("numexpr") is not None:
        return  # pandas would import it, and it starts threads
    before = os.environ.get(ARROW_MEMORY)
    os.environ[ARROW_MEMORY] = "background_thread:false"
    try:
        for name in ("pyarrow.parquet", "pyarrow.compute", "pandas"):
            import_module(name)
    finally:
        if before is None:
            del os.environ[ARROW_MEMORY]
        else:
            os.environ[ARROW_MEMORY] = before


def _keep_at_exit() -> None:
    """Let a worker end without taking apart what was imported here.

    torch's libraries of operations would be taken apart one by one.
    """
    for made in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        made.atexit = False


@contextmanager
def _own_path() -> Iterator[None]:
    """Import from the interpreter's folders and that of this package only.

    Packages installed in place are not imported.
    """
    path, finders = list(sys.path), list(sys.meta_path)
    sys.path[:] = [
        entry
        for entry in path
        if _is_of_interpreter(entry) or os.path.realpath(entry) == IMPORT_PATH
    ]
    sys.meta_path[:] = [
        finder
        for finder in finders
        if not getattr(finder, "__module__", "").startswith("__editable__")
    ]
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders


def _is_of_interpreter(entry: str) -> bool:
    """The standard library, or a folder for packages; others were added by hand."""
    library = os.path.realpath(os.path.dirname(os.__file__))
    if os.path.basename(entry) in ("site-packages", "dist-packages") or entry.endswith(".zip"):
        return True
    return os.path.realpath(entry).startswith(library)


def _unfit() -> str | None:
    """Why this process must not fork workers, if so."""
    tried = os.fork()
    if tried == 0:
        os._exit(0)
    os.waitpid(tried, 0)
    # Threads of a library that minds forks (OpenBLAS) are gone after one.
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"{threads} threads run after the imports"
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("/dev/nvidia-uvm"):
                return "an import has started CUDA"
    return None


class _ForkServerLoop:
    """workers: pid to the socket on which its end is told."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._workers: dict[int, socket.socket] = {}
        self._parent, self._idle = os.getppid(), 0.0
        self._wake, self._woken = os.pipe()
        for descriptor in (self._wake, self._woken):
            os.set_blocking(descriptor, False)

    def serve(self) -> ForkOrder | None:
        """None when nobody needs it any more; in a forked worker: its order."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # select hears of it through the pipe
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        while self._is_needed():
            ready, _, _ = select.select([self._control, self._wake], [], [], LOOK_S)
            self._idle = 0.0 if ready or self._workers else self._idle + LOOK_S
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, PACKET)
            self._reap()
            if self._control in ready:
                packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET, 3)
                if not packet:
                    break
                order = self._fork(json.loads(packet), *descriptors)
                if order is not None:
                    return order
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        return None

    def _is_needed(self) -> bool:
        return os.getppid() == self._parent and self._idle < IDLE_S

    def _fork(
        self, order: dict[str, str], status_fd: int, events_fd: int, log: int
    ) -> ForkOrder | None:
        status, server = socket.socket(fileno=status_fd), os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(status, server)
            return ForkOrder(**order, log=log, events_fd=events_fd)
        for descriptor in (events_fd, log):
            os.close(descriptor)
        self._workers[pid] = status
        handle = os.pidfd_open(pid)
        with suppress(OSError):  # nobody listens any more: the worker is ended with this process
            socket.send_fds(status, [str(pid).encode()], [handle])
        os.close(handle)
        return None

    def _become_worker(self, status: socket.socket, server: int) -> None:
        """Close what is the server's, as if this process had been started afresh.

        It ends with the server.
        """
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for handle in (status, self._control, *self._workers.values()):
            handle.close()
        for descriptor in (self._wake, self._woken):
            os.close(descriptor)

    def _reap(self) -> None:
        for pid in list(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with self._workers.pop(pid) as listener, suppress(OSError):
                    listener.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
