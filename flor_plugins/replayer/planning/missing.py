"""Where values are missing: positions at which a metric was asked for, the predicate holds,
and nothing is there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flor_plugins.records import Level, Position, Strategy
from flor_plugins.store.metrics.row_source import SourcedRow
from flor_plugins.store.run_index import RunIndex

if TYPE_CHECKING:
    from flor_plugins.store.query.where import WhereExpression


@dataclass(frozen=True, slots=True)
class MissingValues:
    """metrics are missing at positions.

    is_every: nothing was chosen among the steps of those epochs.
    """

    metrics: tuple[str, ...]
    positions: tuple[Position, ...]
    is_every: bool


@dataclass(frozen=True, slots=True)
class RunKnowledge:
    """What is known of a run: where it has been, and the (source, row) of its journals that
    count (`of_today`).

    looked_for: (metric, position) where it is known that nothing is logged, if there is no value.
    """

    places: RunIndex
    rows: Sequence[SourcedRow]
    looked_for: Collection[tuple[str, Position]] = field(default=())


def due_in(
    known: RunKnowledge,
    names: Sequence[str],
    way: Strategy,
    where: WhereExpression | None,
    epochs: Collection[int],
    place: Position | None,
) -> MissingValues:
    """What is due of the metrics of one way, in those epochs or at that one place."""
    if not names:
        return MissingValues((), (), True)
    places = known.places
    present = {(name, row.position) for _, row in known.rows for name in row.values} | {
        *known.looked_for
    }
    candidates = [place] if place is not None else _candidates(places, way, epochs)
    if where is not None:
        inside = [one for one in candidates if not places.is_end(one)]
        at_ends = [one for one in candidates if places.is_end(one)]
        if way == "train":
            inside, at_ends = candidates, []
        held = holding(known, where, inside, "step") | holding(known, where, at_ends, "epoch")
        candidates = [one for one in candidates if one in held]
    missing = [one for one in candidates if any((name, one) not in present for name in names)]
    return MissingValues(tuple(names), tuple(missing), where is None and place is None)


def _candidates(places: RunIndex, way: Strategy, epochs: Collection[int]) -> list[Position]:
    if way == "train":
        return [one for one in places.steps if places.epoch_of(one) in epochs]
    ends = [places.end_of(epoch) for epoch in epochs]
    if (
        way == "state" and not places.starts
    ):  # of a run of which only weights are known, each checkpoint counts
        ends += [one for one in places.saved if places.epoch_of(one) in epochs and one not in ends]
    if way == "validate":
        ends = [end for end in ends if end.epoch > 0]
        ends += [one for one in places.validated if places.epoch_of(one) in epochs]
    return sorted(ends)


def holding(
    known: RunKnowledge, where: WhereExpression, candidates: Sequence[Position], level: Level
) -> set[Position]:
    """Those candidates at which the predicate holds."""
    import pandas as pd

    from flor_plugins.store.query.dataframe import positions

    if not candidates:
        return set()
    frame = positions(known.places.run, list(where.names), level, known.rows)
    columns = ["epoch"] if level == "epoch" else ["epoch", "step"]
    keys = [(one.epoch,) if level == "epoch" else (one.epoch, one.step) for one in candidates]
    asked = pd.DataFrame(keys, columns=columns).astype("Int64")
    # A place without any value (the weights before the first batch) is a row of missing ones.
    if level == "epoch":
        frame = frame.drop(columns="step").merge(asked, on=columns, how="right")
        steps = {one.epoch: one.step for one in candidates}
        frame["step"] = pd.array([steps[int(epoch)] for epoch in frame["epoch"]], dtype="Int64")
    else:
        frame = frame.merge(asked, on=columns, how="right")
    frame = frame[where.mask(frame)]
    return {Position(int(e), int(s)) for e, s in zip(frame["epoch"], frame["step"], strict=True)}
