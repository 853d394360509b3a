"""What recording may cost: no more time and no more disk than was granted, first and last
state always.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.recorder.checkpointing.budgets import (
    ALLOWANCE_S,
    SPACINGS,
    CheckpointSpacing,
    DiskBudget,
)
from flor_plugins.records import Position
from tests.pretending import START, Clock, Training, made, same, training

# ---- the time budget


@pytest.mark.parametrize(
    ("epoch_s", "cost", "overhead", "expected"),
    [
        (1.0, 0.05, 0.02, 20),  # a second of cost in all: nobody minds
        (1.0, 0.5, None, 20),
        (100.0, 1.0, 0.02, 20),  # 1 % each
        (100.0, 4.0, 0.02, 10),  # 4 %: every other one
        (100.0, 20.0, 0.02, 2),  # 20 %: every tenth, of which the first state took one
    ],
)
def test_the_interval_adapts_to_what_a_checkpoint_costs(
    epoch_s: float, cost: float, overhead: float | None, expected: int
) -> None:
    done = training(overhead=overhead).run(20, epoch_s, same(cost))
    assert done.taken[0] == START and done.taken[-1] == Position(20, 200)
    assert abs(len(done.taken) - 1 - expected) <= 1
    assert len(done.taken) + len(done.asked.skips) == 21


@given(
    st.floats(0.001, 1.0),
    st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 30.0)), min_size=1, max_size=40),
)
def test_no_more_is_ever_spent_than_the_budget_and_one_checkpoint(
    overhead: float, epochs: list[tuple[float, float]]
) -> None:
    """Whatever the costs are.

    Of the first state, which is always taken, nobody knows the cost before.
    """
    made_up = training(overhead=overhead)
    asked, began = made_up.asked, made_up.clock.now
    made_up.boundary(START, epochs[0][1])
    dearest = epochs[0][1]
    for number, (epoch_s, cost) in enumerate(epochs, 1):
        made_up.clock.now += epoch_s
        before, elapsed = asked.spent_s, made_up.clock.now - began
        if made_up.boundary(Position(number, number), cost):
            assert before <= overhead * elapsed + ALLOWANCE_S + 1e-9
            dearest = max(dearest, cost)
        assert (
            asked.spent_s <= overhead * (made_up.clock.now - began) + ALLOWANCE_S + dearest + 1e-9
        )


@given(st.floats(0.5, 30.0), st.floats(0.1, 100.0), st.integers(1, 60))
def test_where_all_cost_the_same_the_budget_holds_to_the_last_bit_of_it(
    cost: float, epoch_s: float, n: int
) -> None:
    made_up = training()
    asked, began = made_up.asked, made_up.clock.now
    made_up.boundary(START, cost)
    for epoch in range(1, n):
        made_up.clock.now += epoch_s
        if made_up.boundary(Position(epoch, epoch), cost):
            assert asked.spent_s <= 0.02 * (made_up.clock.now - began) + ALLOWANCE_S + 1e-9


@given(
    st.floats(0.001, 1.0),
    st.integers(1, 10**9),
    st.lists(st.floats(0.0, 100.0), min_size=41, max_size=41),
    st.integers(1, 40),
    st.floats(0.0, 100.0),
)
def test_first_and_last_are_always_taken_and_full(
    overhead: float, disk: int, costs: list[float], epochs: int, epoch_s: float
) -> None:
    made_up = training(10**6, 2 * 10**6, expects=epochs, overhead=overhead, disk_bytes=disk)
    made_up.run(epochs, epoch_s, iter(costs))
    ends = [START, Position(epochs, 10 * epochs)]
    assert [made_up.taken[0], made_up.taken[-1]] == [made_up.full[0], made_up.full[-1]] == ends


@given(
    st.floats(0.001, 1.0),
    st.one_of(st.none(), st.integers(1, 10**8)),
    st.lists(st.floats(0.0, 30.0), min_size=31, max_size=31),
    st.integers(1, 30),
    st.integers(1, 3),
)
def test_what_is_skipped_is_stated(
    overhead: float, disk: int | None, costs: list[float], epochs: int, every: int
) -> None:
    made_up = training(10**6, 2 * 10**6, overhead=overhead, disk_bytes=disk, every_n_epochs=every)
    made_up.run(epochs, 10.0, iter(costs))
    wished = {Position(one, 10 * one) for one in range(0, epochs + 1, every)} | {
        Position(epochs, 10 * epochs)
    }
    skips = made_up.asked.skips
    assert {one.position for one in skips} == wished - set(made_up.taken)
    assert len(skips) == made_up.asked.skipped_count
    for one in skips:
        since = max(place for place in made_up.full if place < one.position)
        assert one.why and one.cost_s is not None
        # Ten seconds each epoch, and what the checkpoints on the way have cost.
        assert 10.0 * (one.position.epoch - since.epoch) <= one.cost_s + 1e-3


def test_where_time_is_short_the_optimizers_state_is_left_out_before_a_checkpoint_is() -> None:
    made_up = training(overhead=0.02)
    made_up.light = 0.3
    made_up.asked.trains(10**6, 2 * 10**6)
    made_up.run(100, 20.0, same(1.0))  # 0.4 s an epoch are granted
    assert len(made_up.taken) == 101 and made_up.asked.skips == ()
    spaces = [two.epoch - one.epoch for one, two in pairwise(made_up.full)]
    # at first the two free seconds
    assert 10 < len(made_up.full) < 25 and set(spaces[5:-1]) == {
        6,
        7,
    }
    # the last one is taken whatever it costs
    assert made_up.asked.spent_s <= 0.02 * (made_up.clock.now - 1000.0) + ALLOWANCE_S + 1.0


@given(
    st.floats(0.001, 0.2),
    st.floats(0.1, 50.0),
    st.floats(0.01, 20.0),
    st.floats(0.05, 1.0),
    st.integers(1, 400),
)
def test_of_a_hundred_checkpoints_one_is_full_and_the_budget_holds(
    overhead: float, epoch_s: float, cost: float, light: float, epochs: int
) -> None:
    made_up = training(overhead=overhead)
    made_up.light = light
    made_up.asked.trains(10**6, 2 * 10**6)
    made_up.run(epochs, epoch_s, same(cost))
    places = [made_up.taken.index(one) for one in made_up.full]
    assert all(two - one <= 100 for one, two in pairwise(places))
    # the first and the last are always taken; without the optimizer's state one may cost more
    # than its bytes said
    assert (
        made_up.asked.spent_s
        <= overhead * (made_up.clock.now - 1000.0) + ALLOWANCE_S + 3 * cost + 1e-9
    )


def test_steps_that_cost_much_leave_no_time_for_checkpoints() -> None:
    made_up = training()
    for epoch in range(50):
        made_up.boundary(Position(epoch, epoch), 0.1)
        made_up.clock.now += 100.0
        made_up.asked.spent(5.0)
    assert made_up.taken == [START]
    assert made_up.asked.spent_s == pytest.approx(50 * 5 + 0.1)
    assert made_up.asked.skips[0].why == "recording would cost more than 2 % of the training's time"


@pytest.mark.parametrize(("cost", "is_taken"), [(3.4, True), (3.6, False)])
def test_no_share_is_taken_of_the_time_before_the_training_began(
    cost: float, is_taken: bool
) -> None:
    clock = Clock()
    asked = made(clock=clock, overhead=0.5)
    clock.now += 60.0  # the data are read
    asked.wants(START)
    clock.now += 10.0
    asked.saved(START)
    asked.spent(cost)  # once more it would cost as much: 0.5 * 10 s and the allowance are 7 s
    assert asked.wants(Position(1, 1)) is is_taken and asked.spent_s == cost


def test_a_wish_of_the_clock_is_refused_once_and_granted_when_there_is_time() -> None:
    clock = Clock()
    asked = made(every_minutes=1, clock=clock)
    made_up = Training(asked, clock)
    made_up.boundary(START, 10.0)
    granted, nears = [], 0
    for step in range(1, 1200):
        clock.now += 1.0
        nears += asked.is_near(Position(0, step - 1))
        if asked.wants_inside(Position(0, step)):
            granted.append(step)
            made_up.take(Position(0, step), 10.0)
    # 10 + 10 s are 2 s, and 2 % of 900 s; 10 s of those the first checkpoint took.
    assert granted == [890]
    assert [(one.position, one.cost_s) for one in asked.skips] == [
        (Position(0, 50), 60.0),
        (Position(0, 940), 60.0),
    ]
    assert nears <= 4, "asked for the RNG state of boundaries at which there is no time"


# ---- the disk budget


@pytest.mark.parametrize(
    ("disk", "wishes", "expected"),
    [
        (None, 100, CheckpointSpacing(1, 1)),
        (303, 100, CheckpointSpacing(1, 1)),  # 100 of 3, and the last one
        (302, 100, CheckpointSpacing(1, 2)),
        (203, 100, CheckpointSpacing(1, 2)),
        (202, 100, CheckpointSpacing(1, 5)),
        (105, 100, CheckpointSpacing(1, 100)),
        (104, 100, CheckpointSpacing(2, 50)),  # 50 of 1, and one of them full
        (54, 100, CheckpointSpacing(5, 20)),
        (6, 100, CheckpointSpacing(100, 1)),
        (5, 100, CheckpointSpacing(200, 1)),  # none of these
        (5, 10_000, CheckpointSpacing(None, 1)),
        (2, 1, CheckpointSpacing(None, 1)),
        (6, 1, CheckpointSpacing(1, 1)),
    ],
)
def test_no_checkpoint_is_left_out_that_fits(
    disk: int | None, wishes: int, expected: CheckpointSpacing
) -> None:
    """Weights take 1 byte, the optimizer 2. What is measured first is deleted again."""
    budget = DiskBudget(disk, 0)
    budget.wrote(Position(1, 1), 1, 2)
    budget.freed(3)
    assert budget.spacing(wishes) == expected


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 1000),
    st.integers(0, 10**8),
)
def test_what_is_planned_fits_or_is_thinned_and_is_no_thinner_than_needed(
    disk: int, weights: int, optimizer: int, wishes: int, used: int
) -> None:
    budget = DiskBudget(disk, used)
    budget.took(Position(1, 1), is_full=True)
    budget.wrote(Position(1, 1), weights, optimizer)
    left = disk - used - 2 * (weights + optimizer)  # that one, and the last

    def needed(one: CheckpointSpacing) -> int:
        taken = wishes // (one.taken or 1)
        return taken * weights + taken // one.full * optimizer

    chosen = budget.spacing(wishes)
    assert chosen.taken is None or needed(chosen) <= left
    denser = SPACINGS if chosen.taken is None else SPACINGS[: SPACINGS.index(chosen)]
    assert all(needed(one) > left for one in denser)


@given(
    st.integers(1, 300),
    st.integers(0, 400),
    st.one_of(st.none(), st.integers(0, 60)),
    st.integers(1, 60),
    st.integers(0, 20),
)
def test_the_budget_is_kept_wherever_first_last_and_one_to_measure_fit(
    disk: int, optimizer: int, expects: int | None, epochs: int, used: int
) -> None:
    """Weights take 100 bytes, the optimizer up to what Adam takes; the training may be
    longer than was told.
    """
    optimizer, made_up = (
        min(optimizer, 200),
        training(100, 0, expects, overhead=None, disk_bytes=10 * disk),
    )
    made_up.optimizer = optimizer
    made_up.asked.freed(-used)
    made_up.run(epochs)
    assert made_up.used + used <= max(10 * disk, 100 + 100 + 100 + optimizer + used)


@pytest.mark.parametrize("expects", [40, None])
def test_a_thinned_run_covers_all_of_its_length(expects: int | None) -> None:
    made_up = training(100, 200, expects, overhead=None, disk_bytes=1500).run(40)
    places = [one.epoch for one in made_up.taken]
    assert 6 <= len(places) < 20 and made_up.used <= 1500
    assert max(b - a for a, b in pairwise(places)) <= 20
    assert "thinned to fit into 1.50 kB" in made_up.asked.skips[0].why


def test_optimizers_are_saved_as_often_as_the_disk_allows() -> None:
    made_up = training(100, 200, 40, overhead=None, disk_bytes=6000).run(40)
    assert len(made_up.taken) == 41, "weights at every epoch"
    assert 8 <= len(made_up.full) <= 10 and made_up.used <= 6000
    plenty = training(100, 200, 40, overhead=None, disk_bytes=13_000).run(40)
    assert plenty.full == plenty.taken


def test_a_frozen_backbone_that_the_first_checkpoint_holds_counts_once() -> None:
    made_up = training(100_000, 0, 40, overhead=None, disk_bytes=310_000)
    made_up.boundary(START)
    made_up.weights, made_up.optimizer = 100, 200
    for epoch in range(1, 41):
        assert made_up.boundary(Position(epoch, epoch))
    assert set(made_up.taken) - set(made_up.full) == {Position(1, 1)}, "taken to be measured"


def test_what_is_being_written_counts() -> None:
    asked = made(overhead=None, disk_bytes=1000)
    asked.saved(START)
    asked.wrote(START, 100, 0)
    taken = [
        epoch
        for epoch in range(1, 9)
        if asked.wants(Position(epoch, epoch)) and not asked.saved(Position(epoch, epoch))
    ]
    # Of the optimizer nothing is known: it may take twice the weights, and the last state needs
    # room.
    assert taken == [1, 2]


def test_a_run_that_goes_on_keeps_what_it_has() -> None:
    there = [START, Position(1, 10), Position(2, 20)]
    asked = made(overhead=None, saved=there, disk_bytes=10_000, used_bytes=9900)
    assert not any(asked.wants(one) for one in there)
    made_up = Training(asked, Clock(), 100, 200)
    made_up.boundary(Position(3, 30))
    assert not made_up.boundary(Position(4, 40)) and made_up.boundary(Position(5, 50), last=True)
    asked.freed(10_000)
    assert asked.wants(Position(6, 60)) and asked.takes_optimizer(Position(6, 60))


@given(
    st.integers(1, 9),
    st.integers(0, 20),
    st.integers(1, 60),
    st.integers(0, 200),
    st.integers(3, 90),
)
def test_a_plan_that_is_followed_keeps_the_budget(
    weights: int, optimizer: int, wishes: int, since_full: int, room: int
) -> None:
    """Room is for so many times the weights."""
    budget = DiskBudget(room * weights, 0)
    used, since_taken, place = 0, 0, Position(1, 1)

    def take(is_full: bool) -> int:
        budget.took(place, is_full=is_full)
        budget.wrote(place, weights, optimizer if is_full else 0)
        return weights + (optimizer if is_full else 0)

    used += take(True)
    for left in range(wishes, 0, -1):
        plan = budget.spacing(left, since_taken, since_full)
        since_taken += 1
        if plan.taken is not None and since_taken >= plan.taken:
            is_full = since_full + 1 >= plan.full
            since_taken, since_full = 0, 0 if is_full else since_full + 1
            used += take(is_full)
    assert used + weights + optimizer <= max(room * weights, 2 * (weights + optimizer))


@pytest.mark.parametrize("expects", [None, sys.maxsize, -3])
def test_of_a_length_that_nobody_knows_nothing_is_concluded(expects: int | None) -> None:
    made_up = training(100, 200, expects, overhead=None, disk_bytes=10_000).run(10)
    assert made_up.full == made_up.taken and len(made_up.taken) == 11


def test_of_a_frozen_model_only_what_is_trained_needs_room() -> None:
    blind, told = (training(100_000, 0, 40, overhead=None, disk_bytes=150_000) for _ in range(2))
    told.asked.trains(100, 200)
    for made_up in (blind, told):
        made_up.boundary(START)
        made_up.weights, made_up.optimizer = 100, 200
        for epoch in range(1, 41):
            made_up.boundary(Position(epoch, epoch))
    assert len(told.full) == 41
    assert len(blind.taken) < len(told.taken)
