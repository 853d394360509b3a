"""Ratios of variants that alternate in one process: their order, the interval of a median, and what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["met", "missed", "inconclusive"]

CONFIDENCE = 0.95
LEAST_PAIRS = 11  # fewer say nothing


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and where it lies with 95 % confidence; with fewer than 6 values, where the values lie.

    n: how many values.
    """

    middle: float
    low: float
    high: float
    n: int

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure is held against. neutral: what it would be without any effect."""

    limit: float
    neutral: float = 1.0


def interval(values: Sequence[float]) -> Interval:
    """The median of values with the interval of its order statistics: no distribution is assumed.

    Raises ValueError for no values, or for one that is not finite.
    """
    if not values or not all(math.isfinite(one) for one in values):
        raise ValueError(f"an interval needs finite values, and got {list(values)[:5]}")
    ordered = sorted(values)
    outside = _outside(len(ordered))
    return Interval(median(ordered), ordered[outside], ordered[-1 - outside], len(ordered))


def _outside(n: int) -> int:
    """How many values may be left out on either side so that the median is inside with the confidence asked for."""
    tail, outside = 0.0, 0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n  # P(exactly k of n values lie below the median); the sum: at most k do
        if tail > (1 - CONFIDENCE) / 2:
            break
        outside = k
    return outside


def pair_ratios(of: Sequence[float], over: Sequence[float]) -> list[float]:
    """The ratio of each pair, in the order measured. Raises ValueError if the lengths differ."""
    return [one / other for one, other in zip(of, over, strict=True)]


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the variants in each round: forward, backward, forward: a drift hits all of them alike."""
    return [list(names) if i % 2 == 0 else list(reversed(names)) for i in range(rounds)]


def alternate(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each variant once a round, in alternating order. Returns what they returned, round by round."""
    found: dict[str, list[T]] = {name: [] for name in variants}
    for order in orders(list(variants), rounds):
        for name in order:
            found[name].append(variants[name]())
    return found


def judge(figure: Interval, aim: Aim, control: Interval) -> Verdict:
    """Whether a figure is at most its aim.

    control: the same figure measured where there is no effect. "inconclusive" if the control is wider than the
    effect (the larger one of that found and that allowed), if the figure's interval holds the aim, or if there are
    fewer than LEAST_PAIRS values.
    """
    effect = max(abs(figure.middle - aim.neutral), abs(aim.limit - aim.neutral))
    if control.width > effect or min(figure.n, control.n) < LEAST_PAIRS:
        return "inconclusive"
    if figure.high <= aim.limit:
        return "met"
    return "missed" if figure.low > aim.limit else "inconclusive"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank). Raises ValueError for no values."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"the quantile {share} of {len(values)} values does not exist")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line that fits best (least squares), in units of value per unit of time; 0 for one moment."""
    at, middle = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - at) ** 2 for t in times)
    if not spread:
        return 0.0
    return sum((t - at) * (v - middle) for t, v in zip(times, values, strict=True)) / spread
