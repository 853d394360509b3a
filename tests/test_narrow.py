"""Where to look next: the answer is that of looking everywhere, and few places are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.replayer.searching.bisection import (
    PredicateValue,
    at_most,
    first_true,
    next_places,
)

EPOCHS = 256


def sought(
    truth: Sequence[bool], known: Sequence[PredicateValue], *, is_monotone: bool
) -> tuple[int | None, list[int]]:
    """The answer, and every place that was looked at, in this order."""
    seen, looked, count = list(known), [], 2
    while asked := next_places(seen, is_monotone=is_monotone, count=count):
        assert all(seen[place] is None for place in asked)
        assert len(asked) == len(set(asked)) <= (1 if is_monotone else count)
        for place in asked:
            seen[place] = truth[place]
        looked += asked
        count *= 2
    return first_true(seen), looked


def test_a_crossing_over_256_epochs_takes_at_most_9_evaluations_wherever_it_is() -> None:
    counts = []
    for crossing in range(EPOCHS + 1):  # the last one: it holds nowhere
        truth = [place >= crossing for place in range(EPOCHS)]
        found, looked = sought(truth, [None] * EPOCHS, is_monotone=True)
        assert found == (crossing if crossing < EPOCHS else None)
        counts.append(len(looked))
    print(
        f"\nbisection over {EPOCHS} epochs, all {len(counts)} places of a first crossing: at "
        f"most {max(counts)} "
        f"evaluations, {sum(counts) / len(counts):.2f} on average, {counts[-1]} where it holds "
        f"nowhere"
    )
    assert max(counts) <= 9


@given(st.integers(0, 300), st.data())
def test_bisection_is_right_and_bounded_whatever_is_known_already(
    count: int, data: st.DataObject
) -> None:
    crossing = data.draw(st.integers(0, count))
    truth = [place >= crossing for place in range(count)]
    known = [one if data.draw(st.booleans()) else None for one in truth]
    unknown = known.count(None)
    found, looked = sought(truth, known, is_monotone=True)
    assert found == (crossing if crossing < count else None)
    assert len(looked) <= at_most(unknown, is_monotone=True)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_a_scan_is_exact_and_looks_at_most_four_times_where_it_must(
    places: list[tuple[bool, bool]],
) -> None:
    truth = [holds for holds, _ in places]
    known = [holds if is_known else None for holds, is_known in places]
    found, looked = sought(truth, known, is_monotone=False)
    assert found == first_true(truth)
    needed = known[: len(known) if found is None else found + 1].count(None)
    assert len(looked) <= min(known.count(None), 4 * needed + 2)


@given(st.integers(3, 300))
def test_a_scan_sees_both_ends_first_and_then_what_lies_evenly_between(count: int) -> None:
    first = next_places([None] * count, is_monotone=False, count=2)
    assert set(first) == {0, count - 1}
    seen: list[PredicateValue] = [None] * count
    seen[0] = seen[-1] = False
    if count > 5:
        assert (count - 1) // 2 in next_places(seen, is_monotone=False, count=4)


@given(st.lists(st.booleans(), max_size=60))
def test_what_is_not_monotone_ends_all_the_same_and_with_a_place_where_it_holds(
    truth: list[bool],
) -> None:
    found, looked = sought(truth, [None] * len(truth), is_monotone=True)
    assert found is None or truth[found]
    assert len(looked) <= at_most(len(truth), is_monotone=True)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 100, 256, 257])
def test_the_bound_of_a_scan_is_all_of_them(count: int) -> None:
    assert at_most(count, is_monotone=False) == count
    assert at_most(count, is_monotone=True) <= count
