"""The code of a run as a git commit; nothing of the user's is moved."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.errors import SnapshotError, StoreError
from flor_plugins.recorder.code_snapshot.code_files import scan, why_unchanged, within_limits
from flor_plugins.records import Code
from flor_plugins.store.files import whole_folder
from flor_plugins.store.remote.commits import QUIET, git_errors_explained

if TYPE_CHECKING:
    from git import Repo

    from flor_plugins.store.layout import Store

# By itself git leaves new objects to the system: a machine that loses its power has the ref
# then, and not the code.
SAFE = ("-c", "core.fsync=committed", "-c", "core.fsyncMethod=batch")


@dataclass(frozen=True, slots=True)
class _GitIndex:
    """A repository, a work tree and an index, named explicitly for each command.

    Explicit, because a training that was started from a git hook inherits GIT_DIR
    and GIT_INDEX_FILE of something else.
    """

    git_dir: str
    root: str
    index: str

    def run(self, *args: str, stdin: bytes = b"", **env: str) -> bytes:
        """The output of one git command; GitCommandError if it fails."""
        from git import Git

        places = {"GIT_DIR": self.git_dir, "GIT_WORK_TREE": self.root, "GIT_INDEX_FILE": self.index}
        with tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            out = Git(self.root).execute(
                ["git", *QUIET, *SAFE, *args],
                # Any file with a descriptor will do.
                istream=given,  # pyright: ignore[reportArgumentType]
                env={**places, **env},
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
        assert isinstance(out, bytes)
        return out

    def line(self, *args: str, **env: str) -> str:
        return self.run(*args, stdin=b"", **env).decode().strip()

    def paths(self, *args: str) -> list[str]:
        """Paths as the file system knows them, whatever bytes they are made of."""
        return [os.fsdecode(path) for path in self.run(*args).split(b"\0") if path]


def take(store: Store, run_id: str, start: Path) -> Code:
    """Commit the work tree around `start` as it stands, untracked files included.

    HEAD, branch, index, files, stash and hooks are left as they were; the commit is
    kept alive by refs/flor/<run_id>. Is the tree that of HEAD, then vid is HEAD's
    commit. The same code gives the same vid. Without git (or where git ignores the
    folder) the code-like files go to a bare repository in the store. Raises
    SnapshotError when git is missing or refuses.
    """
    folder = (start if start.is_dir() else start.parent).resolve()
    with git_errors_explained(f"the code in {folder} was to be kept for run {run_id}"):
        repo = _repo_around(folder)
        if repo is None:
            return _take_plain(store, run_id, folder)
        with repo:
            return _take_git(repo, store, run_id)


def changes_since(store: Store, code: Code) -> list[str]:
    """What has changed in the work tree of a run's code since; as `changes`.

    Raises SnapshotError as `take`.
    """
    probe = f"probe-{os.getpid()}"
    now = take(store, probe, Path(code.root))
    try:
        return changes(code, now)
    finally:
        forget(now, probe)


def changes(then: Code, now: Code) -> list[str]:
    """Paths that differ between two snapshots of a folder: Python files, and what git tracks there.

    The rest is what trainings write beside their code, where nobody told git to ignore it.
    """
    if then.vid == now.vid:
        return []
    if (then.git_dir, then.root) != (now.git_dir, now.root):
        return [now.root]
    folder = Path(now.root)
    with git_errors_explained(f"the code in {folder} was to be compared with {then.vid[:12]}"):
        repo = _repo_around(folder)
        where = now.git_dir if repo is None else os.path.abspath(repo.git_dir)
        git = _GitIndex(where, now.root, os.path.join(where, "index"))
        tracked = set() if repo is None else set(git.paths("ls-files", "--cached", "-z"))
        differ = git.paths(
            "diff-tree", "-r", "-z", "--no-renames", "--name-only", then.vid, now.vid
        )
    return [path for path in differ if path in tracked or path.endswith(".py")]


def forget(code: Code, run_id: str) -> None:
    """Give up what keeps the code of a run alive: that run was never made."""
    with tempfile.TemporaryDirectory(prefix="flor-index-") as scratch:
        git = _GitIndex(code.git_dir, code.root, os.path.join(scratch, "index"))
        with git_errors_explained(f"refs/flor/{run_id} was to be removed"):
            git.run("update-ref", "-d", f"refs/flor/{run_id}")


def _repo_around(folder: Path) -> Repo | None:
    """The repository whose work tree holds `folder`; None without one.

    A folder that git ignores (a project inside a repository of dot files) counts as
    one without git: a snapshot of that repository would not hold it.
    """
    from git import GitCommandError, InvalidGitRepositoryError, Repo

    try:
        repo = Repo(folder, search_parent_directories=True)
    except InvalidGitRepositoryError as error:
        for place in (folder, *folder.parents):
            if (place / ".git").exists():
                raise SnapshotError(
                    f"the code in {folder} was to be kept; {place / '.git'} is there, but git "
                    f"can't read it. "
                    f"Repair it (git -C '{place}' fsck says more) or move it away."
                ) from error
        return None
    if repo.working_tree_dir is not None:
        try:
            repo.git.execute(["git", *QUIET, "check-ignore", "-q", str(folder)])
        except GitCommandError as error:
            if error.status == 1:  # not ignored
                return repo
            raise
    repo.close()
    return None


def _take_git(repo: Repo, store: Store, run_id: str) -> Code:
    root = Path(str(repo.working_tree_dir)).resolve()
    with tempfile.TemporaryDirectory(prefix="flor-index-") as scratch:
        git = _GitIndex(os.path.abspath(repo.git_dir), str(root), os.path.join(scratch, "index"))
        real = Path(repo.git_dir, "index")
        if real.exists():
            # With its time: git compares it with the files' to see which may have changed since.
            shutil.copy2(real, git.index)
        inside = _beneath(store.root, root)
        left_out = _stage_changes(git, root, inside)
        vid = _commit(git, run_id)
    return Code(vid, str(Path(repo.common_dir).resolve()), str(root), tuple(left_out))


def _take_plain(store: Store, run_id: str, folder: Path) -> Code:
    left_out: list[str] = []
    git_dir = store.root.resolve() / "code.git"
    if not git_dir.exists():
        store.make()
        _make_bare(git_dir)
    found = scan(folder, store.root.resolve(), left_out)
    with tempfile.TemporaryDirectory(prefix="flor-index-") as scratch:
        git = _GitIndex(str(git_dir), str(folder), os.path.join(scratch, "index"))
        _stage(git, within_limits(folder, found, left_out))
        vid = _commit(git, run_id)
    return Code(vid, str(git_dir), str(folder), tuple(left_out))


def _make_bare(git_dir: Path) -> None:
    """Several runs may begin at once: who comes second finds it made."""
    from git import Git

    try:
        with whole_folder(git_dir) as scratch:
            Git(scratch).execute(
                ["git", *QUIET, "init", "--bare", "--quiet", "--template=", str(scratch)]
            )
    except StoreError:
        if not git_dir.exists():
            raise


def _commit(git: _GitIndex, run_id: str) -> str:
    """Commit the index under refs/flor/<run_id>; HEAD's own commit if the tree is the same."""
    from git import GitCommandError

    tree = git.line("write-tree")
    try:
        parents, moment = [git.line("rev-parse", "--quiet", "--verify", "HEAD")], ""
    except GitCommandError as error:
        if error.status != 1:
            raise
        parents, moment = [], "0"  # nothing committed yet
    vid = ""
    for head in parents:
        head_tree, moment = git.line("show", "-s", "--format=%T %ct", head, "--").split()
        vid = head if head_tree == tree else ""
    if not vid:
        who = {"NAME": "flor", "EMAIL": "flor@localhost", "DATE": f"@{moment} +0000"}
        env = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in who.items()
        }
        links = [word for head in parents for word in ("-p", head)]
        vid = git.line("commit-tree", tree, *links, "-m", "code of a run, kept by flor", **env)
    git.run("update-ref", f"refs/flor/{run_id}", vid)
    return vid


