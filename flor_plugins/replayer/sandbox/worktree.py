"""A git worktree that holds the code of a run, with its data in reach: where a replay works."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from flor_plugins.errors import SnapshotError
from flor_plugins.replayer.backport.snapshots import as_bytes
from flor_plugins.store.files import alone_in

if TYPE_CHECKING:
    from git import Repo

    from flor_plugins.records import Code

MAX_LINKS = 20_000
NEVER_LINKED = frozenset((".git", ".flor", "__pycache__"))
OWNER = "flor-owner.json"
CODE_SUFFIX = ".py"

# Hooks and monitors are the user's programs; a replay runs none of them.
QUIET = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "advice.detachedHead=false",
)


@contextmanager
def sandbox(repo: Repo, code: Code, folder: Path) -> Iterator[Path]:
    """Make a detached worktree of code.vid at `folder`; it is removed at the end.

    What lies under code.root and is not in the commit (ignored and left-out files: data,
    caches) is reached through symbolic links; only code written since the run is not.
    The user's files, index, branch, stash and worktrees are left as found. Raises
    SnapshotError if git can't make the worktree.
    """
    folder = folder.resolve()
    _remove_leftovers(repo)
    _add_worktree(repo, code, folder)
    try:
        root = Path(code.root)
        if root.is_dir():
            _WorktreeLinks(folder, _new_code(repo, code)).fill(root, folder)
        yield folder
    finally:
        _remove_worktree(repo, folder)


def map_path(path: str, root: Path, sandbox: Path) -> str:
    """Return the twin of a path beneath `root` in the sandbox if it exists, else the path."""
    if not os.path.isabs(path) or Path(path).is_relative_to(sandbox):
        return path
    for absolute, top in (
        (Path(os.path.normpath(path)), root.absolute()),
        (Path(os.path.realpath(path)), root.resolve()),
    ):
        if absolute.is_relative_to(top):
            twin = sandbox / absolute.relative_to(top)
            return str(twin) if twin.exists() else path
    return path


def write_sources(sources: Mapping[str, str], sandbox: Path) -> None:
    """Write the files of a backported edit into a sandbox.

    sources: path beneath the top of the sandbox to text. A link on the way becomes a folder of
    the sandbox's own: what it leads to is the user's, or another version's, and is never
    written through.
    """
    for path, text in sources.items():
        folder = sandbox
        for part in PurePosixPath(path).parts[:-1]:
            folder = folder / part
            _replace_link_by_folder(folder)
        target = sandbox / path
        scratch = target.with_name(f".{target.name}.flor")
        scratch.write_bytes(as_bytes(text))
        os.replace(scratch, target)  # a link is replaced, not followed


def _replace_link_by_folder(folder: Path) -> None:
    """Make a folder of the sandbox; a link becomes a folder with links to what lies in it."""
    if folder.is_symlink():
        linked = folder.resolve()
        folder.unlink()
        folder.mkdir()
        for entry in linked.iterdir() if linked.is_dir() else ():
            (folder / entry.name).symlink_to(entry)
    elif not folder.is_dir():
        folder.mkdir()


def _git(repo: Repo, *args: str) -> str:
    out = repo.git.execute(
        ["git", *QUIET, *args], env={"GIT_DIR": str(Path(repo.common_dir).resolve())}
    )
    return str(out)


def _worktree_lock(repo: Repo) -> AbstractContextManager[None]:
    """Let one process at a time make or remove worktrees of a repository.

    Each git command reads the notes about all worktrees and refuses ("failed to read
    .../commondir") where another process has written half of them.
    """
    return alone_in(repo.common_dir)


def _add_worktree(repo: Repo, code: Code, folder: Path) -> None:
    from git import GitError

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _worktree_lock(repo):
            _git(repo, "worktree", "add", "--quiet", "--detach", str(folder), code.vid)
    except (GitError, OSError) as error:
        _remove_worktree(repo, folder)  # git leaves a half-made one where a disk is full
        reason = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise SnapshotError(
            f"a worktree of {code.vid} was to be made at {folder} from {repo.common_dir}; "
            f"git refused: {reason}. Is there room on the disk, and is the folder new?"
        ) from error
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
    }
    (_git_notes(folder) / OWNER).write_text(json.dumps({**owner, "folder": str(folder)}))


def _git_notes(folder: Path) -> Path:
    """Return the folder in which the repository keeps its notes about a worktree."""
    return Path((folder / ".git").read_text().removeprefix("gitdir:").strip())


def _remove_worktree(repo: Repo, folder: Path) -> None:
    """Remove one worktree and its links; what they point to stays.

    Never `worktree prune`: it would also forget a worktree of the user's on a disk that is not
    there now.
    """
    from git import GitCommandError

    try:
        with _worktree_lock(repo):
            _git(repo, "worktree", "remove", "--force", "--force", str(folder))
    except GitCommandError:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_git_notes(repo, folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_git_notes(repo: Repo, folder: Path) -> None:
    """Remove the notes about our worktree where git can't (its .git file was altered)."""
    for admin in Path(repo.common_dir, "worktrees").glob("*"):
        if (admin / OWNER).exists() and _owner(admin).get("folder") == str(folder):
            shutil.rmtree(admin, ignore_errors=True)


def _remove_leftovers(repo: Repo) -> None:
    """Remove the sandboxes whose process on this machine was killed."""
    for admin in Path(repo.common_dir, "worktrees").glob(f"*/{OWNER}"):
        owner = _owner(admin.parent)
        if (
            owner.get("host") == socket.gethostname()
            and _process_start(owner["pid"]) != owner["started"]
        ):
            _remove_worktree(repo, Path(owner["folder"]))


def _owner(admin: Path) -> dict:
    try:
        return json.loads((admin / OWNER).read_text())
    except (OSError, ValueError):  # another process removes it, or was killed while writing
        return {}


def _process_start(pid: int) -> str:
    """Return when a process began, as the system counts; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return ""
    return "alive"


def _new_code(repo: Repo, code: Code) -> frozenset[str]:
    """Return the code under root that git sees today and the snapshot did not leave out.

    Unless the commit has it, it was written after the run, and it must not be linked: a new
    datasets.py would hide the package of that name. What the snapshot left out was there, and
    so was everything that git ignores.
    """
    from git import Git, GitCommandError

    if repo.working_tree_dir is None and not Path(code.root, ".git").exists():
        return frozenset()
    try:
        listed = Git(code.root).execute(
            ["git", *QUIET, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            stdout_as_string=False,
        )
    except GitCommandError:  # root is no work tree any more
        return frozenset()
    assert isinstance(listed, bytes)
    left_out = {text.rpartition(" (")[0] for text in code.left_out}
    paths = {os.fsdecode(path) for path in listed.split(b"\0")}
    return frozenset(path for path in paths - left_out if path.endswith(CODE_SUFFIX))


@dataclass(slots=True)
class _WorktreeLinks:
    """Makes what is missing in a sandbox reachable; what is there came from the commit and stays.

    left: how many more links and folders may be made. A folder with more than that is
    reached through one link.
    """

    folder: Path
    new_code: frozenset[str]
    left: int = field(default_factory=lambda: MAX_LINKS)
    stores: frozenset[str] = field(default_factory=lambda: _named_stores())

    def fill(self, source: Path, target: Path, inside: str = "") -> None:
        for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
            path = f"{inside}{entry.name}"
            if self._is_never_linked(entry) or path in self.new_code:
                continue
            twin = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                self._folder(entry, twin, path)
            elif not os.path.lexists(twin):
                self._link(entry, twin)

    def _folder(self, entry: os.DirEntry[str], twin: Path, path: str) -> None:
        source = Path(entry.path)
        holds_sandbox = self.folder.is_relative_to(source)
        if _is_linked_whole(source):
            if twin.is_dir() and not twin.is_symlink() and not os.listdir(twin):
                twin.rmdir()  # a submodule: git makes its folder and leaves it empty
            if not os.path.lexists(twin):
                self._link(entry, twin)
        elif os.path.lexists(twin):
            if twin.is_dir() and not twin.is_symlink():
                self.fill(source, twin, f"{path}/")
        elif holds_sandbox or self._has_room(source):
            twin.mkdir()
            self.left -= 1
            self.fill(source, twin, f"{path}/")
        else:
            self._link(entry, twin)

    def _link(self, entry: os.DirEntry[str], twin: Path) -> None:
        twin.symlink_to(os.path.abspath(entry.path))
        self.left -= 1

    def _is_never_linked(self, entry: os.DirEntry[str]) -> bool:
        if entry.name in NEVER_LINKED or entry.path == str(self.folder):
            return True
        return entry.is_dir() and (
            os.path.realpath(entry.path) in self.stores or _is_store(Path(entry.path))
        )

    def _has_room(self, source: Path) -> bool:
        count = 0
        for _, folders, files in os.walk(source):
            count += len(folders) + len(files)
            if count >= self.left:
                return False
        return True


def _is_linked_whole(folder: Path) -> bool:
    """A virtual environment or a repository of its own: read as a whole, never in part."""
    return (folder / "pyvenv.cfg").exists() or (folder / ".git").exists()


def _named_stores() -> frozenset[str]:
    named = os.environ.get("FLOR_DIR")
    return frozenset([os.path.realpath(named)] if named else [])


def _is_store(folder: Path) -> bool:
    """A store has runs, and a .gitignore that hides all of it."""
    try:
        return (folder / "runs").is_dir() and (folder / ".gitignore").read_text().split() == ["*"]
    except OSError:
        return False
