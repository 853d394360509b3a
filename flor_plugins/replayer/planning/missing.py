"""Where values are missing: a metric is asked for, the predicate holds, nothing is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flor_plugins.records import Level, Position, Run, Strategy
from flor_plugins.replayer.planning.recorded_values import HookDigests, looked_for, of_today
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.row_source import SourcedRow
from flor_plugins.store.run_index import RunIndex, index_run

if TYPE_CHECKING:
    from flor_plugins.store.query.where import WhereExpression


@dataclass(frozen=True, slots=True)
class RunKnowledge:
    """What is known of a run: where it has been, and what its journals say.

    rows: the (source, row) that count (`of_today`). present: (metric, position) at which there
    is a value, or known to be none.
    """

    places: RunIndex
    rows: Sequence[SourcedRow]
    present: AbstractSet[tuple[str, Position]]


def read_knowledge(run: Run, names: Collection[str], digests: HookDigests) -> RunKnowledge:
    """Read the journals of a run once. names: the metrics that matter."""
    rows = of_today(read_run(run.path, names), digests)
    logged = {(name, row.position) for _, row in rows for name in row.values}
    return RunKnowledge(index_run(run, rows), rows, logged | looked_for(rows, digests))


def missing_positions(
    known: RunKnowledge,
    names: Sequence[str],
    way: Strategy,
    where: WhereExpression | None,
    epochs: Collection[int],
    place: Position | None,
) -> list[Position]:
    """Where one of these metrics of one way is missing, in those epochs or at that one place."""
    if not names:
        return []
    places = known.places
    candidates = [place] if place is not None else _candidates(places, way, epochs)
    if where is not None:
        ends = {one for one in candidates if places.is_end(one)}
        if way == "train":
            ends = set()
        inside = {*candidates} - ends
        held = holding(known, where, inside, "step") | holding(known, where, ends, "epoch")
        candidates = [one for one in candidates if one in held]
    return [one for one in candidates if any((name, one) not in known.present for name in names)]


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
    known: RunKnowledge, where: WhereExpression, candidates: Collection[Position], level: Level
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
