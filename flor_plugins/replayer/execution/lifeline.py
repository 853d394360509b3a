"""A worker does not outlive the process that listens to it.

Another one would do the same and write beside it.
"""

from __future__ import annotations

import os
import select
import threading

STATUS = 70  # EX_SOFTWARE: nobody reads it


def end_with_listener(events_fd: int) -> None:
    """End this process, at once, when nobody holds the other end of that pipe any more."""
    threading.Thread(target=_watch, args=(events_fd,), name="flor-lifeline", daemon=True).start()


def _watch(events_fd: int) -> None:
    watched = select.poll()
    # these two are reported in any case, once no reader is left; of a file, never
    watched.register(events_fd, 0)
    while not any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll()):
        pass
    os._exit(STATUS)
