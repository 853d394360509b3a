"""Where a predicate holds in one run, and which values are missing to say so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flor_plugins.hooks.hook_files import DeclaredHook
from flor_plugins.records import Level, Position, Run
from flor_plugins.replayer.planning.epoch_selection import epochs_of
from flor_plugins.replayer.planning.metric_sources import known_by
from flor_plugins.replayer.planning.missing import RunKnowledge, holding, read_knowledge
from flor_plugins.replayer.planning.recorded_values import HookDigests, of_today
from flor_plugins.replayer.searching.bisection import PredicateValue
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.query.dataframe import FIXED, metric_names, positions
from flor_plugins.store.run_index import RunIndex

if TYPE_CHECKING:
    from flor_plugins.store.query.where import WhereExpression


@dataclass(frozen=True, slots=True)
class Predicate:
    """A predicate, and which of its names hooks compute.

    at_steps: those of them that are of each update.
    """

    when: WhereExpression
    metrics: tuple[str, ...] = ()
    at_steps: frozenset[str] = frozenset()
    digests: HookDigests = field(default_factory=dict)

    @classmethod
    def of(cls, when: WhereExpression, hooks: Sequence[DeclaredHook]) -> Predicate:
        """Find which names of an expression the hooks compute."""
        names = metric_names(when.names)
        own = {hook.name: hook for hook in hooks if hook.kind == "metric" and hook.name in names}
        at_steps = frozenset(name for name, hook in own.items() if hook.way == "train")
        digests = {name: known_by(hook) for name, hook in own.items()}
        return cls(when, tuple(own), at_steps, digests)


@dataclass(frozen=True, slots=True)
class EpochUnit:
    """An epoch, by the count that is reached when it is complete.

    truth: does it hold anywhere in it? None: values are missing for that. at: the first place
    where it holds.
    missing: the epochs in which they are to be computed. lacking: values are missing and can't
    be computed.
    """

    epoch: int
    truth: PredicateValue
    at: Position | None
    missing: frozenset[int]
    lacking: bool


@dataclass(frozen=True, slots=True)
class PredicateScan:
    """A run as it is known now. level: of the places at which the predicate is asked for."""

    units: tuple[EpochUnit, ...]
    level: Level


def look(
    run: Run, sought: Predicate, epochs: str | Sequence[int], given_up: Collection[int] = ()
) -> PredicateScan:
    """Read the journals of a run, and say for each of its epochs what they say.

    epochs: as `epochs_of` reads them.
    """
    known = read_knowledge(run, metric_names(sought.when.names), sought.digests)
    places = known.places
    level = _level(known, sought)
    candidates = _candidates(places, level, epochs)
    every = [one for ones in candidates.values() for one in ones]
    possible = set(every)
    for part in sought.when.parts:
        if not metric_names(part.names) & set(sought.metrics):
            possible &= holding(known, part, every, level)
    holds = holding(known, sought.when, every, level)
    units = (
        _unit(epoch, ones, possible, holds, known, sought, given_up)
        for epoch, ones in candidates.items()
    )
    return PredicateScan(tuple(units), level)


def _level(known: RunKnowledge, sought: Predicate) -> Level:
    if sought.at_steps:
        return "step"
    names = metric_names(sought.when.names) - set(sought.metrics)
    is_fine = any(
        row.level == "step" and row.phase != "test" and names & row.values.keys()
        for _, row in known.rows
    )
    return "step" if is_fine else "epoch"


def _candidates(
    places: RunIndex, level: Level, epochs: str | Sequence[int]
) -> dict[int, list[Position]]:
    """Return the places at which the predicate is asked for, by their epoch, ascending.

    The last epoch may be unfinished.
    """
    asked = None if epochs == "all" else set(epochs_of(epochs, places.ends))
    found: dict[int, list[Position]] = {}
    ends = (places.end_of(epoch) for epoch in sorted(places.ends) if epoch > 0)
    for one in places.steps if level == "step" else ends:
        epoch = places.epoch_of(one)
        if asked is None or epoch in asked:
            found.setdefault(epoch, []).append(one)
    return found


def _unit(
    epoch: int,
    candidates: Sequence[Position],
    possible: Collection[Position],
    holds: Collection[Position],
    known: RunKnowledge,
    sought: Predicate,
    given_up: Collection[int],
) -> EpochUnit:
    missing: set[int] = set()
    is_lacking = False
    at: Position | None = None
    for candidate in candidates:
        needed = _needed(candidate, known.places, sought) if candidate in possible else set()
        absent = needed - known.present
        computable = {
            (name, position)
            for name, position in absent
            if _is_computable(known.places, position, given_up, at_step=name in sought.at_steps)
        }
        is_lacking |= computable < absent
        missing |= {known.places.epoch_of(position) for _, position in computable}
        if not missing and at is None and candidate in holds:
            at = candidate
    truth = None if missing and at is None else at is not None
    return EpochUnit(epoch, truth, at, frozenset(missing), is_lacking)


def _is_computable(
    places: RunIndex, position: Position, given_up: Collection[int], *, at_step: bool
) -> bool:
    """Tell whether a checkpoint lies at a position, or training leads there."""
    epoch = places.epoch_of(position)
    if epoch not in places.ends or epoch in given_up:
        return False
    is_saved = not at_step and position in places.saved
    return is_saved or (bool(places.starts) and places.starts[0] < position)


def _needed(one: Position, places: RunIndex, sought: Predicate) -> set[tuple[str, Position]]:
    """The values that decide at a place.

    Those of an epoch's end stand on all of its steps: see `Track.at_steps`.
    """
    found: set[tuple[str, Position]] = set()
    for name in sought.metrics:
        if name in sought.at_steps:
            found.add((name, one))
        elif one.epoch in places.ends:
            found.add((name, places.end_of(one.epoch)))
    return found


def values_at(run: Run, sought: Predicate, level: Level, position: Position) -> dict[str, object]:
    """What the names of the predicate are at a place."""
    rows = of_today(read_run(run.path, metric_names(sought.when.names)), sought.digests)
    names = [name for name in sought.when.names if name not in FIXED]
    for cells in positions(run, names, level, rows).to_dict("records"):
        if cells["epoch"] == position.epoch and (
            level == "epoch" or cells["step"] == position.step
        ):
            return {str(name): cells[name] for name in names}
    return {}
