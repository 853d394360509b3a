"""Runs as a pandas frame: one row per position, recorded and replayed values in one column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from flor_plugins.errors import StoreError, WhereError
from flor_plugins.records import Level, Run
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.reserved_names import is_ours
from flor_plugins.store.metrics.row_source import SourcedRow
from flor_plugins.store.query.column_types import typed
from flor_plugins.store.query.series import (
    PHASES,
    MetricSeries,
    RunSeries,
    SeriesCell,
    SeriesKey,
    collect,
)
from flor_plugins.store.query.where import WhereExpression
from flor_plugins.store.runs import find_run, list_runs

if TYPE_CHECKING:
    import pandas

FIXED = ("run", "name", "epoch", "step")
ATTRIBUTES = ("vid", "status", "project", "framework", "started_at", "finished_at", "tags")
# Each run with its rows: (epoch, step), either of which may be missing.
FrameRows = list[tuple[RunSeries, list[Any]]]


@dataclass(frozen=True, slots=True)
class FrameColumn:
    """A column of the answer. key: (phase, metric), or the name of an attribute or a parameter."""

    label: str
    kind: Literal["metric", "attribute", "param", "fixed", "missing"]
    key: Any


def dataframe(
    store: Store, *names: str, where: str | WhereExpression | None = None, source: bool = False,
    level: Level | None = None, runs: Iterable[Run | str] | None = None,
) -> pandas.DataFrame:  # fmt: skip
    """Return a frame with columns run, name, epoch, step and then `names` (default: all metrics).

    It is sorted by run, epoch, step.

    A name is a metric, else an attribute of the run, else a parameter (`lr` or `params.lr`),
    else a column of missing values. A metric of several phases becomes `train/acc`,
    `validation/acc`; one that is called as a column that is always there becomes `epoch.value`.

    One row per run, epoch or step: the finest level that a metric asked for, or read by
    `where`, has; `level` overrides. On step rows an epoch-level value is repeated from its
    position on, as long as its epoch lasts. An epoch row stands at the first position
    of its epoch that has a value, and shows what stands there. A run without any of the metrics
    has no rows.

    Types: Int64, float64, boolean, str; matrices are numpy arrays and large values `Media`
    in object columns. source: adds `<name>.source` and `<name>.verdict` for each metric.
    """
    if level not in (None, "epoch", "step"):
        raise StoreError(
            f"a dataframe at level {level!r} was asked for. A level is 'epoch' or 'step'."
        )
    condition = WhereExpression.parse(where) if isinstance(where, str) else where
    asked = list(dict.fromkeys(names))
    extra = [name for name in condition.names if name not in asked] if condition else []
    wanted = metric_names([*asked, *extra]) if asked else None
    found = [collect(run, wanted) for run in _choose(store, runs)]
    seen = _seen(found)
    if condition:
        _refuse_unquoted(condition, seen)
    default = [name for name in seen if not is_ours(name)]
    shown = _resolve(asked or default, found, seen)
    columns = _resolve(
        [*(asked or default), *(name for name in extra if name not in FIXED)], found, seen
    )
    rows = _rows(found, columns, level)
    frame = _build(rows, columns, level or _finest(found, columns), source=source)
    if condition:
        frame = frame.loc[condition.mask(frame)].reset_index(drop=True)
    labels = [label for column in shown for label in _labels(column, source)]
    return frame.loc[:, [*FIXED, *labels]]


def positions(
    run: Run, names: Sequence[str], level: Level, rows: Iterable[SourcedRow] | None = None
) -> pandas.DataFrame:
    """Return all positions of one run, with or without values.

    Its columns are epoch, step and `names` as in `dataframe`.

    level "epoch": every completed epoch 1..N; the step is missing where nothing was
    recorded at the epoch's end. level "step": every recorded step. `run` and `name` are
    columns only when asked for. rows: (source, row) of its journals, source by source, if they
    were read already.
    """
    found = collect(run, metric_names(names), rows)
    columns = _resolve(list(dict.fromkeys(names)), [found], _seen([found]))
    places: list[Any] = sorted(found.steps) if level == "step" else _completed(found)
    frame = _build([(found, places)], columns, level, source=False)
    fixed = [name for name in FIXED if name in ("epoch", "step") or name in names]
    return frame.loc[:, [*fixed, *(column.label for column in columns)]]


def _choose(store: Store, runs: Iterable[Run | str] | None) -> list[Run]:
    if runs is None:
        return list_runs(store)
    chosen = [runs] if isinstance(runs, str) else runs
    found = [find_run(store, one) if isinstance(one, str) else one for one in chosen]
    return sorted({run.run_id: run for run in found}.values(), key=attrgetter("run_id"))


def metric_names(names: Iterable[str]) -> set[str]:
    """What a name may be called in a journal."""
    found = set(names)
    for name in names:
        phase, _, rest = name.partition("/")
        if phase in PHASES:
            found.add(rest)
        if name.endswith(".value"):
            found.add(name.removesuffix(".value"))
    return found


def _seen(found: Sequence[RunSeries]) -> dict[str, list[SeriesKey]]:
    """Each metric's keys, by phase, in the order in which the metrics first appear."""
    keys: dict[SeriesKey, None] = {key: None for cells in found for key in cells.tracks}
    seen: dict[str, list[SeriesKey]] = {}
    for key in keys:
        seen.setdefault(key[1], []).append(key)
    return {
        name: sorted(of_name, key=lambda key: PHASES.index(key[0]))
        for name, of_name in seen.items()
    }


