from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from flor_plugins.errors import StoreError
from flor_plugins.store.layout import Store, find_store, new_id


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOR_DIR", raising=False)


def test_store_lies_at_the_top_of_the_git_work_tree(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_store(deep).root == tmp_path / ".flor"


def test_a_linked_worktree_counts_as_a_top(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".git").write_text("gitdir: ../.git/worktrees/linked\n")
    assert find_store(linked).root == linked / ".flor"


def test_store_lies_beside_the_script_without_git(tmp_path: Path) -> None:
    if any((one / ".git").exists() for one in tmp_path.parents):
        pytest.skip("the temporary folder lies in a git work tree")
    assert find_store(tmp_path).root == tmp_path / ".flor"


def test_flor_dir_wins_and_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOR_DIR", "elsewhere")
    assert find_store(tmp_path / "x").root == tmp_path / "elsewhere"


def test_the_current_folder_is_the_default_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_store() == Store(tmp_path / ".flor")


def test_finding_a_store_creates_nothing(tmp_path: Path) -> None:
    find_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_git_never_sees_a_made_store(tmp_path: Path) -> None:
    store = Store(tmp_path / ".flor").make().make()
    assert (store.root / ".gitignore").read_text() == "*\n"


def test_a_folder_with_files_of_the_user_gets_no_gitignore(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    Store(tmp_path).make()
    assert [one.name for one in tmp_path.iterdir()] == ["train.py"]


def test_a_store_that_cannot_be_made_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/\.flor.*FLOR_DIR"):
        Store(tmp_path / "file" / ".flor").make()


def test_folders_of_runs_and_replays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.run("r") == tmp_path / "runs" / "r"
    assert store.replay("p") == tmp_path / "replays" / "p"


def test_ids_sort_by_time_and_differ_within_one_millisecond() -> None:
    now = datetime(2026, 11, 23, 20, 5, 1, 123456, UTC)
    ids = {new_id(now) for _ in range(50)}
    assert len(ids) == 50
    assert all(one.startswith("20261123-200501-123-") and len(one) == 26 for one in ids)
    assert max(ids) < new_id(now + timedelta(milliseconds=1))


def test_ids_are_in_utc_whatever_the_zone() -> None:
    east = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert new_id(east).startswith("20251231-230000-000-")


def test_finding_a_store_and_listing_checkpoints_loads_no_torch() -> None:
    code = (
        "import sys; from flor_plugins.store import checkpoints, layout; print('torch' in "
        "sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False", done.stderr
