"""Who writes checkpoints of a run: `writer.json` in its folder, as long as that process is at work.

A training that is killed leaves a writer that still has states to write; whoever resumes the run
waits for it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.store.files import write_json
from flor_plugins.store.runs import process_of
from flor_plugins.store.writers import FILE, living_writer

WAIT_S = 600.0


def announce(run_path: Path, pid: int) -> None:
    """Note that a process writes the checkpoints of this run."""
    write_json(run_path / FILE, asdict(process_of(pid)))


def leave(run_path: Path) -> None:
    """Note that it has written all it was given."""
    with suppress(OSError):
        (run_path / FILE).unlink()


def wait_for_writer(run_path: Path, timeout_s: float = WAIT_S) -> None:
    """Return when nobody on this host writes this run's checkpoints.

    Raises StoreError if that takes too long.
    """
    end = time.monotonic() + timeout_s
    while (writer := living_writer(run_path)) is not None:
        if time.monotonic() > end:
            raise StoreError(
                f"the checkpoints of {run_path.name} are still being written by process "
                f"{writer.pid}, {timeout_s:.0f} s after its training ended. Wait for it, or end "
                f"it: kill -9 {writer.pid}"
            )
        time.sleep(0.02)
