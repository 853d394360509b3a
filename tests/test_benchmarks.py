"""The benchmarks: what their statistics say, and that each of them runs and answers.

No test asserts a time.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import memory, stall
from tests.benchmarks.interference import Segment
from tests.benchmarks.ratios import (
    Aim,
    Interval,
    alternate,
    interval,
    judge,
    orders,
    pair_ratios,
    quantile,
    slope,
)
from tests.benchmarks.report import Figure, table
from tests.benchmarks.turns import Turn, Turns, interleave

pytestmark = pytest.mark.xdist_group("benchmarks")

FIGURE = {"name", "aim", "ratio", "ci", "control", "verdict", "n"}
MACHINE = {"cores", "torch_threads"}
QUICK = {
    "overhead": ["--pairs", "3"],
    "stall": ["--pairs", "2", "--savers", "AsyncCheckpointIO"],
    "interference": ["--pairs", "3"],
    "restore": ["--pairs", "3", "--epochs", "2"],
    "memory": ["--minutes", "0.05", "--seconds", "0.5"],
    "passes": ["--pairs", "2"],
    "replay": ["--pairs", "1", "--epochs", "1", "--runs", "2"],
}
LONG = {"replay"}  # trains in processes of their own

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
still = Interval(1.0, 0.999, 1.001, 11)


# ---- statistics


@given(values)
def test_a_median_lies_in_its_interval_and_the_interval_in_the_values(found):
    one = interval(found)
    assert min(found) <= one.low <= one.middle <= one.high <= max(found)
    assert one.n == len(found)


@pytest.mark.parametrize(
    ("n", "outside"), [(1, 0), (5, 0), (6, 0), (9, 1), (11, 1), (12, 2), (20, 5), (40, 13)]
)
def test_an_interval_leaves_out_as_many_values_as_the_sign_test_allows(n, outside):
    one = interval(list(map(float, range(n))))
    assert (one.low, one.high) == (outside, n - 1 - outside)


@given(st.integers(6, 200))
def test_the_median_is_inside_with_the_confidence_asked_for(n):
    outside = int(interval(list(map(float, range(n)))).low)
    covered = 1 - 2 * sum(math.comb(n, k) for k in range(outside + 1)) / 2**n
    assert covered >= 0.95


@pytest.mark.parametrize("found", [[], [1.0, math.nan], [math.inf]])
def test_values_that_are_none_or_not_finite_have_no_interval(found):
    with pytest.raises(ValueError, match="finite"):
        interval(found)


def test_pairs_must_be_pairs():
    assert pair_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        pair_ratios([1.0], [1.0, 2.0])


@given(st.lists(st.text(max_size=3), min_size=1, max_size=5, unique=True), st.integers(1, 6))
def test_each_round_has_each_variant_once_and_the_next_goes_backward(names, rounds):
    found = orders(names, rounds)
    assert len(found) == rounds and found[0] == names
    assert all(second == first[::-1] for first, second in pairwise(found))


def test_variants_are_called_in_alternating_order_and_their_answers_kept_by_round():
    called: list[str] = []
    numbers: Iterator[int] = iter(range(9))

    def variant(name: str) -> int:
        called.append(name)
        return next(numbers)

    found = alternate({"a": lambda: variant("a"), "b": lambda: variant("b")}, 3)
    assert "".join(called) == "abbaab"
    assert found == {"a": [0, 3, 4], "b": [1, 2, 5]}


@pytest.mark.parametrize(
    ("figure", "aim", "control", "verdict"),
    [
        (Interval(1.001, 1.0, 1.004, 11), Aim(1.005), still, "met"),
        (Interval(1.02, 1.01, 1.03, 11), Aim(1.005), still, "missed"),
        (Interval(1.004, 1.001, 1.009, 11), Aim(1.005), still, "inconclusive"),  # the aim is inside
        (
            Interval(1.001, 1.0, 1.004, 11),
            Aim(1.005),
            Interval(1.0, 0.99, 1.01, 11),
            "inconclusive",
        ),
        (Interval(1.02, 1.01, 1.03, 11), Aim(1.005), Interval(1.0, 0.98, 1.02, 11), "inconclusive"),
        (Interval(1.001, 1.0, 1.004, 10), Aim(1.005), still, "inconclusive"),  # too few pairs
        (Interval(0.8, 0.7, 1.1, 11), Aim(1.2, 0.0), Interval(0.0, -0.1, 0.2, 11), "met"),
        (Interval(0.8, 0.7, 1.1, 11), Aim(1.2, 0.0), Interval(1.0, -0.1, 2.0, 11), "inconclusive"),
    ],
)
def test_an_aim_is_met_or_missed_only_where_the_control_is_narrower_than_the_effect(
    figure, aim, control, verdict
):
    assert judge(figure, aim, control) == verdict


@given(values, st.floats(0.01, 1.0))
def test_a_quantile_is_a_value_that_its_share_does_not_exceed(found, share):
    one = quantile(found, share)
    assert one in found
    assert sum(other <= one for other in found) >= share * len(found) - 1e-9


def test_a_slope_is_that_of_the_line_and_none_at_one_moment():
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([1, 1], [0, 9]) == 0


# ---- what is made of step times


def test_what_is_lost_is_all_time_above_the_undisturbed_median_from_one_checkpoint_to_the_next():
    every = 9
    steps = [1.0] * (4 * every - 2)
    for at, extra in ((8, 5.0), (17, 2.0), (18, 0.5), (26, 1.0)):
        steps[at] += extra
    found = stall.losses(steps, every)
    assert [one.total for one in found] == pytest.approx([5.0, 2.5, 1.0])
    assert [one.longest for one in found] == pytest.approx([5.0, 2.0, 1.0])
    assert {one.undisturbed for one in found} == {1.0}


def test_a_fit_that_saves_nothing_loses_nothing():
    assert [one.total for one in stall.losses([0.25] * 46, 12)] == [0.0, 0.0, 0.0]


class Steps:
    """A training of some steps, each of which says who makes it."""

    def __init__(
        self, epochs: int, steps: int, said: list[str], fails_at: int | None = None
    ) -> None:
        self.epochs, self.steps, self.said, self.fails_at = epochs, steps, said, fails_at

    def __call__(self, turns: Turns, name: str) -> None:
        model = torch.nn.Identity()

        def train() -> None:
            for step in range(self.epochs * self.steps):
                if step == self.fails_at:
                    raise ValueError(f"{name} failed")
                model(0)
                self.said.append(name)

        Turn(turns, name, self.steps).run(model, train)


def test_trainings_take_turns_in_the_middle_of_their_epochs_and_stand_still_meanwhile():
    said: list[str] = []
    rounds, steps = 4, 6
    found = interleave(
        {name: partial(Steps(rounds + 1, steps, said), name=name) for name in "ab"}, rounds
    )
    turns = [(name, len(list(group))) for name, group in groupby(said)]
    # who ends a round begins the next one; the first turns and the last ones are halves
    assert turns == [("a", 3), ("b", 9), ("a", 12), ("b", 12), ("a", 12), ("b", 6 + 3), ("a", 3)]
    assert {name: len(one.epochs) for name, one in found.items()} == {"a": rounds, "b": rounds}


def test_turns_of_a_part_of_an_epoch_change_away_from_its_beginning_and_add_up_to_epochs():
    said: list[str] = []
    rounds, steps, parts = 3, 10, 5
    found = interleave(
        {name: partial(Steps(rounds + 1, steps, said), name=name) for name in "ab"}, rounds, parts
    )
    turns = [(name, len(list(group))) for name, group in groupby(said)]
    # changes before steps 1, 3, 5, 7 and 9 of each epoch; who ends a round begins the next one
    assert (
        turns[:3] == [("a", 1), ("b", 1 + 2), ("a", 2 + 2)]
        and said.count("a") == said.count("b") == 40
    )
    assert {name: len(one.epochs) for name, one in found.items()} == {"a": rounds, "b": rounds}


def state_of(pid: int, not_yet: str) -> str:
    """One letter (proc(5)); a signal takes a moment to be heard."""
    end = time.monotonic() + 10
    while (
        letter := Path(f"/proc/{pid}/stat").read_text().split()[2]
    ) in not_yet and time.monotonic() < end:
        time.sleep(0.001)
    return letter


def test_who_works_for_a_training_is_stopped_while_others_have_their_turn_and_is_never_left_so():
    helper = subprocess.Popen(["sleep", "60"])
    states: list[str] = []

    def other(turns: Turns, name: str) -> None:
        for turn in range(8):
            turns.wait(name)
            if turn:
                states.append(state_of(helper.pid, not_yet="RS"))
            turns.pass_on()
        raise ValueError("failed")

    def helped(turns: Turns, name: str) -> None:
        model = torch.nn.Identity()
        tell = partial(os.kill, helper.pid)
        turn = Turn(
            turns, name, 4, rest=lambda: tell(signal.SIGSTOP), go_on=lambda: tell(signal.SIGCONT)
        )
        turn.run(model, lambda: [model(0) for _ in range(40)])

    try:
        with pytest.raises(ValueError, match="failed"):
            interleave(
                {"other": partial(other, name="other"), "helped": partial(helped, name="helped")}, 9
            )
        assert states == 7 * ["T"] and state_of(helper.pid, not_yet="RT") == "S"
    finally:
        helper.kill()
        helper.wait()


def test_a_training_that_fails_ends_those_that_wait_for_it_and_is_what_is_raised():
    said: list[str] = []
    trainings = {"a": Steps(3, 4, said), "b": Steps(3, 4, said, fails_at=5), "c": Steps(3, 4, said)}
    with pytest.raises(ValueError, match="b failed"):
        interleave({name: partial(one, name=name) for name, one in trainings.items()}, 2)
    assert not [one for one in threading.enumerate() if one.name in trainings]


def test_steps_that_are_written_in_are_told_from_those_that_are_copied_in():
    one = Segment((1.0, 2.0, 3.0, 4.0), (False, True, True, False), (False, True, False, False))
    assert one.written() == [2.0, 3.0]
    assert one.written(and_copied=False) == [3.0]
    assert Segment((1.0, 2.0), (False, False), (False, False)).written() == [1.0, 2.0]


def test_memory_of_a_process_that_has_ended_is_none():
    assert memory.field(2**22 + 1, "status", "VmRSS") == 0
    assert list(memory.descendants(2**22 + 1)) == []


# ---- how it is told


def test_a_figure_without_an_aim_has_no_verdict():
    assert Figure("told", still, still).plain()["verdict"] is None
    assert Figure("held", still, still, Aim(1.1)).plain()["verdict"] == "met"


def test_a_table_has_columns_of_one_width():
    assert table(("a", "bb"), [("ccc", "1")]) == "a    bb\nccc   1"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in QUICK]
)
def test_a_benchmark_ends_in_one_line_of_json_with_its_figures_and_the_machine(
    name, tmp_path, capfd
):
    arguments = ["--scale", "tiny", "--folder", str(tmp_path), *QUICK[name]]
    import_module(f"tests.benchmarks.{name}").main(arguments)
    said = capfd.readouterr()
    *head, last = said.out.strip().splitlines()
    line = json.loads(last)
    assert line["benchmark"] == name
    assert line["figures"] and all(one.keys() == FIGURE for one in line["figures"])
    assert all(one["verdict"] in ("met", "missed", "inconclusive", None) for one in line["figures"])
    assert any(one["verdict"] for one in line["figures"])
    assert line["machine"].keys() >= MACHINE
    assert any(text.startswith("figure") for text in head)
    assert "flor:" not in said.err  # nothing went wrong while recording
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(240)
def test_with_a_budget_the_first_epochs_do_not_count(tmp_path, capfd):
    import_module("tests.benchmarks.overhead").main(
        ["--scale", "tiny", "--folder", str(tmp_path), "--pairs", "2", "--budget", "1"]
    )
    line = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert line["figures"][0]["n"] == 2 and {
        len(one) for one in line["details"]["epochs_s"].values()
    } == {2}
    # the first, three epochs, two that count, the last
    assert line["details"]["checkpoints"] == [
        7,
        7,
    ]


def test_a_saver_that_does_not_exist_is_named(capsys):
    with pytest.raises(SystemExit):
        stall.main(["--savers", "floor"])
    assert "floor" in capsys.readouterr().err
