"""Where a run has been, and the least training that leads through a set of positions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import NoCheckpoint, UnknownRun
from flor_plugins.records import Checkpoint, Launch, Position, RecordingProcess, Run
from flor_plugins.replayer.planning.training_ranges import (
    count_steps,
    nearest_start,
    ranges_between_checkpoints,
    ranges_through,
)
from flor_plugins.store.query.references import RunReference, checkpoint_at, parse_reference
from flor_plugins.store.run_index import RunIndex, RunProgress

RUN = Run(
    "20261123-200501-123-9f3a2c",
    "bert",
    "p",
    "hf",
    "finished",
    "",
    Launch("script", "t"),
    None,
    RecordingProcess("h", 1, "2"),
    Path("/nowhere"),
)


def checkpoint(position: Position) -> Checkpoint:
    return Checkpoint(RUN.run_id, position, Path("/nowhere"), True, 1, (), ("model", "optimizer"))


@st.composite
def places(draw: st.DrawFn) -> RunIndex:
    """A run of some epochs with checkpoints at its beginning and anywhere else."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    ends, every = {0: 0}, [Position(0, 0)]
    for epoch, length in enumerate(lengths, start=1):
        begin = ends[epoch - 1]
        every += [Position(epoch - 1, step) for step in range(begin + 1, begin + length)]
        ends[epoch] = begin + length
        every.append(Position(epoch, begin + length))
    saved = sorted({Position(0, 0), *draw(st.lists(st.sampled_from(every)))})
    return RunIndex(
        RUN, RunProgress(ends, every[-1]), {one: checkpoint(one) for one in saved}, tuple(saved)
    )


@given(places(), st.data())
def test_stretches_lead_through_every_wanted_position_once_and_from_the_nearest_checkpoint(
    found: RunIndex, data: st.DataObject
) -> None:
    steps = data.draw(st.sets(st.integers(1, found.last.step)))
    wanted = [found.at_step(step) for step in steps]
    stretches = ranges_through(found, wanted)
    for position in wanted:
        through = [one for one in stretches if one.start < position <= one.end]
        assert [one.start for one in through] == [
            max(start for start in found.starts if start < position)
        ]
        assert found.epoch_of(position) in through[0].epochs
    assert all(one.end in wanted for one in stretches), "no step more than wanted"


@given(places())
def test_intervals_cover_the_whole_run_without_a_gap(found: RunIndex) -> None:
    intervals = ranges_between_checkpoints(found)
    assert intervals[0].start == Position(0, 0)
    assert intervals[-1].end == found.last
    assert all(a.end == b.start for a, b in pairwise(intervals))
    assert count_steps(intervals) == found.last.step
    assert {epoch for one in intervals for epoch in one.epochs} == set(
        range(1, max(found.ends) + 1)
    )


@given(places())
def test_a_step_has_one_position_and_belongs_to_the_epoch_that_makes_it(found: RunIndex) -> None:
    for step in range(1, found.last.step + 1):
        position = found.at_step(step)
        epoch = found.epoch_of(position)
        assert found.ends[epoch - 1] < step <= found.ends[epoch]
        assert (position.epoch == epoch) == (step == found.ends[epoch])


@given(places())
def test_whole_epochs_begin_at_an_epochs_end(found: RunIndex) -> None:
    wanted = [found.end_of(epoch) for epoch in found.ends if epoch]
    for one in ranges_through(found, wanted, whole=True):
        assert found.ends[one.start.epoch] == one.start.step


def test_what_was_never_reached_is_told_with_what_was() -> None:
    found = RunIndex(RUN, RunProgress({0: 0, 1: 4}, Position(1, 4)), {})
    with pytest.raises(NoCheckpoint, match="asked for epoch 3; it completed 0, 1"):
        found.end_of(3)
    with pytest.raises(NoCheckpoint, match="asked for step 9; it made 4"):
        found.at_step(9)
    with pytest.raises(NoCheckpoint, match="no checkpoint before epoch=1,step=4"):
        nearest_start(found, Position(1, 4))


def test_a_name_may_hold_an_at() -> None:
    assert parse_reference("me@home") == RunReference("me@home")
    assert parse_reference("me@home@step=3") == RunReference("me@home", step=3)


@given(
    st.builds(
        RunReference,
        st.from_regex(r"[\w./@-]*\w", fullmatch=True),
        epoch=st.none(),
        step=st.integers(0),
    )
)
def test_a_reference_survives_being_written_and_read(reference: RunReference) -> None:
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["bert@epoch", "bert@epoch=-1", "bert@batch=3", "@step=3", "bert@step=x"]
)
def test_what_is_no_place_of_a_run_is_told(text: str) -> None:
    with pytest.raises(UnknownRun, match="RUN@epoch=3 or RUN@step=1200"):
        parse_reference(text)


def test_a_checkpoint_is_found_by_its_epoch_or_its_step() -> None:
    known = [
        checkpoint(one) for one in (Position(0, 0), Position(0, 3), Position(1, 6), Position(1, 9))
    ]
    assert checkpoint_at(RUN, known, RunReference("bert")).position == Position(1, 9)
    assert checkpoint_at(RUN, known, RunReference("bert", step=3)).position == Position(0, 3)
    assert checkpoint_at(RUN, known, RunReference("bert", epoch=1)).position == Position(1, 6)
    with pytest.raises(NoCheckpoint, match="at step=4; it has epoch=0,step=0; epoch=0,step=3"):
        checkpoint_at(RUN, known, RunReference("bert", step=4))