def _resolve(
    names: Sequence[str], found: Sequence[RunSeries], seen: dict[str, list[SeriesKey]]
) -> list[FrameColumn]:
    """The columns for the names, each once; a label that is taken gets `.value` at its end."""
    columns: dict[tuple[str, Any], FrameColumn] = {}
    labels: set[str] = set(FIXED)
    for name in names:
        for column in _columns(name, found, seen):
            label = column.label
            if column.kind == "fixed" or (label, column.key) in columns:
                continue
            while label in labels:
                label += ".value"
            labels.add(label)
            columns[column.label, column.key] = FrameColumn(label, column.kind, column.key)
    return list(columns.values())


def _columns(
    name: str, found: Sequence[RunSeries], seen: dict[str, list[SeriesKey]]
) -> list[FrameColumn]:
    keys = seen.get(name, [])
    if len(keys) == 1:
        return [FrameColumn(name, "metric", keys[0])]
    if keys:
        return [FrameColumn(f"{phase}/{name}", "metric", (phase, name)) for phase, _ in keys]
    phase, _, rest = name.partition("/")
    stem = name.removesuffix(".value")
    if any(key[0] == phase for key in seen.get(rest, [])):
        return [FrameColumn(name, "metric", (phase, rest))]
    if stem in FIXED and stem != name and stem in seen:
        return _columns(stem, found, seen)
    if name in FIXED:
        return [FrameColumn(name, "fixed", name)]
    if name in ATTRIBUTES:
        return [FrameColumn(name, "attribute", name)]
    for param in (name, name.removeprefix("params.")):
        if any(param in cells.run.params for cells in found):
            return [FrameColumn(name, "param", param)]
    return [FrameColumn(name, "missing", name)]


def _labels(column: FrameColumn, source: bool) -> list[str]:
    added = ("source", "verdict") if source and column.kind == "metric" else ()
    return [column.label, *(f"{column.label}.{one}" for one in added)]


def _tracks(cells: RunSeries, columns: Sequence[FrameColumn]) -> list[MetricSeries]:
    return [cells.tracks[column.key] for column in columns if column.key in cells.tracks]


