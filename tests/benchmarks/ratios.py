"""Variants that alternate in one process, and what intervals show that
flor_plugins/bench/ratios.py makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from flor_plugins.bench.ratios import LEAST_PAIRS, Interval, interval, orders, pair_ratios

__all__ = [
    "Aim",
    "Interval",
    "Verdict",
    "alternate",
    "interval",
    "judge",
    "orders",
    "pair_ratios",
    "quantile",
    "slope",
]

T = TypeVar("T")
Verdict = Literal["met", "missed", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure is held against. neutral: what it would be without any effect."""

    limit: float
    neutral: float = 1.0


def alternate(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each variant once a round, in alternating order.

    Returns what they returned, round by round.
    """
    found: dict[str, list[T]] = {name: [] for name in variants}
    for order in orders(list(variants), rounds):
        for name in order:
            found[name].append(variants[name]())
    return found


def judge(figure: Interval, aim: Aim, control: Interval) -> Verdict:
    """Whether a figure is at most its aim.

    control: the same figure measured where there is no effect. "inconclusive" if the control is
    wider than the effect (the larger one of that found and that allowed), if the figure's
    interval holds the aim, or if there are fewer than LEAST_PAIRS values."""
    effect = max(abs(figure.middle - aim.neutral), abs(aim.limit - aim.neutral))
    if control.width > effect or min(figure.n, control.n) < LEAST_PAIRS:
        return "inconclusive"
    if figure.high <= aim.limit:
        return "met"
    return "missed" if figure.low > aim.limit else "inconclusive"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank).

    Raises ValueError for no values.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"the quantile {share} of {len(values)} values does not exist")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line that fits best (least squares), in units of value per unit of
    time; 0 for one moment.
    """
    at, middle = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - at) ** 2 for t in times)
    if not spread:
        return 0.0
    return sum((t - at) * (v - middle) for t, v in zip(times, values, strict=True)) / spread
