"""Verdicts: what was recomputed, compared with what was recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter

from flor_plugins.records import Grade, Position, Verdict
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH, is_measured

# A float counts as close within these: the error of some hundred float32 operations.
RELATIVE, ABSOLUTE = 1e-5, 1e-8


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not what it was. detail: names both."""

    position: Position
    name: str
    was: object
    now: object
    detail: str


@dataclass(slots=True)
class Comparison:
    """Counts equal values and keeps those that differ.

    data: where a batch was not what it was. batches: the fingerprints of all batches that were
    compared.
    """

    compared: int = 0
    close: list[Difference] = field(default_factory=list)
    differing: list[Difference] = field(default_factory=list)
    data: list[Difference] = field(default_factory=list)
    batches: list[tuple[Position, object, object]] = field(default_factory=list)

    def values(
        self, position: Position, recorded: Mapping[str, object], recomputed: Mapping[str, object]
    ) -> Grade:
        """Compare the encoded values that both have, bit for bit.

        Returns the grade of this position.
        """
        grade: Grade = "unverified"
        for name in sorted(recorded.keys() & recomputed.keys()):
            if not is_measured(name):
                self.compared += 1
                value_grade = self._value(position, name, recorded[name], recomputed[name])
                grade = worse(grade, value_grade)
        return grade

    def hashes(
        self, position: Position, recorded: Mapping[str, str], recomputed: Mapping[str, str]
    ) -> Grade:
        """Compare hashes of a model's tensors; tied tensors are recorded under one name."""
        for name, was in recorded.items():
            self.compared += 1
            now = recomputed.get(name, "absent")
            if was != now:
                detail = f"weights {name}: {was} recorded, {now} now"
                self.differing.append(Difference(position, f"weights {name}", was, now, detail))
                return "diverged"
        return "exact" if recorded else "unverified"

    def add(self, other: Comparison) -> None:
        """Take what another one found."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))

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
        differences = [*self.differing, *self.data, *self.close]
        return min(differences, key=attrgetter("position"), default=None)

    def _value(self, position: Position, name: str, was: object, now: object) -> Grade:
        is_data = name in (BATCH, FIRST_BATCH)
        if is_data:
            self.batches.append((position, was, now))
        # Encoded values: equal JSON means equal bits (floats are written with repr, NaN is tagged).
        if was == now and type(was) is type(now):
            return "exact"
        is_close = not is_data and _is_close(was, now)
        differences = self.data if is_data else self.close if is_close else self.differing
        detail = f"{name}: {was!r} recorded, {now!r} now"
        differences.append(Difference(position, name, was, now, detail))
        return "close" if is_close else "diverged"


def _is_close(was: object, now: object) -> bool:
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return all(_is_close(a, b) for a, b in zip(was, now, strict=True))
    if isinstance(was, (int, float)) and isinstance(now, (int, float)):
        return math.isclose(was, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return was == now


_ORDER: tuple[Grade, ...] = ("unverified", "exact", "close", "diverged")


def worse(*grades: Grade) -> Grade:
    """Return the grade that says least; one that is known before one that is not."""
    return max(grades, key=_ORDER.index)
