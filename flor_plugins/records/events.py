"""What a worker says of its task, one event a line, and what its request adds to that.

The lines are JSON. Their keys are what the `progress` of `flor.replay` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flor_plugins.records.json_form import JsonObject, from_json, to_json
from flor_plugins.records.plan import ReplayPass, TrainingRange, Verdict
from flor_plugins.records.run import Grade, Position, Strategy


@dataclass(frozen=True, slots=True)
class PassStart:
    """A pass begins. epochs: those that it answers for."""

    way: Strategy
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PassResult:
    """A pass has ended."""

    way: Strategy
    epochs: tuple[int, ...]
    seconds: float
    verdict: Verdict

    def is_end_of(self, replay_pass: ReplayPass) -> bool:
        """Say whether it ends that pass, or what was left of it.

        Two passes of one way have no epoch in common.
        """
        return self.way == replay_pass.way and set(self.epochs) <= set(replay_pass.epochs)


@dataclass(frozen=True, slots=True)
class RangeResult:
    """A range was trained again. causes: of its divergence, the most likely first."""

    range: TrainingRange
    verdict: Verdict
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PositionResult:
    """A position of the present pass has its values. way: "" outside of a pass."""

    position: Position
    way: str


@dataclass(frozen=True, slots=True)
class WeightResult:
    """The weights at a position were compared with the checkpoint there."""

    position: Position
    verdict: Grade


@dataclass(frozen=True, slots=True)
class HookFailure:
    """A hook raised, or gave what can't be stored; the replay goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """The worker ends with an error. at: seconds since 1970. traceback: of what is no FlorError."""

    at: float
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """The worker has done its task."""


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """A worker was killed, and another one does the rest."""

    message: str


@dataclass(frozen=True, slots=True)
class WorkerPlacement:
    """The task has come to a process of a cluster. process: its host and pid."""

    process: Mapping[str, str | int]


Event = (
    PassStart
    | PassResult
    | RangeResult
    | PositionResult
    | WeightResult
    | HookFailure
    | WorkerFailure
    | WorkerEnd
    | WorkerLoss
    | WorkerPlacement
)
# After these the rows of what they tell are in the journal.
ROWS_STORED = (PositionResult, RangeResult, PassResult)

_KINDS: dict[str, type[Event]] = {
    "pass": PassStart,
    "passed": PassResult,
    "stretch": RangeResult,
    "position": PositionResult,
    "weights": WeightResult,
    "hook_failed": HookFailure,
    "failed": WorkerFailure,
    "done": WorkerEnd,
    "lost": WorkerLoss,
    "placed": WorkerPlacement,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_json(event: Event) -> JsonObject:
    """Return the fields of an event, its kind as `event`; the fields of records in it lie flat."""
    flat: JsonObject = {"event": _NAMES[type(event)]}
    for name, value in to_json(event).items():
        if isinstance(value, dict) and name != "process":
            flat.update(value)
        elif value is not None:
            flat[name] = value
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def event_from_json(data: JsonObject) -> Event:
    """Return the event that `event_to_json` made this of. Raises KeyError for another kind."""
    match data["event"]:
        case "passed":
            verdict = from_json(Verdict, data)
            return PassResult(data["way"], tuple(data["epochs"]), data["seconds"], verdict)
        case "stretch":
            trained, verdict = from_json(TrainingRange, data), from_json(Verdict, data)
            return RangeResult(trained, verdict, tuple(data["causes"]))
        case "position":
            return PositionResult(from_json(Position, data), data["way"])
        case "weights":
            return WeightResult(from_json(Position, data), data["verdict"])
        case kind:
            return from_json(_KINDS[kind], data)
