"""Records as JSON: what one process sends another, or writes into a file, is what is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.records import (
    BackportedEdit,
    Checkpoint,
    JsonObject,
    Plan,
    Position,
    ReplayPass,
    Task,
    TrainingRange,
    Verdict,
    from_json,
    to_json,
)

TEXTS = st.dictionaries(st.text(), st.text())
# NaN is left out: it is not equal to itself.
SECONDS = st.none() | st.floats(allow_nan=False)
PASSES = st.lists(st.builds(ReplayPass, seconds=SECONDS), max_size=3).map(tuple)
DIGESTS = st.dictionaries(st.text(), st.lists(st.none() | st.text(), max_size=2).map(tuple))
EDITS = st.none() | st.builds(BackportedEdit, sources=TEXTS, how=TEXTS)
TASKS = st.builds(Task, passes=PASSES, digests=DIGESTS, edit=EDITS)
PLANS = st.builds(Plan, tasks=st.lists(TASKS, max_size=2).map(tuple), skipped=TEXTS)


def through_json(data: JsonObject) -> JsonObject:
    return json.loads(json.dumps(data))


@given(TASKS)
def test_a_task_survives_its_json(task: Task) -> None:
    assert from_json(Task, to_json(task)) == task
    assert from_json(Task, through_json(to_json(task))) == task


@given(st.from_type(Verdict))
def test_a_verdict_survives_its_json(verdict: Verdict) -> None:
    assert from_json(Verdict, through_json(to_json(verdict))) == verdict


@given(PLANS)
def test_a_plan_is_read_from_the_json_that_people_see(plan: Plan) -> None:
    assert from_json(Plan, through_json(plan.to_json())) == plan


def test_the_keys_of_a_plan_stay_as_they_are() -> None:
    training = TrainingRange(Position(0, 0), Position(1, 4), (1,))
    replay_pass = ReplayPass("train", ("norm",), "why", stretches=(training,), seconds=2.0)
    task = Task("id", "name", "vid", (replay_pass,), {"norm": ("digest", None)})
    plan = Plan("now", ("norm",), None, ("hooks.py",), (task,), {"other": "why not"})
    assert through_json(plan.to_json()) == {
        "replay_id": "now",
        "metrics": ["norm"],
        "where": None,
        "hooks": ["hooks.py"],
        "skipped": {"other": "why not"},
        "seconds": 2.0,
        "tasks": [
            {
                "run_id": "id",
                "name": "name",
                "vid": "vid",
                "digests": {"norm": ["digest", None]},
                "edit": None,
                "methods": [],
                "passes": [
                    {
                        "way": "train",
                        "metrics": ["norm"],
                        "reason": "why",
                        "positions": [],
                        "stretches": [
                            {
                                "start": {"epoch": 0, "step": 0},
                                "end": {"epoch": 1, "step": 4},
                                "epochs": [1],
                            }
                        ],
                        "seconds": 2.0,
                        "steps": None,
                        "nbytes": None,
                        "epochs": [1],
                        "checkpoints": ["epoch=0,step=0"],
                    }
                ],
            }
        ],
    }


def test_a_missing_key_is_a_default_and_an_unknown_one_is_ignored() -> None:
    data = {"way": "state", "metrics": ["acc"], "reason": "", "of a later version": 1}
    assert from_json(ReplayPass, data) == ReplayPass("state", ("acc",), "")
    with pytest.raises(TypeError, match="path"):
        from_json(Checkpoint, {"run_id": "id", "position": {"epoch": 1, "step": 4}})


def test_read_strictly_an_unknown_key_of_a_nested_record_is_an_error_that_names_it() -> None:
    data = to_json(Task("r", "n", "v", (ReplayPass("state", ("acc",), "why", (Position(1, 2),)),)))
    data["passes"][0]["positions"][0]["spet"] = data["passes"][0]["positions"][0].pop("step")
    with pytest.raises(TypeError, match=r"spet is no field of .*Position"):
        from_json(Task, data, strict=True)
