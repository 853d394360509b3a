"""Verdicts: what was recomputed, compared with what was recorded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.records import Grade, Position, Verdict

# A float counts as close within these: the error of some hundred float32 operations.
RELATIVE, ABSOLUTE = 1e-5, 1e-8

# Clocks and gauges are never the same twice.
_MEASURED = re.compile(
    r"(^|[_./-])(time|runtime|seconds|elapsed|throughput|memory|utilization)($|[_./-])|per_second"
)


@dataclass(slots=True)
class Comparison:
    """Counts equal values and keeps the first that differs."""

    compared: int = 0
    close: list[tuple[Position, str]] = field(default_factory=list)
    differing: list[tuple[Position, str]] = field(default_factory=list)

    def values(self, position: Position, recorded: Mapping[str, Any], recomputed: Mapping[str, Any]) -> Grade:
        """Compare the encoded values that both have, bit for bit. Returns the grade of this position."""
        grade: Grade = "unverified"
        for name in sorted(recorded.keys() & recomputed.keys()):
            if _MEASURED.search(name):
                continue
            self.compared += 1
            grade = _worse(grade, self._one(position, name, recorded[name], recomputed[name]))
        return grade

    def hashes(self, position: Position, recorded: Mapping[str, str], recomputed: Mapping[str, str]) -> Grade:
        """Compare the fingerprints of a model's tensors; tied tensors are recorded under one name."""
        for name in recorded:
            self.compared += 1
            if recorded.get(name) != recomputed.get(name):
                was, now = recorded[name][:12], recomputed.get(name, "absent")[:12]
                self.differing.append((position, f"weights {name}: sha256 {was} recorded, {now} now"))
                return "diverged"
        return "exact" if recorded else "unverified"

    def verdict(self) -> Verdict:
        """The verdict over everything compared so far."""
        if self.differing:
            first = min(self.differing, key=lambda found: found[0])
            return Verdict("diverged", self.compared, *first)
        if self.close:
            return Verdict("close", self.compared, *min(self.close, key=lambda found: found[0]))
        return Verdict("exact" if self.compared else "unverified", self.compared)

    def _one(self, position: Position, name: str, was: Any, now: Any) -> Grade:
        # Encoded values: equal JSON means equal bits (floats are written with repr, NaN is tagged).
        if was == now and type(was) is type(now):
            return "exact"
        detail = f"{name}: {was!r} recorded, {now!r} now"
        if _is_close(was, now):
            self.close.append((position, detail))
            return "close"
        self.differing.append((position, detail))
        return "diverged"


def _is_close(was: Any, now: Any) -> bool:
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return all(_is_close(a, b) for a, b in zip(was, now, strict=True))
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return was == now


_ORDER: tuple[Grade, ...] = ("unverified", "exact", "close", "diverged")


def _worse(one: Grade, other: Grade) -> Grade:
    return max(one, other, key=lambda grade: _ORDER.index(grade))
