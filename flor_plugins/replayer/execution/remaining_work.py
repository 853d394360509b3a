"""A task whose worker was lost: what is left of it, and what all its workers came to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from flor_plugins.records import Grade, Position, ReplayPass, Task, TrainingRange
from flor_plugins.records.events import (
    Event,
    HookFailure,
    PassResult,
    PositionResult,
    RangeResult,
)
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.verification.comparison import worse

EventT = TypeVar("EventT", bound=Event)


def rest_of(task: Task, events: Sequence[Event]) -> Task:
    """Return the task without what was told as done: the rows of that are stored.

    Of a pass that did not end, the last part stays in any case: its end says how exact it was.
    """
    results = _of(events, PassResult)
    passes = [
        _rest_of(replay_pass, events)
        for replay_pass in task.passes
        if not any(result.is_end_of(replay_pass) for result in results)
    ]
    return replace(task, passes=tuple(passes))


def together(
    task: Task, before: Sequence[Event], last: Outcome, stored: Mapping[Position, Grade]
) -> Outcome:
    """Return what became of a task whose earlier workers were lost.

    before: what those told. last: the result of the last one. stored: verdicts of the rows of
    this replay. Of a pass that two workers did a part of each, all epochs are shown with the
    worst grade, and the last one's seconds.
    """
    ranges = {result.range: result for result in [*_of(before, RangeResult), *last.stretches]}
    ends = [*last.passed, *_of(before, PassResult)]
    passed = [
        _whole(replay_pass, result, ranges, stored)
        for replay_pass in task.passes
        for result in [end for end in ends if end.is_end_of(replay_pass)][:1]
    ]
    messages = [failure.message for failure in _of(before, HookFailure)]
    failures = list(dict.fromkeys([*messages, *last.hook_failures]))
    return replace(
        last, task=task, passed=passed, stretches=list(ranges.values()), hook_failures=failures
    )


def _rest_of(replay_pass: ReplayPass, events: Sequence[Event]) -> ReplayPass:
    if ranges := replay_pass.stretches:
        trained = {result.range for result in _of(events, RangeResult)}
        left = tuple(span for span in ranges if span not in trained)
        return replace(replay_pass, stretches=left or ranges[-1:])
    done = {
        result.position for result in _of(events, PositionResult) if result.way == replay_pass.way
    }
    positions = tuple(position for position in replay_pass.positions if position not in done)
    return replace(replay_pass, positions=positions or replay_pass.positions[-1:])


def _whole(
    replay_pass: ReplayPass,
    result: PassResult,
    ranges: Mapping[TrainingRange, RangeResult],
    stored: Mapping[Position, Grade],
) -> PassResult:
    if set(result.epochs) == set(replay_pass.epochs):
        return result
    grade = result.verdict.grade
    for span in replay_pass.stretches:
        if span in ranges:
            grade = worse(grade, ranges[span].verdict.grade)
    for position in () if replay_pass.stretches else replay_pass.positions:
        grade = worse(grade, stored.get(position, grade))
    return replace(result, epochs=replay_pass.epochs, verdict=replace(result.verdict, grade=grade))


def _of(events: Sequence[Event], kind: type[EventT]) -> list[EventT]:
    return [event for event in events if isinstance(event, kind)]
