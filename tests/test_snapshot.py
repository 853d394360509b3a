from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flor_plugins.errors import SnapshotError
from flor_plugins.recorder.code_snapshot.snapshot import take
from flor_plugins.records import Code
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.commits import find_commit
from tests.conftest import IDENTITY

Patch = pytest.MonkeyPatch


def git(where: Path, *args: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *who, *args], cwd=where, check=True, capture_output=True, text=True
    )
    return done.stdout


def files_of(code: Code) -> set[str]:
    return set(
        git(Path(code.git_dir), "ls-tree", "-r", "-z", "--name-only", code.vid).split("\0")
    ) - {""}


def content(code: Code, path: str) -> str:
    return git(Path(code.git_dir), "show", f"{code.vid}:{path}")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A repository with one commit; .flor is its store."""
    root = tmp_path / "work"
    git(tmp_path, "init", "-q", "work")
    (root / "train.py").write_text("print(1)\n")
    (root / ".gitignore").write_text("ignored/\n*.log\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


@pytest.fixture
def store(work: Path) -> Store:
    return Store(work / ".flor").make()


def state(root: Path) -> tuple[object, ...]:
    """All of a repository that a user can see, the index to the last byte."""
    index = root / ".git" / "index"
    return (
        index.read_bytes() if index.exists() else None,
        (root / ".git" / "HEAD").read_text(),
        git(root, "--no-optional-locks", "status", "--porcelain", "-uall"),
        git(root, "stash", "list"),
        git(root, "for-each-ref", "refs/heads", "refs/tags", "refs/stash"),
        sorted(str(path) for path in root.rglob("*") if ".git" not in path.parts),
    )


def test_clean_tree_is_its_own_commit(work: Path, store: Store) -> None:
    code = take(store, "run", work)
    assert code.vid == git(work, "rev-parse", "HEAD").strip()
    assert git(work, "rev-parse", "refs/flor/run").strip() == code.vid
    assert code == Code(code.vid, str(work / ".git"), str(work))


def test_dirty_tree_is_committed_as_it_stands_and_left_as_found(work: Path, store: Store) -> None:
    (work / "gone.py").write_text("")
    (work / "staged.py").write_text("1")
    git(work, "add", ".")
    git(work, "commit", "-qm", "second")
    (work / "train.py").write_text("stashed\n")
    git(work, "stash")
    (work / "staged.py").write_text("2")
    git(work, "add", "staged.py")
    (work / "staged.py").write_text("3")
    (work / "gone.py").unlink()
    (work / "new").mkdir()
    (work / "new" / "module.py").write_text("new")
    (work / "ignored").mkdir()
    (work / "ignored" / "data").write_text("x")
    before = state(work)
    code = take(store, "run", work / "new" / "module.py")
    assert state(work) == before
    assert files_of(code) == {".gitignore", "train.py", "staged.py", "new/module.py"}
    assert content(code, "staged.py") == "3"
    assert (
        git(work, "log", "-1", "--format=%P", code.vid).strip()
        == git(work, "rev-parse", "HEAD").strip()
    )
    assert code.left_out == ()


def test_a_change_within_one_tick_of_the_clock_is_seen(work: Path, store: Store) -> None:
    """Same size, same time as the index: only the content tells."""
    moment = os.stat(work / "train.py").st_mtime_ns
    os.utime(work / ".git" / "index", ns=(moment, moment))
    (work / "train.py").write_text("print(2)\n")
    os.utime(work / "train.py", ns=(moment, moment))
    assert content(take(store, "run", work), "train.py") == "print(2)\n"


def test_same_code_gives_the_same_vid(work: Path, store: Store) -> None:
    (work / "train.py").write_text("print(2)\n")
    first, second = take(store, "one", work), take(store, "two", work)
    (work / "train.py").write_text("print(3)\n")
    assert first.vid == second.vid != take(store, "three", work).vid


def test_no_hook_of_the_user_runs(work: Path, store: Store) -> None:
    for name in ("reference-transaction", "pre-commit", "post-index-change", "fsmonitor-watchman"):
        hook = work / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\ntouch hook-ran\nexit 1\n")
        hook.chmod(0o755)
    git(work, "config", "core.fsmonitor", ".git/hooks/fsmonitor-watchman")
    git(work, "config", "commit.gpgSign", "true")
    (work / "train.py").write_text("print(2)\n")
    take(store, "run", work)
    assert not list(work.rglob("hook-ran"))


def test_large_secret_and_nested_are_left_out_and_said(work: Path, store: Store) -> None:
    (work / "big.bin").write_bytes(b"\0" * 10_000_001)
    (work / "train.py").write_bytes(b"#" * 10_000_001)
    secret = (
        ".env",
        ".env.local",
        "a.pem",
        "b.key",
        "id_rsa",
        ".netrc",
        "credentials.json",
        "Secrets.yaml",
    )
    for name in secret:
        (work / name).write_text("x")
    git(work, "init", "-q", "nested")
    (work / "nested" / "a.py").write_text("")
    code = take(store, "run", work)
    assert files_of(code) == {".gitignore", "train.py"}
    assert content(code, "train.py") == "print(1)\n"
    said = dict(text.removesuffix(")").split(" (") for text in code.left_out)
    assert said["nested/"] == "a git repository of its own"
    assert "over 10 MB" in said["big.bin"] and "change is left out" in said["train.py"]
    secrets = {path for path, why in said.items() if why == "looks like a secret"}
    assert secrets == set(secret)


def test_too_much_data_is_cut_before_code(work: Path, store: Store, monkeypatch: Patch) -> None:
    monkeypatch.setattr("flor_plugins.recorder.code_snapshot.code_files.MAX_FILES", 3)
    for name in ("a.bin", "b.bin", "c.bin", "y.py", "z.py"):
        (work / name).write_text("x")
    code = take(store, "run", work)
    assert files_of(code) == {".gitignore", "train.py", "a.bin", "y.py", "z.py"}
    assert code.left_out == ("2 more files (over 3 files or 100 MB in all)",)


def test_the_store_is_never_in_it(work: Path) -> None:
    store = Store(work / "results")
    (work / "results").mkdir()
    (work / "results" / "run.json").write_text("{}")
    git(work, "add", ".")
    git(work, "commit", "-qm", "a store by mistake")
    (work / "results" / "more.json").write_text("{}")
    assert files_of(take(store, "run", work)) == {".gitignore", "train.py"}


@pytest.mark.parametrize(
    "name", ["a b.py", "new\nline.py", "ü.py", "-dash.py", "quo\"te'.py", ":(top)x.py"]
)
def test_strange_names_are_kept(work: Path, store: Store, name: str) -> None:
    (work / name).write_text(name)
    assert name in files_of(take(store, "run", work))


def test_unborn_head_detached_head_and_linked_work_tree(
    tmp_path: Path, work: Path, store: Store
) -> None:
    fresh = tmp_path / "fresh"
    git(tmp_path, "init", "-q", "fresh")
    (fresh / "a.py").write_text("a")
    code = take(Store(fresh / ".flor").make(), "run", fresh)
    assert files_of(code) == {"a.py"}
    assert (
        git(fresh, "log", "--format=%P %ct %an <%ae>", code.vid).strip()
        == "0 flor <flor@localhost>"
    )
    git(work, "checkout", "-q", "--detach")
    (work / "b.py").write_text("b")
    assert "b.py" in files_of(take(store, "detached", work))
    git(work, "worktree", "add", "-q", str(tmp_path / "linked"))
    (tmp_path / "linked" / "c.py").write_text("c")
    code = take(store, "linked", tmp_path / "linked")
    assert (code.git_dir, code.root) == (str(work / ".git"), str(tmp_path / "linked"))
    assert "c.py" in files_of(code)


def test_conflicts_swaps_and_submodules_do_not_stop_it(
    tmp_path: Path, work: Path, store: Store
) -> None:
    (work / "swap").write_text("a file")
    git(work, "add", ".")
    git(work, "commit", "-qm", "swap")
    git(work, "checkout", "-qb", "other")
    (work / "train.py").write_text("theirs\n")
    git(work, "commit", "-qam", "theirs")
    git(work, "checkout", "-q", "main")
    (work / "train.py").write_text("ours\n")
    git(work, "commit", "-qam", "ours")
    subprocess.run(
        ["git", "merge", "other"],
        cwd=work,
        env=os.environ | IDENTITY,
        capture_output=True,
        check=False,
    )
    library = tmp_path / "library"
    git(tmp_path, "init", "-q", "library")
    git(library, "commit", "-q", "--allow-empty", "-m", "x")
    git(
        work, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib"
    )
    (work / "lib" / "change.py").write_text("x")
    (work / "swap").unlink()
    (work / "swap").mkdir()
    (work / "swap" / "inside.py").write_text("x")
    code = take(store, "run", work)
    assert "<<<<<<<" in content(code, "train.py")
    assert {"swap/inside.py", "lib"} < files_of(code) and "swap" not in files_of(code)


def test_git_variables_of_a_calling_hook_do_not_mislead(
    work: Path, store: Store, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("GIT_INDEX_FILE", str(work / "nothing"))
    monkeypatch.setenv("GIT_DIR", str(work / "nowhere"))
    (work / "b.py").write_text("b")
    code = take(store, "run", work)
    monkeypatch.undo()
    assert files_of(code) == {".gitignore", "train.py", "b.py"}


def test_the_code_is_on_the_disk_when_its_ref_is(
    work: Path, store: Store, monkeypatch: Patch, tmp_path: Path
) -> None:
    """By itself git leaves new objects to the system, and a loss of power leaves empty ones."""
    (work / "new.py").write_text("print(2)\n")
    trace = tmp_path / "trace.json"
    monkeypatch.setenv("GIT_TRACE2_EVENT", str(trace))
    take(store, "r1", work)
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    synced = [one["key"] for one in events if one.get("category") == "fsync"]
    assert "fsync/hardware-flush" in synced


def test_six_processes_at_once_keep_six_snapshots(work: Path, store: Store, tmp_path: Path) -> None:
    (work / "b.py").write_text("b")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.py").write_text("a")
    script = (
        "import sys; from pathlib import Path\n"
        "from flor_plugins.recorder.code_snapshot.snapshot import take; from "
        "flor_plugins.store.layout import Store\n"
        "for where in map(Path, sys.argv[2:]): print(take(Store(where / '.flor'), sys.argv[1], "
        "where).vid)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script]
    arguments = [[*command, f"run{n}", str(work), str(plain)] for n in range(6)]
    running = [
        subprocess.Popen(each, stdout=subprocess.PIPE, text=True, env=env) for each in arguments
    ]
    printed = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 6
    assert len(printed) == 1
    assert len(git(work, "for-each-ref", "refs/flor").splitlines()) == 6
    assert len(git(plain / ".flor" / "code.git", "for-each-ref", "refs/flor").splitlines()) == 6


def test_without_git_the_code_goes_to_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "plain" / ".flor")
    for path in (
        *("plain/train.py", "plain/conf/a.yaml", "plain/data.bin", "plain/.hidden/b.py"),
        *("plain/venv/pyvenv.cfg", "plain/venv/lib/c.py", "plain/node_modules/d.py"),
        *("plain/secrets.json", "plain/other/.git/e.py"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    code = take(store, "run", tmp_path / "plain" / "train.py")
    assert code.git_dir == str(store.root / "code.git") and code.root == str(tmp_path / "plain")
    assert files_of(code) == {"train.py", "conf/a.yaml"}
    assert code.left_out == (
        "secrets.json (looks like a secret)",
        "other/ (a git repository of its own)",
    )
    assert take(store, "again", tmp_path / "plain").vid == code.vid
    assert (store.root / ".gitignore").read_text().split() == ["*"]


def test_a_folder_that_git_ignores_is_kept_without_git(work: Path, store: Store) -> None:
    (work / "ignored").mkdir()
    (work / "ignored" / "own.py").write_text("x")
    code = take(store, "run", work / "ignored")
    assert files_of(code) == {"own.py"} and code.git_dir == str(store.root / "code.git")


def test_broken_repository_and_missing_git_are_said(
    work: Path, store: Store, monkeypatch: Patch
) -> None:
    head = git(work, "rev-parse", "HEAD").strip()
    (work / ".git" / "objects" / head[:2] / head[2:]).unlink()
    with pytest.raises(SnapshotError, match="git refused"):
        take(store, "run", work)
    (work / ".git" / "HEAD").unlink()
    with pytest.raises(SnapshotError, match="git can't read it"):
        take(store, "run", work)
    script = (
        "from pathlib import Path; from flor_plugins.store.layout import Store\n"
        "from flor_plugins.recorder.code_snapshot.snapshot import take; take(Store(Path('s')), "
        "'r', Path('.'))"
    )
    env = {"PATH": "", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=work, capture_output=True, text=True
    )
    assert "SnapshotError" in done.stderr and "Install git" in done.stderr


def test_commit_is_found_where_it_lies(work: Path, store: Store, tmp_path: Path) -> None:
    (work / "b.py").write_text("b")
    code = take(store, "run", work)
    git(tmp_path, "clone", "-q", "--bare", str(work), "bare.git")
    git(tmp_path / "bare.git", "fetch", "-q", str(work), "refs/flor/*:refs/flor/*")
    elsewhere = Store(tmp_path / "elsewhere")
    moved = Code(code.vid, str(tmp_path / "gone"), str(tmp_path / "gone"))
    for asked, kept, start, expected in (
        (code, elsewhere, tmp_path, work / ".git"),
        (moved, elsewhere, tmp_path / "bare.git", tmp_path / "bare.git"),
        (moved, elsewhere, work / ".git" / "..", work / ".git"),
        (moved, store, tmp_path, work / ".git"),
    ):
        with find_commit(asked, kept, start) as repo:
            assert Path(repo.common_dir).resolve() == expected
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.py").write_text("a")
    code = take(elsewhere, "run", plain)
    with find_commit(Code(code.vid, "", ""), elsewhere, plain) as repo:
        assert Path(repo.common_dir) == elsewhere.root / "code.git"
    with pytest.raises(SnapshotError, match=r"0{40}.*git fetch <origin> 'refs/flor/"):
        find_commit(Code("0" * 40, str(work / ".git"), str(work)), store, work)
