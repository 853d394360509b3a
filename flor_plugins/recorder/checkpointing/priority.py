"""How much of the machine the writer takes: what nobody else wants, and its share once the
training waits for it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
}  # system call numbers (linux/asm-generic/unistd.h and x86's own)
IDLE = 3 << 13  # linux/ioprio.h: class idle
LOWEST, USUAL = 19, 0  # niceness


def step_back() -> None:
    """The training comes first: for the processors and for the disk.

    Called by the writer, in a session of its own.
    """
    with suppress(OSError):
        os.nice(LOWEST)
    share(os.getpid(), LOWEST)
    number = IOPRIO_SET.get(os.uname().machine)
    if sys.platform == "linux" and number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, IDLE)


def share(pid: int, niceness: int) -> None:
    """Give the session of a process that share of the processors, if the system can.

    Where Linux has autogroups (sched(7)) it divides the processors among sessions before it
    looks at anybody's niceness: a process that is alone in its session takes as much as a whole
    training. That share may be raised again, which a niceness may not. Linux refuses more than
    ten changes a second."""
    with (
        suppress(OSError),
        open(f"/proc/{pid}/autogroup", "w") as file,
    ):  # no autogroups, no Linux, or too soon
        file.write(str(niceness))
