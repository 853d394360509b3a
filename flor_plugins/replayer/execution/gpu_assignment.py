"""Which of this machine's devices a worker sees: workers at a time are spread over them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each device; torch is not imported here


def visible(environment: Mapping[str, str] = os.environ, driver: Path = DRIVER) -> tuple[str, ...]:
    """Return the names of this process' devices, as CUDA_VISIBLE_DEVICES has them."""
    named = environment.get(VARIABLE)
    if named is None:
        return tuple(str(number) for number, _ in enumerate(driver.glob("*")))
    devices = [name.strip() for name in named.split(",")]
    end = next((i for i, name in enumerate(devices) if name in ("", "-1")), len(devices))
    return tuple(devices[:end])  # as CUDA reads it: what stands behind a wrong one does not count


class GpuAssignment:
    """Each task takes the devices that fewest others have.

    None ever waits, also where workers outnumber devices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, count: int) -> Iterator[dict[str, str]]:
        """Give the variable for `count` processes that work together.

        It is empty where there is nothing to choose among.
        """
        if len(self._names) < 2:
            yield {}
            return
        with self._lock:
            mine = sorted(
                self._names, key=lambda name: (self._taken[name], self._names.index(name))
            )[:count]
            self._taken.update(mine)
        try:
            yield {VARIABLE: ",".join(mine)}
        finally:
            with self._lock:
                self._taken.subtract(mine)