def _stage_changes(git: _GitIndex, root: Path, store: str | None) -> list[str]:
    """Bring the index up to the work tree; returns what was left out and why."""
    left_out: list[str] = []
    changed = []
    for path in dict.fromkeys(git.paths("diff-files", "--name-only", "-z")):
        why = why_unchanged(root / path)
        if why:
            left_out.append(f"{path} ({why})")
        else:
            changed.append(path)
    untracked = git.paths("ls-files", "--others", "--exclude-standard", "-z")
    outside = [
        path for path in untracked if store is None or not f"{path}/".startswith(f"{store}/")
    ]
    _stage(git, [*changed, *within_limits(root, outside, left_out)])
    if store is not None:  # somebody may have committed a store
        kept = git.paths("ls-files", "--cached", "-z", "--", f":(top,literal){store}")
        git.run("update-index", "--force-remove", "-z", "--stdin", stdin=_zero_ended(kept))
    return left_out


def _stage(git: _GitIndex, paths: Iterable[str]) -> None:
    git.run(
        "update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=_zero_ended(paths)
    )


def _zero_ended(paths: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


def _beneath(path: Path, root: Path) -> str | None:
    """The path relative to root; None if it is not below it."""
    path = path.resolve()
    return path.relative_to(root).as_posix() if root in path.parents else None
