"""When checkpoints are due, never twice at a position, and what is skipped is stated."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.recorder.checkpointing import policy
from flor_plugins.recorder.options import OptionKeywords, options_of
from flor_plugins.records import Position
from tests.pretending import START, Clock, Training, made, training


@given(
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 3),
    st.lists(st.integers(1, 9), max_size=6),
)
def test_checkpoints_lie_where_they_were_asked_for(
    epochs: int, steps: int | None, updates: int, lengths: list[int]
) -> None:
    """updates: so many a batch makes, as with several optimizers."""
    asked, taken, step = made(epochs, steps), [START], 0
    asked.saved(START)
    for epoch, length in enumerate(lengths):
        for _ in range(length - 1):
            was_near = asked.is_near(Position(epoch, step)) or updates > 1
            step += updates
            if asked.wants_inside(Position(epoch, step)):
                assert was_near, "the RNG state before it would be unknown"
                taken.append(Position(epoch, step))
                asked.saved(taken[-1])
        step += updates
        if asked.wants(Position(epoch + 1, step)):
            taken.append(Position(epoch + 1, step))
            asked.saved(taken[-1])
    assert len(set(taken)) == len(taken)
    assert {one.epoch for one in taken} >= {
        epoch for epoch in range(1, len(lengths) + 1) if epoch % epochs == 0
    }
    if steps is not None:
        ends = [one.step for one in taken]
        # From one multiple of n to the next; what comes with a batch that makes several updates
        # comes with its last.
        assert all(b // steps - a // steps <= 1 or updates > 1 for a, b in pairwise(ends))
    assert asked.skips == () and asked.skipped_count == 0


def test_the_last_state_is_saved_whatever_was_asked_for() -> None:
    asked = made(every_n_epochs=5)
    assert not asked.wants(Position(3, 30)) and asked.wants(Position(3, 30), last=True)
    asked.saved(Position(3, 30))
    assert not asked.wants(Position(3, 30), last=True)
    assert asked.skips == (), "nobody wished for a checkpoint there"


def test_minutes_count_from_the_last_checkpoint() -> None:
    clock = Clock(0.0)
    asked = made(every_minutes=2, clock=clock)
    clock.now = 119.0
    assert not asked.wants_inside(Position(0, 5)) and not asked.is_near(Position(0, 5))
    clock.now = 120.0
    assert asked.is_near(Position(0, 5)) and asked.wants_inside(Position(0, 6))
    asked.saved(Position(0, 6))
    clock.now = 239.0
    assert not asked.wants_inside(Position(0, 9))
    assert not made(every_minutes=None).is_near(Position(0, 9))


@pytest.mark.parametrize(
    ("name", "value"),
    [("every_n_epochs", 0), ("every_n_steps", 0), ("every_minutes", 0.0), ("overhead", 0.0)],
)
def test_what_makes_no_sense_is_refused_when_the_callback_is_made(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FlorCallback\({name}=0"):
        made(**{name: value})  # type: ignore[arg-type]


def options(**given: Any) -> Any:
    return options_of(**given)


def test_both_callbacks_show_the_options_with_their_defaults() -> None:
    from flor_plugins.hf import FlorCallback as OfTrainer
    from flor_plugins.lightning import FlorCallback as OfLightning

    for callback in (OfTrainer, OfLightning):
        shown = inspect.signature(callback).parameters
        assert list(shown) == ["name", *OptionKeywords.__annotations__]
        assert shown["every_minutes"].default == 10.0 and shown["overhead"].default == 0.02
        assert callback().options == options_of(**{n: one.default for n, one in shown.items()})
        with pytest.raises(TypeError, match="every_epoch"):
            callback(every_epoch=1)


@pytest.mark.parametrize("overhead", [-0.1, 1.5, 2, float("nan"), float("inf"), True, "2 %"])
def test_an_overhead_is_a_share(overhead: Any) -> None:
    with pytest.raises(ValueError, match=r"FlorCallback\(overhead=.*0\.02 is 2 %"):
        options(overhead=overhead)


@pytest.mark.parametrize("disk", ["", "much", "-5GB", -5, 0, "0GB", 1.5, True])
def test_a_disk_budget_is_a_size_above_nothing(disk: Any) -> None:
    with pytest.raises(ValueError, match=r"FlorCallback\(disk="):
        options(disk=disk)


def test_a_disk_budget_is_read_as_people_write_it() -> None:
    assert [options(disk=disk).schedule.disk for disk in ("50GB", 7, None)] == [
        50_000_000_000,
        7,
        None,
    ]


def test_a_refused_update_is_not_asked_for_again_before_the_next_multiple() -> None:
    clock = Clock()
    asked = made(every_n_steps=5, clock=clock)
    Training(asked, clock).boundary(START, 100.0)
    wanted = [step for step in range(1, 16) if asked.wants_inside(Position(0, step))]
    assert wanted == [] and [one.position.step for one in asked.skips] == [5, 10, 15]
    assert not asked.wants_inside(Position(0, 15)), "asked twice"
    assert asked.skipped_count == 3


def test_a_place_that_is_taken_in_the_end_was_not_skipped() -> None:
    clock = Clock()
    made_up = Training(made(clock=clock), clock)
    made_up.boundary(START, 100.0)
    assert not made_up.boundary(Position(1, 10)) and made_up.asked.skipped_count == 1
    assert made_up.boundary(Position(1, 10), last=True)
    assert made_up.asked.skips == () and made_up.asked.skipped_count == 0


def test_what_the_writer_refused_is_skipped_and_the_next_one_is_full() -> None:
    made_up = training(10, 20, overhead=None, disk_bytes=10**9)
    made_up.boundary(START)
    made_up.clock.now += 5.0
    assert made_up.asked.wants(Position(1, 10))
    made_up.asked.skipped(Position(1, 10), "the writer was busy")
    assert not made_up.asked.wants(Position(1, 10))
    made_up.clock.now += 5.0
    assert made_up.asked.wants(Position(2, 20)) and made_up.asked.takes_optimizer(Position(2, 20))
    made_up.asked.saved(Position(2, 20))
    made_up.clock.now += 3.0
    # told when it had been taken already
    made_up.asked.skipped(Position(2, 20), "the disk was full")
    assert [(one.why, one.cost_s) for one in made_up.asked.skips] == [
        ("the writer was busy", 5.0),
        ("the disk was full", 10.0),
    ]
    assert made_up.asked.takes_optimizer(Position(3, 30))
    assert made_up.asked.wants(Position(2, 20), last=True)


def test_of_very_many_skips_the_first_and_the_last_are_kept() -> None:
    asked = made()
    for step in range(1, 1001):
        asked.skipped(Position(0, step), "the writer was busy")
    kept = [one.position.step for one in asked.skips]
    assert kept == [*range(1, policy.MOST_SKIPS + 1), *range(1001 - policy.MOST_SKIPS, 1001)]
    assert asked.skipped_count == 1000
