"""Which process writes the checkpoints of a run.

`writer.json` in its folder names it as long as it is at work.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import RecordingProcess
from flor_plugins.store.files import read_json
from flor_plugins.store.runs import is_gone

FILE = "writer.json"


def living_writer(run_path: Path) -> RecordingProcess | None:
    """The one of this host that is at work, be its training killed; None without one."""
    with suppress(StoreError, TypeError):  # it may go away at any moment
        writer = RecordingProcess(**read_json(run_path / FILE))
        if writer.host == socket.gethostname() and not is_gone(writer):
            return writer
    return None
