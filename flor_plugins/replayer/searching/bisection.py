"""Which epochs of a run to look at next for the first one at which a predicate holds.

Nothing is computed here: what is known goes in, what is to be known next comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

from flor_plugins.replayer.planning.epoch_selection import spread

# Does it hold there? None: nobody has looked yet.
PredicateValue = bool | None


def first_true(known: Sequence[PredicateValue]) -> int | None:
    """The earliest place at which it is known to hold."""
    return next((place for place, truth in enumerate(known) if truth), None)


def next_places(
    known: Sequence[PredicateValue], *, is_monotone: bool, count: int = 2
) -> tuple[int, ...]:
    """Return where to look next, in this order.

    Nothing once the first place is known, or that there is none. is_monotone: what holds once
    holds from there on. One place then: the last one, to see whether it holds at all, and from
    then on the middle of those that are left; of n places at most `at_most(n)` are looked at.
    Else up to `count` of those before the earliest hit: half of them from the front, where each
    must be looked at, and half spread evenly, so that a hit is soon found which makes the rest
    unnecessary.
    """
    hit = first_true(known)
    end = len(known) if hit is None else hit
    if is_monotone:
        return _middle(known[:end], is_hit=hit is not None)
    unknown = [place for place in range(end) if known[place] is None]
    front = unknown[: (count + 1) // 2]
    coarse = [
        place for place in spread(range(end)) if known[place] is None and place not in set(front)
    ]
    return tuple(front + coarse[: count // 2])


def at_most(count: int, *, is_monotone: bool) -> int:
    """How many of `count` places are looked at in the worst case."""
    return count if not is_monotone or count < 2 else 1 + (count - 1).bit_length()


def _middle(before: Sequence[PredicateValue], *, is_hit: bool) -> tuple[int, ...]:
    """before: all places before the earliest hit.

    Where it is known not to hold, it did not before either.
    """
    begin = next((place + 1 for place in reversed(range(len(before))) if before[place] is False), 0)
    unknown = [place for place in range(begin, len(before)) if before[place] is None]
    if not unknown:
        return ()
    return (unknown[len(unknown) // 2] if is_hit else unknown[-1],)
