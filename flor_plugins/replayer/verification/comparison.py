"""Verdicts: what was recomputed, compared with what was recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.records import Grade, Position, Verdict
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH, is_measured

# A float counts as close within these: the error of some hundred float32 operations.
RELATIVE, ABSOLUTE = 1e-5, 1e-8


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what it was. detail: names both."""

    position: Position
    name: str
    was: Any
    now: Any
    detail: str


@dataclass(slots=True)
class Comparison:
    """Counts equal values and keeps those that differ.

    data: where a batch was not what it was. batches: the fingerprints of all batches that were
    compared."""

    compared: int = 0
    close: list[Difference] = field(default_factory=list)
    differing: list[Difference] = field(default_factory=list)
    data: list[Difference] = field(default_factory=list)
    batches: list[tuple[Position, Any, Any]] = field(default_factory=list)

    def values(
        self, position: Position, recorded: Mapping[str, Any], recomputed: Mapping[str, Any]
    ) -> Grade:
        """Compare the encoded values that both have, bit for bit.

        Returns the grade of this position.
        """
        grade: Grade = "unverified"
        for name in sorted(recorded.keys() & recomputed.keys()):
            if is_measured(name):
                continue
            self.compared += 1
            grade = worse(grade, self._one(position, name, recorded[name], recomputed[name]))
        return grade

    def hashes(
        self, position: Position, recorded: Mapping[str, str], recomputed: Mapping[str, str]
    ) -> Grade:
        """Compare the fingerprints of a model's tensors; tied tensors are recorded under one
        name.
        """
        for name in recorded:
            self.compared += 1
            if recorded.get(name) != recomputed.get(name):
                was, now = recorded[name], recomputed.get(name, "absent")
                detail = f"weights {name}: {was} recorded, {now} now"
                self.differing.append(Difference(position, f"weights {name}", was, now, detail))
                return "diverged"
        return "exact" if recorded else "unverified"

    def add(self, other: Comparison) -> None:
        """Take what another one found."""
        self.compared += other.compared
        self.close += other.close
        self.differing += other.differing
        self.data += other.data
        self.batches += other.batches

    def verdict(self) -> Verdict:
        """The verdict over everything compared so far."""
        first = self.earliest
        if first is None:
            return Verdict("exact" if self.compared else "unverified", self.compared)
        # What diverged may have begun with a difference as small as rounding: that is where it
        # is to be looked for.
        grade: Grade = "diverged" if self.differing or self.data else "close"
        return Verdict(grade, self.compared, first.position, first.detail)

    @property
    def earliest(self) -> Difference | None:
        """The first that differs at all, rounding included."""
        return min(
            [*self.differing, *self.data, *self.close], key=lambda one: one.position, default=None
        )

    def _one(self, position: Position, name: str, was: Any, now: Any) -> Grade:
        if name in (BATCH, FIRST_BATCH):
            self.batches.append((position, was, now))
        # Encoded values: equal JSON means equal bits (floats are written with repr, NaN is tagged).
        if was == now and type(was) is type(now):
            return "exact"
        found = Difference(position, name, was, now, f"{name}: {was!r} recorded, {now!r} now")
        if name in (BATCH, FIRST_BATCH):
            self.data.append(found)
            return "diverged"
        if _is_close(was, now):
            self.close.append(found)
            return "close"
        self.differing.append(found)
        return "diverged"


def _is_close(was: Any, now: Any) -> bool:
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return all(_is_close(a, b) for a, b in zip(was, now, strict=True))
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return was == now


_ORDER: tuple[Grade, ...] = ("unverified", "exact", "close", "diverged")


def worse(one: Grade, other: Grade) -> Grade:
    """The one of two grades that says less; one that is known before one that is not."""
    return max(one, other, key=lambda grade: _ORDER.index(grade))
