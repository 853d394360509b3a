from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.records import Position, Row
from flor_plugins.store.metrics.journal import Journal, read_rows


def row(step: int, epoch: int = 0, **values: Any) -> Row:
    return Row(Position(epoch, step), "train", "step", values, 1763.25)


def journal(run: Path, writer: str = "record-r0") -> Journal:
    return Journal(run / "metrics" / f"{writer}.jsonl", run / "media")


def same(left: Any, right: Any) -> bool:
    """Equal, with NaN equal to itself; an int equals the float that says the same."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right or (left != left and right != right)


def parts(one: Row) -> tuple[Any, ...]:
    return one.position, one.phase, one.level, one.at, one.verdict, one.hook


numbers = (
    st.integers()
    | st.floats()
    | st.integers(2**53 - 2, 2**53 + 2)
    | st.integers(2**63 - 2, 2**63 + 1)
)
leaves = st.booleans() | numbers | st.text(st.characters(codec=None))
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=9)
columns = st.one_of(  # one metric usually has one kind of value
    st.just(st.booleans()),
    st.just(st.integers(-9, 9)),
    st.just(st.floats()),
    st.just(numbers),
    st.just(st.text()),
    st.just(st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=2)),
    st.just(
        st.lists(st.integers(-9, 9), min_size=1, max_size=2) | st.lists(st.floats(), max_size=2)
    ),
    st.just(nested),
    st.just(st.dictionaries(st.text(), nested, max_size=2)),
)
names = st.sampled_from(
    ["a", "a.b", "values.a", "epoch", "list", "a.list.element", "", '"; drop table']
)


@st.composite
def journals(draw: st.DrawFn) -> list[Row]:
    kinds = {name: draw(columns) for name in draw(st.sets(names | st.text(), max_size=4))}
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        values = {name: draw(kind) for name, kind in kinds.items() if draw(st.booleans())}
        position = Position(draw(st.integers(0, 9)), draw(st.integers(0, 2**40)))
        rows.append(
            Row(
                position,
                draw(st.sampled_from(["train", "validation", "test"])),
                draw(st.sampled_from(["epoch", "step"])),
                values,
                draw(st.floats(0, 2e9)),
                draw(st.sampled_from([None, "exact", "diverged"])),
                draw(st.none() | st.text("0123456789abcdef", max_size=4)),
            )
        )
    return rows


@settings(deadline=None, max_examples=150)
@given(journals())
def test_lines_and_parquet_say_the_same(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = journal(Path(folder))
        for one in rows:
            written.append(one)
        lines = read_rows(written.path)
        sealed = read_rows(written.seal())
        for expected, line, column in zip(rows, lines, sealed, strict=True):
            assert parts(expected) == parts(line) == parts(column)
            assert same(line.values, expected.values)
            assert same(column.values, expected.values)
        for name in {name for one in rows for name in one.values}:
            some = read_rows(written.path.with_suffix(".parquet"), [name])
            for expected, one in zip(rows, some, strict=True):
                assert same(
                    one.values, {key: v for key, v in expected.values.items() if key == name}
                )


def test_the_format_on_disk_is_as_documented(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(Row(Position(0, 1), "train", "step", {"loss": math.nan, "n": 2}, 1763.2))
    written.append(
        Row(Position(1, 2), "validation", "epoch", {"cm": [[1, 0], [0, 2]]}, 1763.5, "exact", "ab")
    )
    assert [json.loads(line) for line in written.path.read_text().splitlines()] == [
        {"format": 1, "writer": "record-r0"},
        {
            "epoch": 0,
            "step": 1,
            "phase": "train",
            "level": "step",
            "at": 1763.2,
            "values": {"loss": {"$": "float", "v": "nan"}, "n": 2},
        },
        {
            "epoch": 1,
            "step": 2,
            "phase": "validation",
            "level": "epoch",
            "at": 1763.5,
            "values": {"cm": [[1, 0], [0, 2]]},
            "verdict": "exact",
            "hook": "ab",
        },
    ]
    table = pyarrow.parquet.read_table(written.seal())
    assert table.schema.metadata[b"flor_format"] == b"1"
    assert {field.name: str(field.type) for field in table.schema} == {
        "epoch": "int64",
        "step": "int64",
        "phase": "string",
        "level": "string",
        "at": "double",
        "verdict": "string",
        "hook": "string",
        "values.loss": "double",
        "values.n": "int64",
        "values.cm": "list<element: list<element: int64>>",
    }
    assert table.column("values.loss").null_count == 1
    assert not written.path.exists()


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2.5], "double"),
        ([2**53, 0.5], "double"),
        ([2**53 + 1, 0.5], "json"),
        ([2**63], "json"),
        ([1, True], "json"),
        ([1, "x"], "json"),
        ([[1], [1.5]], "list<element: double>"),
        ([[[1], [1, 2]]], "json"),
        ([{"a": 1}], "json"),
        ([[], [1]], "list<element: int64>"),
        ([[]], "json"),
        ([1, [1]], "json"),
        (["\ud800"], "json"),
    ],
)
def test_a_column_has_the_narrowest_type_that_loses_nothing(
    tmp_path: Path, cells: list[Any], kind: str
) -> None:
    written = journal(tmp_path)
    for step, cell in enumerate(cells):
        written.append(row(step, m=cell))
    target = written.seal()
    field = pyarrow.parquet.read_schema(target).field("values.m")
    if kind == "json":
        assert field.metadata[b"flor"] == b"json" and field.type == pyarrow.string()
    else:
        assert str(field.type) == kind
    assert [one.values["m"] for one in read_rows(target)] == cells
