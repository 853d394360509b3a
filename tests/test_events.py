"""What a worker says goes over the wire and comes back as it was, under the keys that `progress`
is given.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.records import Position, TrainingRange, Verdict
from flor_plugins.records.events import (
    Event,
    HookFailure,
    PassResult,
    PassStart,
    PositionResult,
    RangeResult,
    WeightResult,
    WorkerEnd,
    WorkerFailure,
    WorkerLoss,
    WorkerPlacement,
    event_from_json,
    event_to_json,
)

numbers = st.integers(0, 2**40)
positions = st.builds(Position, numbers, numbers)
epochs = st.lists(numbers, max_size=4).map(tuple)
ways = st.sampled_from(["state", "validate", "train"])
grades = st.sampled_from(["unverified", "exact", "close", "diverged"])
seconds = st.floats(0, allow_nan=False, allow_infinity=False)
verdicts = st.builds(Verdict, grades, numbers, st.none() | positions, st.text())
ranges = st.builds(TrainingRange, positions, positions, epochs)
events = st.one_of(
    st.builds(PassStart, ways, epochs),
    st.builds(PassResult, ways, epochs, seconds, verdicts),
    st.builds(RangeResult, ranges, verdicts, st.lists(st.text()).map(tuple)),
    st.builds(PositionResult, positions, ways),
    st.builds(WeightResult, positions, grades),
    st.builds(HookFailure, st.text()),
    st.builds(WorkerFailure, seconds, st.text(), st.none() | st.text()),
    st.just(WorkerEnd()),
    st.builds(WorkerLoss, st.text()),
    st.builds(WorkerPlacement, st.fixed_dictionaries({"host": st.text(), "pid": numbers})),
)


@given(events)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event


@given(events)
def test_progress_is_given_what_the_line_holds(event: Event) -> None:
    given_to_progress = event_to_json(event)
    assert json.loads(json.dumps(given_to_progress)) == given_to_progress


@given(positions, verdicts, epochs)
def test_the_keys_are_those_of_the_first_version(
    position: Position, verdict: Verdict, touched: tuple[int, ...]
) -> None:
    place, judged = asdict(position), asdict(verdict)
    span = TrainingRange(position, position, touched)
    ends = {"start": place, "end": place, "epochs": list(touched)}
    expected = {
        PassStart("state", touched): {"event": "pass", "way": "state", "epochs": list(touched)},
        PassResult("train", touched, 1.5, verdict): {
            "event": "passed", "way": "train", "epochs": list(touched), "seconds": 1.5, **judged,
        },
        RangeResult(span, verdict, ("why",)): {
            "event": "stretch", **ends, **judged, "causes": ["why"],
        },
        PositionResult(position, "state"): {"event": "position", **place, "way": "state"},
        WeightResult(position, "exact"): {"event": "weights", **place, "verdict": "exact"},
        HookFailure("m"): {"event": "hook_failed", "message": "m"},
        WorkerFailure(2.5, "m"): {"event": "failed", "at": 2.5, "message": "m"},
        WorkerFailure(2.5, "m", "t"): {
            "event": "failed", "at": 2.5, "message": "m", "traceback": "t",
        },
        WorkerEnd(): {"event": "done"},
        WorkerLoss("m"): {"event": "lost", "message": "m"},
    }  # fmt: skip
    for event, line in expected.items():
        assert event_to_json(event) == line
        assert list(event_to_json(event)) == list(line)
    process = {"host": "h", "pid": 7}
    assert event_to_json(WorkerPlacement(process)) == {"event": "placed", "process": process}
