"""A metric of some runs, by epoch, as JSON can say it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from flor_plugins.bench.results import Series
from flor_plugins.records import Run
from flor_plugins.store.layout import Store

MetricRows = dict[str, list[tuple[int, int, Any]]]  # run_id: (epoch, step, value)


def values_of(store: Store, runs: Sequence[Run], metric: str) -> MetricRows:
    """The values that are there, by run, in the order of the run.

    Of several phases validation is meant.
    """
    from flor_plugins.store.query import dataframe

    data = dataframe.dataframe(store, metric, runs=runs)
    column = next(
        (label for label in data.columns if label == f"validation/{metric}"), data.columns[-1]
    )
    found: MetricRows = {run.run_id: [] for run in runs}
    for run_id, epoch, step, value in zip(
        data["run"], data["epoch"], data["step"], data[column], strict=True
    ):
        if _is_there(value):
            found[run_id].append((_count(epoch), _count(step), plain(value)))
    return found


def by_epoch(rows: Iterable[tuple[int, int, Any]]) -> Series:
    """Return one value per epoch, counted from 1: the mean of the updates made in it.

    Of what is no number it is the last one.

    rows: (epochs completed, step, value). The update that completes an epoch is the first one
    that counts it as completed, and all that come after it are of the next. What stands before
    the first update is epoch 0.
    """
    groups: dict[int, list[Any]] = {}
    seen: set[int] = set()
    for epoch, step, value in sorted(rows, key=lambda row: row[:2]):
        completes = epoch not in seen and (epoch > 0 or step == 0)
        seen.add(epoch)
        groups.setdefault(epoch if completes else epoch + 1, []).append(value)
    return tuple((epoch, _mean(group)) for epoch, group in groups.items())


def plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Arrays become lists; NaN and infinities become text, as what JSON does not know does.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _mean(group: Sequence[Any]) -> Any:
    if len(group) > 1 and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in group
    ):
        return math.fsum(group) / len(group)
    return group[-1]


def _is_there(value: Any) -> bool:
    import pandas

    return bool(getattr(value, "shape", ())) or not (value is None or pandas.isna(value))


def _count(value: Any) -> int:
    return int(value) if _is_there(value) else 0
