"""Which epochs were asked for, and in which order a curve takes shape soonest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from flor_plugins.errors import ReplayError

T = TypeVar("T")

_SAMPLE = "sample:"


def epochs_of(text: str | Sequence[int], known: Collection[int]) -> list[int]:
    """Return the completed epochs (1 and up) that `text` names, of those that are known, ascending.

    text: "all", "last", "1:3" (both included), "1,3", "sample:5" (five evenly spread ones,
    first and last included; of fewer all) or numbers. Raises ReplayError for anything else.
    """
    trained = sorted(epoch for epoch in known if epoch > 0)
    if not isinstance(text, str):
        return sorted(set(text))
    if text == "all":
        return trained
    if text == "last":
        return trained[-1:]
    first, colon, last = text.partition(":")
    try:
        if text.startswith(_SAMPLE):
            return sample(trained, _at_least_one(text.removeprefix(_SAMPLE)))
        if not colon:
            return sorted({int(part) for part in text.split(",")})
        low, high = int(first or 0), int(last or max(known, default=0))
    except ValueError as error:
        raise ReplayError(f"epochs {text!r}: use all, last, 2, 1,3, 1:3 or sample:5") from error
    return [epoch for epoch in sorted(known) if low <= epoch <= high]


def names_them(text: str | Sequence[int]) -> bool:
    """Tell whether certain epochs are asked for, not those that there are."""
    return not isinstance(text, str) or not (text in ("all", "last") or text.startswith(_SAMPLE))


def sample(every: Sequence[T], count: int) -> list[T]:
    """Return `count` (1 and up) of them, evenly spread, with both ends; of one, the last."""
    if count >= len(every):
        return list(every)
    if count == 1:
        return [every[-1]]
    return [every[round(i * (len(every) - 1) / (count - 1))] for i in range(count)]


def spread(every: Sequence[T]) -> tuple[T, ...]:
    """Order all so that each beginning is spread evenly: both ends, the middle, quarters, ..."""
    if len(every) < 3:
        return tuple(every)
    order, gaps = [0, len(every) - 1], [(0, len(every) - 1)]
    for low, high in gaps:  # grows: each gap is halved after those that are as wide
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return tuple(every[i] for i in order)


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(f"a sample of {count}")
    return count
