"""From FlorDB's loops, which may have any name, to epochs and steps; a row for each place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from flor_plugins.recorder.importers.flordb.database import (
    LOGGED,
    PRINTED,
    TIMED,
    LoggedTraining,
    LoggedValue,
    LoopIteration,
)
from flor_plugins.records import JsonObject, Level, Position

_EPOCHS = re.compile(r"epoch", re.IGNORECASE)
_STEPS = re.compile(r"step|batch|iter", re.IGNORECASE)
_LENGTH = "time::iter::n"  # FlorDB 4 says how many iterations a loop had

OuterIterations = tuple[tuple[str, int], ...]  # the iterations of loops around the epochs
LogPlace = tuple[Position, Level]


@dataclass(frozen=True, slots=True)
class LoopRoles:
    """Which loop counts epochs, and which of those in it counts steps; None where there is none.

    outer: the names of loops around that of the epochs: each of their iterations is a training
    of its own.
    """

    epoch: str | None
    step: str | None
    outer: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PositionedTraining:
    """One training. lead: the iterations of loops around it. rows: source, then place, to values.

    params: what was logged before its loops, with `known` ones.
    """

    lead: OuterIterations
    params: Mapping[str, object]
    rows: Mapping[str, Mapping[LogPlace, JsonObject]]
    last: Position | None
    notes: tuple[str, ...]


@dataclass(slots=True)
class _ParsedLog:
    """A log, taken apart.

    epoch and step: indices from 0. side: it lies in a loop that is neither.
    """

    log: LoggedValue
    lead: OuterIterations
    epoch: int | None
    step: int | None
    side: bool


@dataclass(frozen=True, slots=True)
class _StepCounter:
    """starts: how many steps were done before each epoch, and in the end.

    Without a loop of steps an epoch is one.
    """

    starts: tuple[int, ...]

    @property
    def epochs(self) -> int:
        return len(self.starts) - 1

    def place_of(self, one: _ParsedLog) -> LogPlace:
        """Return the place of a logged value.

        In an epoch, but in none of its steps, is at its end; outside of the epochs is at the end of
        all.
        """
        if one.epoch is None or one.step is None:
            epochs = self.epochs if one.epoch is None else one.epoch + 1
            return Position(epochs, self.starts[epochs]), "epoch"
        step = self.starts[one.epoch] + one.step + 1
        return Position(one.epoch + (step == self.starts[one.epoch + 1]), step), "step"


def loops_of(
    training: LoggedTraining, epoch: str | None = None, step: str | None = None
) -> LoopRoles:
    """Find the loops of epochs and of steps.

    Of epochs: the loop with "epoch" in its name, else the outermost; of steps: in it the one with
    "step", "batch" or "iter", else the first.

    epoch, step: their names, where somebody says so.
    """
    paths = list(
        dict.fromkeys(tuple(one.name for one in log.path) for log in training.logs if log.path)
    )
    names = list(dict.fromkeys(name for path in paths for name in path))
    if epoch is None:
        epoch = next((name for name in names if _EPOCHS.search(name)), names[0] if names else None)
    inner = [path[path.index(epoch) + 1] for path in paths if epoch in path[:-1]]
    outer = frozenset(name for path in paths if epoch in path for name in path[: path.index(epoch)])
    if step is None:
        step = next((name for name in inner if _STEPS.search(name)), inner[0] if inner else None)
    return LoopRoles(epoch, step, outer)


def placed(
    training: LoggedTraining, loops: LoopRoles, known: Mapping[str, object]
) -> Iterator[PositionedTraining]:
    """The trainings in one process: one, or one for each iteration of the loops around the epochs.

    known: parameters, as far as FlorDB's commit says which values are some.
    """
    index = _IterationIndex(training)
    splits = [_split(log, loops, index) for log in training.logs if log.kind in (LOGGED, TIMED)]
    leads = list(dict.fromkeys(one.lead for one in splits if one.epoch is not None)) or [()]
    for lead in leads:
        # What was logged outside of the epochs belongs to all trainings that it is around.
        own = [
            one
            for one in splits
            if one.lead == (lead if one.epoch is not None else lead[: len(one.lead)])
        ]
        yield _placed(lead, own, known, [*training.notes, *_notes(training, loops, bool(lead))])


def _placed(
    lead: OuterIterations,
    own: Sequence[_ParsedLog],
    known: Mapping[str, object],
    notes: Sequence[str],
) -> PositionedTraining:
    clock = _clock(own)
    params = {**dict(lead), **known}
    rows: dict[str, dict[LogPlace, JsonObject]] = {}
    lists: dict[tuple[str, LogPlace, str], list[Any]] = {}
    has_begun, twice = False, set[str]()
    for one in own:
        log = one.log
        has_begun = has_begun or one.epoch is not None
        if log.kind != LOGGED or log.value is None:
            continue
        if (
            one.epoch is None
            and not one.side
            and (log.name in known or (clock.epochs and not has_begun))
        ):
            params.setdefault(log.name, log.value)
            continue
        place = clock.place_of(one)
        values = rows.setdefault(log.source, {}).setdefault(place, {})
        if one.side:
            values[log.name] = lists.setdefault((log.source, place, log.name), [])
            values[log.name].append(log.value)
        else:
            twice |= {log.name} & values.keys()
            values[log.name] = log.value
    described = [
        ("logged more than once at one place, of which the last counts", sorted(twice)),
        (
            "lists, a value for each iteration of an inner loop",
            sorted({name for _, _, name in lists}),
        ),
    ]
    last = max((place for of_source in rows.values() for place, _ in of_source), default=None)
    more = [f"{what}: {', '.join(names)}" for what, names in described if names]
    return PositionedTraining(lead, params, rows, last, (*notes, *more))


def _clock(own: Sequence[_ParsedLog]) -> _StepCounter:
    """Count the steps of each epoch.

    They are known from what was logged in them; FlorDB 4 also says how many iterations a loop had.

    An epoch that logged nothing in its steps had as many as the longest.
    """
    counts: dict[int, int] = {}
    for one in own:
        if one.epoch is not None and one.step is not None:
            counts[one.epoch] = max(one.step + 1, counts.get(one.epoch, 0))
    lengths: dict[int, list[int]] = {}
    for one in own:
        if one.log.name == _LENGTH and one.epoch is not None and one.step is None and not one.side:
            lengths.setdefault(one.epoch, []).append(int(one.log.value))
    for epoch, found in lengths.items():
        if len(found) == 1 and counts:  # of two loops in an epoch nobody says which had how many
            counts[epoch] = max(found[0], counts.get(epoch, 0))
    usual = max(counts.values(), default=1)
    epochs = max((one.epoch + 1 for one in own if one.epoch is not None), default=0)
    return _StepCounter(
        tuple(accumulate((counts.get(epoch, usual) for epoch in range(epochs)), initial=0))
    )


class _IterationIndex:
    """The iterations of loops, counted from 0."""

    def __init__(self, training: LoggedTraining) -> None:
        segments = [one for log in training.logs for one in log.path if one.iteration is not None]
        lowest: dict[str, int] = {}
        for one in segments:
            lowest[one.name] = min(one.iteration or 0, lowest.get(one.name, one.iteration or 0))
        # `flor.iteration` takes what number it is given: where there is a 0, it counts from 0.
        self._first = {name: min(training.first, max(low, 0)) for name, low in lowest.items()}
        self._unnumbered: dict[str, dict[str | None, int]] = {}

    def of(self, one: LoopIteration) -> int:
        if one.iteration is not None:
            return max(0, one.iteration - self._first[one.name])
        seen = self._unnumbered.setdefault(one.name, {})
        return seen.setdefault(one.value, len(seen))


def _split(log: LoggedValue, loops: LoopRoles, index: _IterationIndex) -> _ParsedLog:
    names = [one.name for one in log.path]
    if loops.epoch in names:
        at = names.index(loops.epoch)
        lead = tuple((one.name, index.of(one)) for one in log.path[:at])
        has_step = names[at + 1 : at + 2] == [loops.step]
        step = index.of(log.path[at + 1]) if has_step else None
        return _ParsedLog(log, lead, index.of(log.path[at]), step, len(names) > at + 1 + has_step)
    count = next((place for place, name in enumerate(names) if name not in loops.outer), len(names))
    lead = tuple((one.name, index.of(one)) for one in log.path[:count])
    return _ParsedLog(log, lead, None, None, len(names) > count)


def _notes(training: LoggedTraining, loops: LoopRoles, is_part: bool) -> Iterator[str]:
    if loops.epoch is not None:
        steps = (
            f", {loops.step!r} the steps" if loops.step else ", and the step is the count of epochs"
        )
        yield f"the loop {loops.epoch!r} counts the epochs{steps}"
    if is_part:
        yield f"each iteration of {', '.join(sorted(loops.outer))} is a run of its own"
    printed = sum(log.kind == PRINTED for log in training.logs)
    if printed:
        yield f"{printed} printed lines were left out"
