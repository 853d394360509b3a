"""One thread that writes what the training hands it, in order.

It and the training take turns at the interpreter's lock, and each turn costs the training more
than what is written in it: so it sleeps a little after it was woken, and writes the rows of
many steps at once.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

BackgroundJob = Callable[[], object]
# Seconds between two wakings; as much of the last rows is lost when the process is killed.
PAUSE = 0.05


class BackgroundWriter:
    """Runs jobs in the background. A job that raises is reported, never re-raised."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._jobs: queue.SimpleQueue[BackgroundJob | None] = queue.SimpleQueue()
        self._failed = failed
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flor-writer", daemon=True)
        self._thread.start()
        # A daemon thread dies with the interpreter: what is queued must be written before.
        atexit.register(self.close)

    def put(self, job: BackgroundJob, *, soon: bool = False) -> None:
        """Queue a job. soon: it and all before it are done without a pause."""
        self._jobs.put(job)
        if soon:
            self._wake.set()

    def flush(self) -> None:
        """Wait until everything queued so far is done."""
        done = threading.Event()
        self.put(done.set, soon=True)
        if self._thread.is_alive():
            done.wait()

    def close(self) -> None:
        """Write everything and end the thread. Calling it again does nothing."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._jobs.put(None)
            self._wake.set()
            self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception as error:
                # Under `python -W error` a warning is raised: it must not end this thread.
                with suppress(Warning):
                    self._failed(error)

    def _next(self) -> BackgroundJob | None:
        with suppress(queue.Empty):
            return self._jobs.get_nowait()
        job = self._jobs.get()
        self._wake.wait(PAUSE)
        self._wake.clear()
        return job
