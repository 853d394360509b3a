"""Ratios of variants that alternate: their order, and the interval of a median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95
LEAST_PAIRS = 11  # fewer say nothing


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and where it lies with 95 % confidence.

    With fewer than 6 values it is where the values lie.

    n: how many values.
    """

    middle: float
    low: float
    high: float
    n: int

    @property
    def width(self) -> float:
        """Return how far its ends are apart."""
        return self.high - self.low


def interval(values: Sequence[float]) -> Interval:
    """The median of values with the interval of its order statistics: no distribution is assumed.

    Raises ValueError for no values, or for one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs finite values, and got {list(values)[:5]}")
    ordered = sorted(values)
    outside = _outside(len(ordered))
    return Interval(median(ordered), ordered[outside], ordered[-1 - outside], len(ordered))


def _outside(n: int) -> int:
    """Return how many values may be left out on either side.

    The median must be inside with the confidence asked for.
    """
    tail, outside = 0.0, 0
    for k in range(n // 2):
        # P(exactly k of n values lie below the median); the sum: at most k do
        tail += math.comb(n, k) / 2**n
        if tail > (1 - CONFIDENCE) / 2:
            break
        outside = k
    return outside


def pair_ratios(of: Sequence[float], over: Sequence[float]) -> list[float]:
    """The ratio of each pair, in the order measured. Raises ValueError if the lengths differ."""
    return [one / other for one, other in zip(of, over, strict=True)]


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Return the order of the variants in each round: forward, backward, forward.

    A drift of the machine then hits all of them alike.
    """
    return [list(names) if i % 2 == 0 else list(reversed(names)) for i in range(rounds)]
