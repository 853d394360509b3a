"""What this process may use of the machine."""

from __future__ import annotations

import os


def processors() -> int:
    """How many processors: those that it was confined to, where the system can say that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
