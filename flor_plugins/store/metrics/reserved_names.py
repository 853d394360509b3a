"""Names of metrics that mean something to us."""

from __future__ import annotations

import re

# Fingerprints of the data, recorded by us: they tell data that differ from numerics that differ.
BATCH, FIRST_BATCH = "flor.batch", "flor.first_batch"
# In a replay: the metrics that were looked for at a position, where only running the code tells
# whether it logs them.
ASKED = "flor.asked"
_PREFIX = "flor."

# Clocks and gauges are never the same twice.
_MEASURED = re.compile(
    r"(^|[_./-])(time|runtime|seconds|elapsed|throughput|memory|utilization)($|[_./-])|per_second"
)


def is_measured(name: str) -> bool:
    """Say whether it is a measurement of the machine, which no replay can repeat."""
    return _MEASURED.search(name) is not None


def is_ours(name: str) -> bool:
    """Say whether it is a note of ours, which nobody asked to see."""
    return name.startswith(_PREFIX)
