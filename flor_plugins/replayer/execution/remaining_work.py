"""A task whose worker was lost: what is left of it, and what all its workers came to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flor_plugins.records import Grade, Position, ReplayPass, Task
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.verification.comparison import worse

Told = dict[str, Any]


def rest_of(task: Task, told: Sequence[Told]) -> Task:
    """The task without the passes, positions and stretches that were told as done: their rows
    are stored.

    Of a pass that did not end, the last part stays in any case: its end says how exact it was.
    """
    passes = [
        _rest_of(one, told)
        for one in task.passes
        if not any(_is_end_of(one, event) for event in told)
    ]
    return replace(task, passes=tuple(passes))


def together(
    task: Task, before: Sequence[Told], last: Outcome, stored: Mapping[Position, Grade]
) -> Outcome:
    """What became of a task whose earlier workers were lost.

    before: what those told. last: the result of the last one. stored: verdicts of the rows of
    this replay. Of a pass that two workers did a part of each, all epochs are shown with the
    worst grade, and the last one's seconds."""
    stretches = list(
        {
            (str(e["start"]), str(e["end"])): e for e in [*_of(before, "stretch"), *last.stretches]
        }.values()
    )
    passed = []
    for one in task.passes:
        its = next((e for e in [*last.passed, *_of(before, "passed")] if _is_end_of(one, e)), None)
        if its is not None:
            passed.append(_whole(one, its, stretches, stored))
    failures = dict.fromkeys(
        [*(e["message"] for e in _of(before, "hook_failed")), *last.hook_failures]
    )
    return replace(
        last, task=task, passed=passed, stretches=stretches, hook_failures=list(failures)
    )


def _rest_of(one: ReplayPass, told: Sequence[Told]) -> ReplayPass:
    if one.stretches:
        done = [(e["start"], e["end"]) for e in _of(told, "stretch")]
        left = [s for s in one.stretches if (_plain(s.start), _plain(s.end)) not in done]
        return replace(one, stretches=tuple(left) or one.stretches[-1:])
    places = {Position(e["epoch"], e["step"]) for e in _of(told, "position") if e["way"] == one.way}
    return replace(
        one, positions=tuple(p for p in one.positions if p not in places) or one.positions[-1:]
    )


def _is_end_of(one: ReplayPass, event: Told) -> bool:
    """Is it the end of this pass, or of what was left of it? Two passes of one way have no
    epoch in common.
    """
    return (
        event["event"] == "passed"
        and event["way"] == one.way
        and set(event["epochs"]) <= set(one.epochs)
    )


def _whole(
    one: ReplayPass, its: Told, stretches: Sequence[Told], stored: Mapping[Position, Grade]
) -> Told:
    if set(its["epochs"]) == set(one.epochs):
        return its
    ends = {(str(_plain(s.start)), str(_plain(s.end))) for s in one.stretches}
    grade = its["grade"]
    for part in [s["grade"] for s in stretches if (str(s["start"]), str(s["end"])) in ends]:
        grade = worse(grade, part)
    for position in () if one.stretches else one.positions:
        grade = worse(grade, stored.get(position, grade))
    return {**its, "epochs": list(one.epochs), "grade": grade}


def _of(told: Sequence[Told], kind: str) -> list[Told]:
    return [event for event in told if event["event"] == kind]


def _plain(position: Position) -> dict[str, int]:
    return {"epoch": position.epoch, "step": position.step}
