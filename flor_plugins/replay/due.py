"""Where values are missing: positions at which a metric was asked for, the predicate holds, and nothing is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flor_plugins.records import Level, Position, Way
from flor_plugins.replay.places import Places
from flor_plugins.store.journal import read_run

if TYPE_CHECKING:
    from flor_plugins.store.where import Where


@dataclass(frozen=True, slots=True)
class Due:
    """metrics are missing at positions. is_every: nothing was chosen among the steps of those epochs."""

    metrics: tuple[str, ...]
    positions: tuple[Position, ...]
    is_every: bool


def due_in(
    places: Places,
    names: Sequence[str],
    way: Way,
    where: Where | None,
    epochs: Collection[int],
    place: Position | None,
) -> Due:
    """What is due of the metrics of one way, in those epochs or at that one place."""
    if not names:
        return Due((), (), True)
    present = {(name, row.position) for _, row in read_run(places.run.path, names) for name in row.values}
    candidates = [place] if place is not None else _candidates(places, way, epochs)
    if where is not None:
        inside = [one for one in candidates if places.ends.get(one.epoch) != one.step]
        at_ends = [one for one in candidates if places.ends.get(one.epoch) == one.step]
        if way == "train":
            inside, at_ends = candidates, []
        held = _holding(places, where, inside, "step") | _holding(places, where, at_ends, "epoch")
        candidates = [one for one in candidates if one in held]
    missing = [one for one in candidates if any((name, one) not in present for name in names)]
    return Due(tuple(names), tuple(missing), where is None and place is None)


def _candidates(places: Places, way: Way, epochs: Collection[int]) -> list[Position]:
    if way == "train":
        steps = _recorded_steps(places)
        return [one for one in steps if places.epoch_of(one) in epochs]
    ends = [places.end_of(epoch) for epoch in epochs]
    if way == "state" and not places.starts:  # of a run of which only weights are known, each checkpoint counts
        ends += [one for one in places.saved if places.epoch_of(one) in epochs and one not in ends]
    if way == "validate":
        ends = [end for end in ends if end.epoch > 0]
        ends += [one for one in places.validated if places.epoch_of(one) in epochs]
    return sorted(ends)


def _recorded_steps(places: Places) -> list[Position]:
    rows = (row for writer, row in read_run(places.run.path, ()) if writer.startswith("record"))
    return sorted({row.position for row in rows if row.level == "step" and row.phase == "train"})


def _holding(places: Places, where: Where, candidates: Sequence[Position], level: Level) -> set[Position]:
    """Those candidates at which the predicate holds."""
    import pandas as pd

    from flor_plugins.store.frame import positions

    if not candidates:
        return set()
    frame = positions(places.run, list(where.names), level)
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
