"""Who writes checkpoints of a run: `writer.json` in its folder, as long as that process is at work.

A training that is killed leaves a writer that still has states to write; whoever goes on with the run waits for it.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import Process
from flor_plugins.store.files import read_json, write_json
from flor_plugins.store.runs import is_gone, process_of

FILE = "writer.json"
WAIT_S = 600.0


def announce(run_path: Path, pid: int) -> None:
    """That process writes the checkpoints of this run."""
    write_json(run_path / FILE, asdict(process_of(pid)))


def leave(run_path: Path) -> None:
    """... and has written all it was given."""
    with suppress(OSError):
        (run_path / FILE).unlink()


def wait_for_writer(run_path: Path, timeout_s: float = WAIT_S) -> None:
    """Return when nobody on this host writes this run's checkpoints. Raises StoreError if that takes too long."""
    end = time.monotonic() + timeout_s
    while (writer := _writer(run_path)) is not None and writer.host == socket.gethostname() and not is_gone(writer):
        if time.monotonic() > end:
            raise StoreError(
                f"the checkpoints of {run_path.name} are still being written by process {writer.pid}, "
                f"{timeout_s:.0f} s after its training ended. Wait for it, or end it: kill -9 {writer.pid}"
            )
        time.sleep(0.02)


def _writer(run_path: Path) -> Process | None:
    with suppress(StoreError, TypeError):  # it may go away at any moment
        return Process(**read_json(run_path / FILE))
    return None
