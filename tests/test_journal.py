from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.errors import EncodingError, StoreError
from flor_plugins.records import Position, Row
from flor_plugins.store.journal import Journal, read_rows, read_run
from flor_plugins.store.values import Media


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


numbers = st.integers() | st.floats() | st.integers(2**53 - 2, 2**53 + 2) | st.integers(2**63 - 2, 2**63 + 1)
leaves = st.booleans() | numbers | st.text(st.characters(codec=None))
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=9)
columns = st.one_of(  # one metric usually has one kind of value
    st.just(st.booleans()),
    st.just(st.integers(-9, 9)),
    st.just(st.floats()),
    st.just(numbers),
    st.just(st.text()),
    st.just(st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=2)),
    st.just(st.lists(st.integers(-9, 9), min_size=1, max_size=2) | st.lists(st.floats(), max_size=2)),
    st.just(nested),
    st.just(st.dictionaries(st.text(), nested, max_size=2)),
)
names = st.sampled_from(["a", "a.b", "values.a", "epoch", "list", "a.list.element", "", '"; drop table'])


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
                assert same(one.values, {key: v for key, v in expected.values.items() if key == name})


def test_the_format_on_disk_is_as_documented(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(Row(Position(0, 1), "train", "step", {"loss": math.nan, "n": 2}, 1763.2))
    written.append(Row(Position(1, 2), "validation", "epoch", {"cm": [[1, 0], [0, 2]]}, 1763.5, "exact", "ab"))
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
def test_a_column_has_the_narrowest_type_that_loses_nothing(tmp_path: Path, cells: list[Any], kind: str) -> None:
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


def test_media_are_found_from_both_forms(tmp_path: Path) -> None:
    import numpy

    written = journal(tmp_path)
    written.append(row(1, big=numpy.arange(5000)))
    for is_sealed in (False, True):
        (one,) = read_rows(written.seal() if is_sealed else written.path)
        assert isinstance(one.values["big"], Media)
        assert one.values["big"].load().sum() == sum(range(5000))


def test_a_torn_last_line_is_ignored_and_cut_off_on_reopening(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(row(1, loss=0.5))
    written.close()
    with written.path.open("ab") as file:
        file.write(b'{"epoch":0,"step":2,"phase":"tr')
    assert [one.position.step for one in read_rows(written.path)] == [1]
    again = journal(tmp_path)
    again.append(row(2, loss=0.25))
    assert [one.position.step for one in read_rows(again.path)] == [1, 2]
    again.close()


@pytest.mark.parametrize("torn", [b"", b'{"form', b"\x00" * 70000])
def test_a_torn_header_is_written_again(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "record-r0.jsonl").write_bytes(torn)
    written = journal(tmp_path)
    written.append(row(1, loss=0.5))
    assert len(written.path.read_text().splitlines()) == 2
    assert [one.position.step for one in read_rows(written.path)] == [1]
    written.close()


def test_a_damaged_line_in_the_middle_is_left_out_with_its_place(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(row(1, loss=0.5))
    with written.path.open("ab") as file:
        file.write(b"\x00\x00\n")
    written.append(row(2, loss=0.5))
    written.close()
    with pytest.warns(UserWarning, match=r"record-r0\.jsonl:3 is damaged"):
        assert [one.position.step for one in read_rows(written.path)] == [1, 2]


def test_rows_are_visible_before_the_journal_is_closed(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(row(1, loss=0.5))
    assert [(writer, one.values) for writer, one in read_run(tmp_path)] == [("record-r0", {"loss": 0.5})]
    written.close()


def test_rows_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from flor_plugins.records import Position, Row; from flor_plugins.store.journal import Journal\n"
        "j = Journal(Path(sys.argv[1], 'metrics', 'record-r0.jsonl'), Path(sys.argv[1], 'media'))\n"
        "[j.append(Row(Position(0, s), 'train', 'step', {'s': s}, 1.0)) for s in range(100)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert [one.values["s"] for _, one in read_run(tmp_path)] == list(range(100))


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    written = journal(tmp_path)
    text = "x" * 20_000
    work = [
        threading.Thread(target=lambda k=k: [written.append(row(k * 100 + i, t=text)) for i in range(50)])
        for k in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    written.close()
    assert sorted(one.position.step for one in read_rows(written.path)) == [
        k * 100 + i for k in range(4) for i in range(50)
    ]


def test_a_value_that_can_not_be_stored_names_its_metric_and_writes_nothing(tmp_path: Path) -> None:
    written = journal(tmp_path)
    with pytest.raises(EncodingError, match=r"metric 'bad'.*object.*Return"):
        written.append(row(1, good=1, bad=object()))
    assert read_rows(written.path) == []
    written.close()


def test_a_closed_journal_takes_no_rows(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.close()
    written.close()
    with pytest.raises(StoreError, match="closed"):
        written.append(row(1, loss=1.0))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    written = journal(tmp_path)
    fd = os.open("/dev/full", os.O_WRONLY)
    os.dup2(fd, written._fd or 0)
    os.close(fd)
    with pytest.raises(StoreError, match="Free some space"):
        written.append(row(1, loss=1.0))
    written.close()


def test_parquet_wins_over_lines_of_the_same_writer(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(row(1, loss=0.5))
    lines = written.path.read_bytes()
    written.seal()
    written.path.write_bytes(lines + b'{"epoch":0,"step":9,"phase":"train","level":"step","at":1,"values":{}}\n')
    assert [one.position.step for _, one in read_run(tmp_path)] == [1]


def test_a_sealed_journal_goes_on_when_opened_again(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(Row(Position(0, 1), "train", "step", {"loss": math.inf, "cm": [[1]]}, 1.0, "close", "ab"))
    written.seal()
    again = journal(tmp_path)
    again.append(row(2, loss=0.5))
    again.seal()
    first, second = read_run(tmp_path)
    assert first[1] == Row(Position(0, 1), "train", "step", {"loss": math.inf, "cm": [[1]]}, 1.0, "close", "ab")
    assert second[1].values == {"loss": 0.5}


def test_a_failed_seal_leaves_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flor_plugins.store import sealed

    written = journal(tmp_path)
    written.append(row(1, loss=0.5))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(sealed, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        written.seal()
    assert [path.name for path in written.path.parent.iterdir()] == ["record-r0.jsonl"]


def test_each_writer_has_its_own_rows(tmp_path: Path) -> None:
    for writer in ("replay-20261123-200501-123-9f3a2c-w0", "record-r0"):
        written = journal(tmp_path, writer)
        written.append(row(1, m=writer))
        written.close()
    assert {writer: one.values["m"] for writer, one in read_run(tmp_path)} == {
        name: name for name in ("record-r0", "replay-20261123-200501-123-9f3a2c-w0")
    }
    assert read_run(tmp_path / "none") == []


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "record-r0.jsonl").write_text('{"format":99,"writer":"record-r0"}\n')
    with pytest.raises(StoreError, match="format 99"):
        read_run(tmp_path)


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "record-r0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StoreError, match=r"record-r0\.parquet"):
        read_run(tmp_path)
