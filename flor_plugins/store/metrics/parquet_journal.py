"""A closed journal as Parquet: one typed column per metric; what has no one type is JSON text.

null means "not logged"; NaN is a value. A column `values.<name>` whose field metadata says
{b"flor": b"json"} holds the JSON of the line it came from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from flor_plugins.errors import StoreError
from flor_plugins.records import JsonObject, Position, Row
from flor_plugins.store.metrics.value_codec import decode_value

FORMAT = 1
PREFIX = "values."
BASE = ("epoch", "step", "phase", "level", "at", "verdict", "hook")
JSON_MARK = {b"flor": b"json"}
# What a double says exactly; larger ints next to floats stay JSON.
EXACT = 2**53


def write(lines: Iterable[JsonObject], path: Path, media: Path) -> None:
    """Write the lines of a journal as Parquet (zstd) to `path`."""
    import pyarrow
    import pyarrow.parquet

    lines = list(lines)
    kinds = (
        (pyarrow.int64(),) * 2
        + (pyarrow.string(),) * 2
        + (pyarrow.float64(),)
        + (pyarrow.string(),) * 2
    )
    fields = [pyarrow.field(name, kind) for name, kind in zip(BASE, kinds, strict=True)]
    columns = [
        pyarrow.array([line.get(field.name) for line in lines], field.type) for field in fields
    ]
    for name in dict.fromkeys(name for line in lines for name in line["values"]):
        field, column = _column(PREFIX + name, [line["values"].get(name) for line in lines], media)
        fields.append(field)
        columns.append(column)
    schema = pyarrow.schema(fields, metadata={b"flor_format": str(FORMAT).encode()})
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays(columns, schema=schema), path, compression="zstd"
    )


def read(path: Path, media: Path, names: Collection[str] | None = None) -> list[Row]:
    """The rows of a sealed journal, with only the metrics in `names` if given."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_format(schema, path)
            wanted = [name for name in schema.names if _is_wanted(name, names)]
            # pyarrow reads dots in a name as a path and so may give more columns than asked.
            table = file.read(columns=wanted).select(wanted)
    except pyarrow.ArrowInvalid as error:
        raise StoreError(
            f"the metrics in {path} can't be read: {error}. Restore the file, or move it out "
            f"of the run."
        ) from error
    return _rows(table, media)


def is_unicode(text: str) -> bool:
    """Whether UTF-8, and so Parquet, can say it (a lone surrogate can't be said)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_wanted(column: str, names: Collection[str] | None) -> bool:
    return names is None or column in BASE or column.removeprefix(PREFIX) in names


def _check_format(schema: Any, path: Path) -> None:
    number = int((schema.metadata or {}).get(b"flor_format", FORMAT))
    if number > FORMAT:
        raise StoreError(
            f"{path} has format {number}, and this version reads up to {FORMAT}. Update "
            f"flor_plugins."
        )


def _column(name: str, cells: list[Any], media: Path) -> tuple[Any, Any]:
    """(field, array) for one metric; cells are JSON, None where nothing was logged."""
    import pyarrow

    leaf, depth = _one_shape([_shape(cell) for cell in cells if cell is not None])
    if leaf is None:
        texts = [None if cell is None else json.dumps(cell, allow_nan=False) for cell in cells]
        field = pyarrow.field(name, pyarrow.string(), metadata=JSON_MARK)
        return field, pyarrow.array(texts, pyarrow.string())
    kind = pyarrow.type_for_alias({"int": "int64", "float": "float64"}.get(leaf, leaf))
    for _ in range(depth):
        kind = pyarrow.list_(kind)
    if leaf == "float":  # NaN and the infinities, and ints that stand next to floats
        cells = [None if cell is None else _floats(decode_value(cell, media)) for cell in cells]
    return pyarrow.field(name, kind), pyarrow.array(cells, kind, from_pandas=False)


def _floats(value: Any) -> Any:
    return [_floats(one) for one in value] if isinstance(value, list) else float(value)


# A leaf is "bool", "int" (64 bit), "exact" (an int that a double says, too), "float", "str" or
# "json".
RowShape = tuple[frozenset[str], tuple[int, ...]]


def _one_shape(shapes: list[RowShape]) -> tuple[str | None, int]:
    """The (leaf type, depth) that all cells share; (None, 0) if there is none."""
    leaves: frozenset[str] = frozenset().union(*(shape[0] for shape in shapes))
    depths = {len(shape[1]) for shape in shapes}
    if len(depths) != 1:
        return None, 0
    for leaf in ("bool", "int", "float", "str"):
        if leaves and leaves <= ({leaf, "exact"} if leaf in ("int", "float") else {leaf}):
            return leaf, depths.pop()
    return None, 0


def _shape(cell: Any) -> RowShape:
    """The kinds of leaves and the lengths along each axis; ragged lists are one "json" leaf."""
    if not isinstance(cell, list):
        return _LEAVES.get(_leaf(cell), frozenset({"json"})), ()
    inner = [_shape(one) for one in cell]
    if len({lengths for _, lengths in inner}) > 1:
        return frozenset({"json"}), ()
    leaves: frozenset[str] = frozenset().union(*(leaf for leaf, _ in inner))
    return leaves, (len(cell), *(inner[0][1] if inner else ()))


def _leaf(cell: Any) -> str:
    if isinstance(cell, bool):
        return "bool"
    if isinstance(cell, int):
        if abs(cell) <= EXACT:
            return "exact"
        return "int" if -(2**63) <= cell < 2**63 else "json"
    if isinstance(cell, str):
        return "str" if is_unicode(cell) else "json"
    if isinstance(cell, float) or (isinstance(cell, dict) and cell.get("$") == "float"):
        return "float"
    return "json"


_LEAVES = {leaf: frozenset({leaf}) for leaf in ("bool", "int", "exact", "float", "str", "json")}


def _rows(table: Any, media: Path) -> list[Row]:
    base = {name: _cells(table.column(name), table.field(name), media) for name in BASE}
    positions = map(Position, base["epoch"], base["step"])
    values: list[dict[str, object]] = [{} for _ in range(table.num_rows)]
    for field, column in zip(table.schema, table.columns, strict=True):
        if field.name in BASE:
            continue
        name = field.name.removeprefix(PREFIX)
        for row, cell in zip(values, _cells(column, field, media), strict=True):
            if cell is not None:
                row[name] = cell
    rest = (base["phase"], base["level"], values, base["at"], base["verdict"], base["hook"])
    return list(map(Row, positions, *rest))


def _cells(column: Any, field: Any, media: Path) -> list[Any]:
    """The cells as Python values, None where nothing was logged."""
    import pyarrow

    if (field.metadata or {}).get(b"flor") == b"json":
        texts = column.to_pylist()
        return [None if text is None else decode_value(json.loads(text), media) for text in texts]
    kind = field.type
    if not (pyarrow.types.is_int64(kind) or pyarrow.types.is_float64(kind)):
        return column.to_pylist()
    # Ten times as fast as to_pylist, which makes a scalar object of each cell.
    cells = column.fill_null(0).to_numpy().tolist()
    if column.null_count:
        present = column.is_valid().to_numpy().tolist()
        return [cell if here else None for cell, here in zip(cells, present, strict=True)]
    return cells
