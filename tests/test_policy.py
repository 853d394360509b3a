"""When checkpoints are due: never twice at a position, never further apart than was asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.record import policy
from flor_plugins.record.options import options_of
from flor_plugins.record.policy import Policy
from flor_plugins.records import Position


def made(every_n_epochs: int = 1, every_n_steps: int | None = None, every_minutes: float | None = None) -> Policy:
    return Policy(options_of(None, None, (), (), every_n_epochs, every_n_steps, every_minutes, None, None))


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
    asked, taken, step = made(epochs, steps), [Position(0, 0)], 0
    asked.saved(Position(0, 0))
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
    assert {one.epoch for one in taken} >= {epoch for epoch in range(1, len(lengths) + 1) if epoch % epochs == 0}
    if steps is not None:
        ends = [one.step for one in taken]
        # From one multiple of n to the next; what comes with a batch that makes several updates comes with its last.
        assert all(b // steps - a // steps <= 1 or updates > 1 for a, b in pairwise(ends))


def test_the_last_state_is_saved_whatever_was_asked_for() -> None:
    asked = made(every_n_epochs=5)
    assert not asked.wants(Position(3, 30)) and asked.wants(Position(3, 30), last=True)
    asked.saved(Position(3, 30))
    assert not asked.wants(Position(3, 30), last=True)


def test_minutes_count_from_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(policy.time, "monotonic", lambda: clock[0])
    asked = made(every_minutes=2)
    clock[0] = 119.0
    assert not asked.wants_inside(Position(0, 5)) and not asked.is_near(Position(0, 5))
    clock[0] = 120.0
    assert asked.is_near(Position(0, 5)) and asked.wants_inside(Position(0, 6))
    asked.saved(Position(0, 6))
    clock[0] = 239.0
    assert not asked.wants_inside(Position(0, 9))
    assert not made(every_minutes=None).is_near(Position(0, 9))


@pytest.mark.parametrize(("name", "value"), [("every_n_epochs", 0), ("every_n_steps", 0), ("every_minutes", 0.0)])
def test_what_makes_no_sense_is_refused_when_the_callback_is_made(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"FlorCallback\({name}=0"):
        made(**{name: value})  # type: ignore[arg-type]
