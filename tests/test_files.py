from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from flor_plugins.errors import StoreError
from flor_plugins.store.files import PARTIAL, read_json, whole_file, whole_folder, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with whole_file(target) as scratch:
        scratch.write_text("half")
        assert not target.exists()
        assert scratch.parent == target.parent and scratch.name.startswith(PARTIAL)
    assert target.read_text() == "half"
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_file_leaves_the_old_one_and_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as scratch:
        scratch.write_text("new")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_keeps_the_file_it_has_open(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with target.open() as reader:
        with whole_file(target) as scratch:
            scratch.write_text("new")
        assert reader.read() == "old"


def test_files_get_the_mode_of_an_ordinary_file_even_if_the_writer_made_them_private(
    tmp_path: Path,
) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    with whole_file(tmp_path / "file") as scratch:
        scratch.unlink()
        scratch.touch(0o600)
    with whole_folder(tmp_path / "folder") as scratch:
        (scratch / "one").touch(0o600)
    assert mode(tmp_path / "file") == mode(tmp_path / "folder" / "one") == mode(ordinary)


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with whole_folder(target) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "a").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "x"
    assert list(target.parent.iterdir()) == [target]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder") as scratch:
        (scratch / "a").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with whole_folder(target) as scratch:
        (scratch / "a").write_text("first")
    with pytest.raises(StoreError, match="exists already"), whole_folder(target):
        raise AssertionError("the block must not run")
    assert (target / "a").read_text() == "first"


def test_of_two_writers_of_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with pytest.raises(StoreError, match="exists already"), whole_folder(target) as slow:
        (slow / "a").write_text("slow")
        with whole_folder(target) as quick:
            (quick / "a").write_text("quick")
    assert (target / "a").read_text() == "quick"
    assert list(tmp_path.iterdir()) == [target]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    jobs = [threading.Thread(target=write_json, args=(target, [i] * 1000)) for i in range(8)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(set(read_json(target))) == 1 and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, [], "ü\ud800", -0.0, 2**70])
def test_json_survives(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("value", [float("nan"), {"a": object()}])
def test_what_is_no_json_leaves_no_file(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"no json"])
def test_a_torn_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "torn.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"torn.*torn\.json"):
        read_json(path)


def test_an_absent_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not there.*none\.json"):
        read_json(tmp_path / "none.json")
