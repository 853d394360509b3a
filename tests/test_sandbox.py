from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flor_plugins.errors import SnapshotError
from flor_plugins.recorder.code_snapshot.snapshot import take
from flor_plugins.records import Code
from flor_plugins.replayer.sandbox.worktree import map_path, sandbox
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.commits import find_commit


def git(where: Path, *args: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    command = ["git", "--no-optional-locks", *who, *args]
    return subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A dirty repository with data, a virtual environment, a stash and hooks that fail."""
    root = tmp_path / "work"
    (root / "data" / "deep").mkdir(parents=True)
    (root / "pack").mkdir()
    git(root, "init", "-q")
    (root / "train.py").write_text("old\n")
    (root / ".gitignore").write_text("data/\n.venv/\n*.bin\n__pycache__/\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / "train.py").write_text("stashed\n")
    git(root, "stash")
    (root / "train.py").write_text("dirty\n")
    (root / "pack" / "new.py").write_text("new")
    for path in (
        "data/a.txt",
        "data/deep/b.txt",
        "pack/w.bin",
        ".venv/pyvenv.cfg",
        ".venv/x.py",
        ".env",
    ):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(path)
    for name in ("pre-commit", "post-checkout", "reference-transaction"):
        hook = root / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/hook-ran'\nexit 1\n")
        hook.chmod(0o755)
    return root


@pytest.fixture
def store(work: Path) -> Store:
    store = Store(work / ".flor").make()
    store.runs.mkdir()
    return store


def state(root: Path) -> tuple[object, ...]:
    asked = (
        ("status", "--porcelain", "-uall"),
        ("stash", "list"),
        ("worktree", "list"),
        ("branch", "-a"),
    )
    tree = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    ours = str(root / ".flor")
    outside = {
        path: held
        for path, held in tree.items()
        if not str(path).startswith((ours, str(root / ".git")))
    }
    index = (root / ".git" / "index").read_bytes()
    return (
        index,
        (root / ".git" / "HEAD").read_text(),
        [git(root, *each) for each in asked],
        outside,
    )


def test_the_users_repository_is_the_same_afterwards(
    work: Path, store: Store, tmp_path: Path
) -> None:
    code = take(store, "run", work)
    (work / "train.py").write_text("newer\n")
    before = state(work)
    with find_commit(code, store, work) as repo:
        with sandbox(repo, code, store.replay("r") / "w0") as folder:
            assert (folder / "train.py").read_text() == "dirty\n"
            assert (folder / "pack" / "new.py").read_text() == "new"
            (folder / "output").write_text("x")
            (folder / "train.py").unlink()
        with pytest.raises(RuntimeError), sandbox(repo, code, store.replay("r") / "w1") as folder:
            raise RuntimeError
    assert state(work) == before
    assert not (tmp_path / "hook-ran").exists()
    assert not (store.replay("r") / "w0").exists() and not (store.replay("r") / "w1").exists()


def test_inputs_are_links_and_stay_when_the_sandbox_goes(work: Path, store: Store) -> None:
    (work / "pack" / "__pycache__").mkdir()
    code = take(store, "run", work)
    with (
        find_commit(code, store, work) as repo,
        sandbox(repo, code, store.replay("r") / "w0") as folder,
    ):
        assert (folder / "data" / "deep" / "b.txt").read_text() == "data/deep/b.txt"
        assert (folder / "data" / "a.txt").is_symlink() and not (
            folder / "data" / "deep"
        ).is_symlink()
        assert (folder / "pack" / "w.bin").is_symlink() and (folder / ".env").is_symlink()
        assert (folder / ".venv").is_symlink() and (folder / ".venv" / "x.py").exists()
        assert not (folder / ".flor").exists() and not (folder / "pack" / "__pycache__").exists()
        (folder / "data" / "own.txt").write_text("own")
    assert (work / "data" / "deep" / "b.txt").read_text() == "data/deep/b.txt"
    assert (work / ".venv" / "x.py").exists() and not (work / "data" / "own.txt").exists()


def test_folders_with_very_many_files_are_one_link(
    work: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flor_plugins.replayer.sandbox.worktree.MAX_LINKS", 20)
    for number in range(21):
        (work / "data" / "deep" / f"{number}").touch()
    code = take(store, "run", work)
    with (
        find_commit(code, store, work) as repo,
        sandbox(repo, code, store.replay("r") / "w0") as folder,
    ):
        assert (folder / "data").is_symlink() and (folder / "pack" / "w.bin").is_symlink()
    assert (work / "data" / "deep" / "20").exists()


def test_code_written_since_the_run_is_not_there_but_later_data_is(
    work: Path, store: Store
) -> None:
    code = take(store, "run", work)
    (work / "datasets.py").write_text("raise SystemExit")
    (work / "committed.py").write_text("raise SystemExit")
    git(work, "add", "committed.py")
    (work / "table.csv").write_text("1")
    with (
        find_commit(code, store, work) as repo,
        sandbox(repo, code, store.replay("r") / "w0") as folder,
    ):
        assert not os.path.lexists(folder / "datasets.py") and not os.path.lexists(
            folder / "committed.py"
        )
        assert (folder / "table.csv").read_text() == "1"


def test_without_git_everything_else_is_linked(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    store = Store(root / "results").make()
    store.runs.mkdir()
    for path in ("train.py", "data.bin", "sub/b.bin", ".hidden/c.py"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(path)
    code = take(store, "run", root)
    with (
        find_commit(code, store, root) as repo,
        sandbox(repo, code, store.replay("r") / "w0") as folder,
    ):
        assert not (folder / "train.py").is_symlink() and (folder / "data.bin").is_symlink()
        assert (folder / "sub" / "b.bin").is_symlink() and (
            folder / ".hidden" / "c.py"
        ).is_symlink()
        assert not (folder / "results").exists()


def test_a_root_that_is_gone_gives_the_code_alone(work: Path, store: Store, tmp_path: Path) -> None:
    code = take(store, "run", work)
    git(tmp_path, "clone", "-q", "--bare", str(work), "bare.git")
    git(tmp_path / "bare.git", "fetch", "-q", str(work), "refs/flor/*:refs/flor/*")
    moved = Code(code.vid, str(tmp_path / "gone"), str(tmp_path / "gone"))
    place = tmp_path / "elsewhere"
    with (
        find_commit(moved, Store(place), tmp_path / "bare.git") as repo,
        sandbox(repo, moved, place) as folder,
    ):
        assert (folder / "train.py").read_text() == "dirty\n" and not (folder / "data").exists()
    assert git(tmp_path / "bare.git", "worktree", "list").count("\n") == 1


def test_nested_repositories_and_submodules_are_reached(
    work: Path, store: Store, tmp_path: Path
) -> None:
    for hook in (work / ".git" / "hooks").iterdir():
        hook.unlink()
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    (library / "lib.py").write_text("lib")
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    git(
        work, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "sub"
    )
    git(work, "clone", "-q", str(library), "nested")
    code = take(store, "run", work)
    with (
        find_commit(code, store, work) as repo,
        sandbox(repo, code, store.replay("r") / "w0") as folder,
    ):
        assert (
            (folder / "sub" / "lib.py").read_text()
            == (folder / "nested" / "lib.py").read_text()
            == "lib"
        )
    assert (work / "sub" / "lib.py").exists() and (work / "nested" / "lib.py").exists()


def test_leftovers_of_killed_replays_go_and_work_trees_of_the_user_stay(
    work: Path, store: Store, tmp_path: Path
) -> None:
    for hook in (work / ".git" / "hooks").iterdir():
        hook.unlink()
    git(work, "worktree", "add", "-q", str(tmp_path / "on-a-disk"))
    (tmp_path / "on-a-disk").rename(tmp_path / "unplugged")
    code = take(store, "run", work)
    script = (
        "import sys, time; from pathlib import Path; from git import Repo\n"
        "from flor_plugins.records import Code; from flor_plugins.replayer.sandbox.worktree "
        "import sandbox\n"
        "root, vid, folder = sys.argv[1:]\n"
        "with sandbox(Repo(root), Code(vid, root, root), Path(folder)):\n"
        "    print('in', flush=True); time.sleep(600)"
    )
    dead, alive = store.replay("r") / "dead", store.replay("r") / "alive"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    running = []
    for folder in (dead, alive):
        command = [sys.executable, "-c", script, str(work), code.vid, str(folder)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=env))
        assert running[-1].stdout is not None and running[-1].stdout.readline() == b"in\n"
    running[0].send_signal(signal.SIGKILL)
    running[0].communicate()
    with find_commit(code, store, work) as repo, sandbox(repo, code, store.replay("r") / "w0"):
        assert not dead.exists() and alive.exists()
    running[1].terminate()
    running[1].communicate()
    listed = git(work, "worktree", "list")
    assert "on-a-disk" in listed and "dead" not in listed and "alive" in listed


def test_many_processes_make_and_leave_sandboxes_of_one_repository_at_once(
    work: Path, store: Store
) -> None:
    for hook in (work / ".git" / "hooks").iterdir():
        hook.unlink()
    code = take(store, "run", work)
    script = (
        "import sys; from pathlib import Path; from git import Repo\n"
        "from flor_plugins.records import Code; from flor_plugins.replayer.sandbox.worktree "
        "import sandbox\n"
        "root, vid, folder = sys.argv[1:]\n"
        "for index in range(40):\n"
        "    with sandbox(Repo(root), Code(vid, root, root), Path(folder) / str(index) / "
        "'project') as place:\n"
        "        assert (place / 'train.py').is_file()\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                script,
                str(work),
                code.vid,
                str(store.replay("r") / f"w{index}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for index in range(6)
    ]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, "\n".join(said)
    assert git(work, "worktree", "list").count("\n") <= 1


def test_a_commit_that_is_not_there_is_said(work: Path, store: Store) -> None:
    code = take(store, "run", work)
    with (
        find_commit(code, store, work) as repo,
        pytest.raises(SnapshotError, match="git refused"),
        sandbox(repo, Code("0" * 40, code.git_dir, code.root), store.replay("r") / "w0"),
    ):
        pass
    assert not (store.replay("r") / "w0").exists()


def test_paths_beneath_root_are_mapped_to_their_twins(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "root" / ".flor" / "box"
    folder.mkdir(parents=True)
    for path in (root / "a.txt", folder / "a.txt", root / "b.txt"):
        path.touch()
    (tmp_path / "link").symlink_to(root)
    twin = str(folder / "a.txt")
    assert map_path(str(root / "a.txt"), root, folder) == twin
    assert map_path(str(root / "x" / ".." / "a.txt"), root, folder) == twin
    assert map_path(str(tmp_path / "link" / "a.txt"), root, folder) == twin
    for same in (str(root / "b.txt"), twin, "a.txt", str(tmp_path / "rooted"), "/"):
        assert map_path(same, root, folder) == same
    assert map_path(str(root), root, folder) == str(folder)