def _finest(found: Sequence[RunSeries], columns: Sequence[FrameColumn]) -> str:
    tracks = [track for cells in found for track in _tracks(cells, columns)]
    if any(track.steps for track in tracks):
        return "step"
    return "epoch" if any(track.epochs for track in tracks) else "run"


def _rows(
    found: Sequence[RunSeries], columns: Sequence[FrameColumn], level: Level | None
) -> FrameRows:
    """The places that each run gets.

    A level that no asked metric has shows what was recorded at it.
    """
    finest = _finest(found, columns)
    has_epochs = any(track.epochs for cells in found for track in _tracks(cells, columns))
    rows: FrameRows = []
    for cells in found:
        if level is None and finest == "run":
            rows.append((cells, [(None, None)]))
            continue
        places = cells.places(
            _tracks(cells, columns), "step" if "step" in (level or finest) else "epoch"
        )
        if level == "step" and finest != "step":
            places = sorted({*places, *cells.steps})
        if level == "epoch" and not has_epochs:
            places = sorted((epoch, step) for epoch, step in cells.ends.items() if epoch > 0)
        rows.append((cells, places))
    return rows


def _completed(cells: RunSeries) -> list[Any]:
    """(epoch, step) for every completed epoch; the step is None where nothing says it."""
    steps = dict(cells.ends)
    reached = cells.run.position
    if reached is not None and reached.epoch:
        steps.setdefault(reached.epoch, reached.step)
    return [(epoch, steps.get(epoch)) for epoch in range(1, max(steps, default=0) + 1)]


def _build(
    rows: FrameRows, columns: Sequence[FrameColumn], level: str, *, source: bool
) -> pandas.DataFrame:
    import pandas

    data: dict[str, object] = {
        "run": typed([cells.run.run_id for cells, places in rows for _ in places], str),
        "name": typed([cells.run.name for cells, places in rows for _ in places], str),
        "epoch": pandas.array([place[0] for _, places in rows for place in places], dtype="Int64"),
        "step": pandas.array([place[1] for _, places in rows for place in places], dtype="Int64"),
    }
    for column in columns:
        if column.kind != "metric":
            facts = [[_fact(cells.run, column)] * len(places) for cells, places in rows]
            data[column.label] = typed([fact for of_run in facts for fact in of_run])
            continue
        cells_: list[SeriesCell | None] = []
        for cells, places in rows:
            track = cells.tracks.get(column.key, MetricSeries())
            cells_ += track.at_steps(places) if level == "step" else track.at_epochs(places)
        data[column.label] = typed(_parts(cells_, 0))
        if source:
            data[f"{column.label}.source"] = typed(_parts(cells_, 1), str)
            data[f"{column.label}.verdict"] = typed(_parts(cells_, 2), str)
    return pandas.DataFrame(data)


def _parts(cells: Iterable[SeriesCell | None], part: int) -> list[object]:
    """Return the values, sources or verdicts of some cells."""
    return [None if cell is None else cell[part] for cell in cells]


def _fact(run: Run, column: FrameColumn) -> Any:
    """An attribute or a parameter of a run; None where it has none."""
    if column.kind == "param":
        return run.params.get(column.key)
    if column.kind == "missing":
        return None
    if column.key == "vid":
        return run.code.vid if run.code else None
    return getattr(run, column.key)


def _refuse_unquoted(where: WhereExpression, seen: dict[str, list[SeriesKey]]) -> None:
    """Refuse `val/acc < 1`, a division of two columns that do not exist.

    Else nothing would be found, and nobody told why.
    """
    names = {*seen, *(f"{phase}/{name}" for name, keys in seen.items() for phase, _ in keys)}
    for name in names - set(where.names):
        first, *rest = re.split(r"[^\w.]+", name)
        if rest and name in where.text and first in where.names and first not in seen:
            raise WhereError(
                f"where {where.text!r} reads the column {first!r}, and no run has it; there is "
                f"a metric {name!r}. Put that name in backticks: `{name}`."
            )
