from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.errors import EncodingError, StoreError
from flor_plugins.records import Position, Row
from flor_plugins.store.metrics.journal import Journal, read_rows, read_run
from flor_plugins.store.metrics.value_codec import Media


def row(step: int, epoch: int = 0, **values: Any) -> Row:
    return Row(Position(epoch, step), "train", "step", values, 1763.25)


def journal(run: Path, writer: str = "record-r0") -> Journal:
    return Journal(run / "metrics" / f"{writer}.jsonl", run / "media")


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
    assert [(source.writer, one.values) for source, one in read_run(tmp_path)] == [
        ("record-r0", {"loss": 0.5})
    ]
    written.close()


def test_rows_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from flor_plugins.records import Position, Row; from "
        "flor_plugins.store.metrics.journal import Journal\n"
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
        threading.Thread(
            target=lambda k=k: [written.append(row(k * 100 + i, t=text)) for i in range(50)]
        )
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
    written.path.write_bytes(
        lines + b'{"epoch":0,"step":9,"phase":"train","level":"step","at":1,"values":{}}\n'
    )
    assert [one.position.step for _, one in read_run(tmp_path)] == [1]


def test_a_sealed_journal_goes_on_when_opened_again(tmp_path: Path) -> None:
    written = journal(tmp_path)
    written.append(
        Row(Position(0, 1), "train", "step", {"loss": math.inf, "cm": [[1]]}, 1.0, "close", "ab")
    )
    written.seal()
    again = journal(tmp_path)
    again.append(row(2, loss=0.5))
    again.seal()
    first, second = read_run(tmp_path)
    assert first[1] == Row(
        Position(0, 1), "train", "step", {"loss": math.inf, "cm": [[1]]}, 1.0, "close", "ab"
    )
    assert second[1].values == {"loss": 0.5}


def test_a_failed_seal_leaves_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flor_plugins.store.metrics import parquet_journal

    written = journal(tmp_path)
    written.append(row(1, loss=0.5))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(parquet_journal, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        written.seal()
    assert [path.name for path in written.path.parent.iterdir()] == ["record-r0.jsonl"]


def test_each_writer_has_its_own_rows(tmp_path: Path) -> None:
    for writer in ("replay-20261123-200501-123-9f3a2c-w0", "record-r0"):
        written = journal(tmp_path, writer)
        written.append(row(1, m=writer))
        written.close()
    assert {source.writer: one.values["m"] for source, one in read_run(tmp_path)} == {
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
