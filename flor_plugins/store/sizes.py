"""How much there is: bytes as people write them ("50GB", "1.5 TiB"), and processors."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction

_SIZE = re.compile(
    r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})\s*(?:([kmgtpe])(i?))?b?", re.ASCII | re.IGNORECASE
)
_POWERS = "kmgtpe"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def parse_size(text: str | int) -> int:
    """How many bytes a size says: 50GB, "500 MB", "1.5TiB", "2g", a number of bytes.

    kB, MB, GB, TB, PB and EB count in thousands, KiB, MiB, GiB ... in 1024; upper and lower
    case are the same, and the B may be left out. Part of a byte is not counted. Raises
    ValueError for anything else, and below 0.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise ValueError(
            f"not a size: {text!r}; write it like 50GB, 500 MB or 1.5TiB, or as a number of bytes"
        )
    power = _POWERS.index(found[2].lower()) + 1 if found[2] else 0
    # A Fraction: 1.1 as a float is not what was written, and 8.2EB would be off by hundreds of
    # bytes.
    return math.floor(Fraction(found[1]) * (1024 if found[3] else 1000) ** power)


def format_size(nbytes: int) -> str:
    """Write bytes for people: 999 B, 1.25 kB, 12.5 GB, 125 GB.

    There are three digits at least from the first unit on.

    `parse_size` reads it back, up to the rounding.
    """
    size, unit = float(nbytes), 0
    # 999.5 would be rounded to 1000 of this unit.
    while abs(size) >= (1000 if unit == 0 else 999.5) and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    if unit == 0:
        return f"{nbytes} B"
    digits = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{digits}f} {_UNITS[unit]}"


def processors() -> int:
    """Return how many processors this process may use, where the system can say that."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
