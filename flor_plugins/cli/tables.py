"""Tables for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flor_plugins.records import JsonObject

if TYPE_CHECKING:
    import pandas as pd

TableRow = Mapping[str, object]
_MAX_ROWS = 60


def table(rows: Sequence[TableRow], columns: Sequence[str], *, as_json: bool, as_csv: bool) -> None:
    """Print rows; a terminal gets a table, anything else aligned plain lines."""
    if as_json:
        print(json.dumps([{c: row.get(c) for c in columns} for row in rows], default=str, indent=1))
    elif as_csv:
        out = csv.writer(sys.stdout)
        out.writerow(columns)
        out.writerows([[row.get(c, "") for c in columns] for row in rows])
    elif sys.stdout.isatty():
        _rich(rows, columns)
    else:
        _plain(rows, columns)


def frame(data: pd.DataFrame, *, as_json: bool = False, as_csv: bool = False) -> None:
    """Print a dataframe. Long ones are cut in the middle for people, never for programs."""
    if as_json:
        print(json.dumps(records(data), indent=1))
    elif as_csv:
        plain = data.map(_csv_cell)
        plain.to_csv(sys.stdout, index=False)
    else:
        print(
            data.to_string(index=False, max_rows=_MAX_ROWS, max_colwidth=40)
            if len(data)
            else _empty(data)
        )
        print(f"{len(data)} rows")


def records(data: pd.DataFrame) -> list[JsonObject]:
    """The rows as plain data."""
    return [_jsonable(row) for row in data.to_dict("records")]


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 34 s, 5 min, 2.5 h."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{seconds / 3600:.1f} h"


def _empty(data: pd.DataFrame) -> str:
    return "  ".join(map(str, data.columns))


def _jsonable(row: Mapping[Any, Any]) -> JsonObject:
    return {str(key): _plain_cell(cell) for key, cell in row.items()}


def _plain_cell(cell: Any) -> Any:
    """NaN and infinities have no JSON; a missing value is null, the others are strings."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, list):
        return [_plain_cell(item) for item in cell]
    if isinstance(cell, dict):
        return _jsonable(cell)
    if isinstance(cell, float) and (cell != cell or cell in (float("inf"), float("-inf"))):
        return None if cell != cell else str(cell)
    if cell is None or isinstance(cell, (bool, int, float, str)):
        return cell
    return None if str(cell) in ("<NA>", "NaT", "nan") else str(cell)


def _csv_cell(cell: Any) -> Any:
    """Arrays and dicts as JSON."""
    if isinstance(cell, dict):
        return json.dumps(_plain_cell(cell))
    return json.dumps(cell.tolist()) if hasattr(cell, "shape") and cell.shape else cell


def _rich(rows: Sequence[TableRow], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    shown = Table(*columns)
    for row in rows:
        shown.add_row(*[_cell(row.get(c)) for c in columns])
    # An id that is cut can't be copied: a table that is too wide for the terminal is wrapped by it.
    console = Console()
    console.width = max(
        console.width, Measurement.get(console, console.options.update(width=10_000), shown).maximum
    )
    console.print(shown)


def _plain(rows: Sequence[TableRow], columns: Sequence[str]) -> None:
    cells = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max([len(c), *(len(line[i]) for line in cells)]) for i, c in enumerate(columns)]
    for line in [list(columns), *cells]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _cell(value: object) -> str:
    return "" if value is None else str(value)
