"""The python files of recorded versions and of the working tree.

Which version did the working tree come from?
"""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from flor_plugins.replayer.backport.edit import Edit, edit_of
from flor_plugins.replayer.backport.imports import leads_to
from flor_plugins.replayer.backport.logged_names import logging_calls
from flor_plugins.replayer.backport.syntax import CodeVersion, parsed
from flor_plugins.replayer.backport.tree_diff import compare
from flor_plugins.store.remote.commits import QUIET, find_commit, git_errors_explained

if TYPE_CHECKING:
    from git import Repo

    from flor_plugins.records import Code, Run
    from flor_plugins.store.layout import Store

SUFFIX = ".py"
LINK = 0o120000  # the mode by which git knows a symbolic link
SETTINGS = frozenset((".yaml", ".yml", ".json", ".toml", ".cfg", ".ini"))
NOT_CODE_FOLDERS = frozenset(("node_modules", "__pycache__"))


class SnapshotSources:
    """The python files of recorded versions, from git's objects; each is read once.

    root: of the working tree.
    """

    def __init__(self, store: Store, root: Path) -> None:
        self._store, self.root = store, root
        self._versions: dict[str, dict[str, str]] = {}
        self._texts: dict[str, str] = {}

    def of(self, code: Code) -> dict[str, str]:
        """Return a version's files, path beneath the top of the repository to text.

        Raises SnapshotError if git refuses.
        """
        if code.vid not in self._versions:
            with find_commit(code, self._store, self.root) as repo:
                self._versions[code.vid] = dict(sorted(self._read(repo, code)))
        return self._versions[code.vid]

    def _read(self, repo: Repo, code: Code) -> Iterator[tuple[str, str]]:
        with git_errors_explained(f"the code of commit {code.vid} was to be read"):
            for entry in repo.commit(code.vid).tree.traverse():
                blob: Any = entry  # declared as any of git's objects
                if blob.type != "blob" or blob.mode == LINK or not str(blob.path).endswith(SUFFIX):
                    continue
                if blob.hexsha not in self._texts:  # most files are the same ones in many versions
                    self._texts[blob.hexsha] = text(blob.data_stream.read())
                yield str(blob.path), self._texts[blob.hexsha]


def edit_since(base: Run, recorded: SnapshotSources) -> Edit | None:
    """Return what was added in the working tree since a run; None if nothing differs.

    Files that the training does not import (tests, other scripts) count only where something is
    logged in them. Settings in other files (yaml, json) are no part of it: an old version keeps
    its own; `settings_changed` names them. Raises EditRefused where the edit would change the
    training, SnapshotError where git refuses.
    """
    assert base.code is not None
    sources = recorded.of(base.code)
    edited = _of_training(base, sources, working_sources(recorded.root))
    label = f"run {base.name}, {base.run_id}, commit {base.code.vid[:12]}"
    edit = edit_of(sources, edited, label)
    return edit if edit.insertions else None


def is_from(run: Run, root: Path) -> bool:
    """Whether a run was recorded from a working tree."""
    return run.code is not None and Path(run.code.root).resolve() == root.resolve()


def base_of(runs: Iterable[Run], recorded: SnapshotSources) -> Run | None:
    """Return the recorded run that the working tree came from.

    It is the one with the fewest statements changed or added since, of several the newest. None
    if no run was recorded from there. Raises SnapshotError if git refuses.
    """
    working = working_sources(recorded.root)
    known: dict[tuple[str, str], tuple[int, int]] = {}
    distances: dict[str, tuple[int, int]] = {}
    best: tuple[tuple[int, int], Run] | None = None
    for run in sorted(runs, key=attrgetter("run_id"), reverse=True):
        if run.code is None or not is_from(run, recorded.root):
            continue
        vid = run.code.vid
        if vid not in distances:
            distances[vid] = _distance(recorded.of(run.code), working, known)
        if best is None or distances[vid] < best[0]:
            best = distances[vid], run
    return best[1] if best is not None else None


def working_sources(root: Path) -> dict[str, str]:
    """Return the python files of a working tree as they stand.

    These are what git tracks or sees; without git what is code there.
    """
    seen = _seen_by_git(root)
    return {
        path: text((root / path).read_bytes())
        for path in sorted(_walked(root) if seen is None else seen)
        if path.endswith(SUFFIX) and (root / path).is_file() and not (root / path).is_symlink()
    }


def settings_changed(code: Code, root: Path) -> list[str]:
    """Return files of settings that git tracks and that are not as they were in that commit.

    They do not reach a replay: each version reads its own. A new value there is for the next
    run only. [] without git.
    """
    from git import Git, GitCommandError

    try:
        out = Git(root).execute(["git", *QUIET, "diff", "--name-only", "-z", code.vid, "--"])
    except GitCommandError:  # no work tree, or the commit lies in the store's own repository
        return []
    assert isinstance(out, str)
    return sorted(
        path for path in out.split("\0") if PurePosixPath(path).suffix.lower() in SETTINGS
    )


def text(content: bytes) -> str:
    """Return what Python would read: by the file's own encoding line, without its mark."""
    try:
        return content.decode(_encoding(content))
    except (SyntaxError, UnicodeDecodeError):  # no Python; it is told where it matters
        return content.decode("latin-1")


def as_bytes(source: str) -> bytes:
    """Return the bytes that Python reads as that text."""
    return source.encode(_encoding(source.encode("utf-8")))


def _encoding(content: bytes) -> str:
    return tokenize.detect_encoding(io.BytesIO(content).readline)[0]


def _distance(
    base: Mapping[str, str],
    working: Mapping[str, str],
    known: dict[tuple[str, str], tuple[int, int]],
) -> tuple[int, int]:
    """Return (statements changed or gone, statements added).

    A new file is neither: it may not be of the training.
    """
    changed, added = len(base.keys() - working.keys()), 0
    for path in base.keys() & working.keys():
        pair = base[path], working[path]
        if pair[0] == pair[1]:
            continue
        if pair not in known:
            known[pair] = _file_distance(path, *pair)
        changed, added = changed + known[pair][0], added + known[pair][1]
    return changed, added


def _file_distance(path: str, base: str, working: str) -> tuple[int, int]:
    was, now = parsed(path, base), parsed(path, working)
    if was is None or now is None:
        return 1, 0
    new, changed = compare(path, was, now)
    return len(changed), len(new)


def _of_training(run: Run, base: Mapping[str, str], edited: Mapping[str, str]) -> dict[str, str]:
    """Return the working tree, with files that the run does not import as they were.

    All of it if its script is not known.
    """
    was, now = CodeVersion(base), CodeVersion(edited)
    entry = entry_of(run, was)
    if entry is None:
        return dict(edited)
    meant = {
        path
        for path in base.keys() | edited.keys()
        if base.get(path) != edited.get(path)
        and (leads_to(was, entry, path) or leads_to(now, entry, path) or _logs_more(path, was, now))
    }
    kept = {path: text for path, text in base.items() if path not in meant}
    return kept | {path: text for path, text in edited.items() if path in meant}


def entry_of(run: Run, version: CodeVersion) -> str | None:
    """Return the file of a version that was launched; None if it is not there."""
    launch, root = run.launch, Path(run.code.root) if run.code else Path()
    module = launch.target.partition(":")[0].replace(".", "/")
    folder = Path(launch.folder or launch.cwd)
    candidates = {
        "script": [Path(launch.cwd, launch.target)],
        "module": [folder / f"{module}.py", folder / module / "__main__.py"],
        "recipe": [folder / f"{module}.py", folder / module / "__init__.py"],
    }.get(launch.kind, [])
    for file in candidates:
        path = os.path.relpath(os.path.normpath(root / file), root).replace(os.sep, "/")
        if path in version.trees:
            return path
    return None


def _logs_more(path: str, was: CodeVersion, now: CodeVersion) -> bool:
    """Whether something is logged there that was not.

    Then it is meant, however the file is imported.
    """
    before, after = was.trees.get(path), now.trees.get(path)
    if before is None or after is None:
        return False
    added, _ = compare(path, before, after)
    return any(logging_calls(statement.node) for statement in added)


def _seen_by_git(root: Path) -> list[str] | None:
    """Return what git tracks or sees.

    None without a repository, or where git ignores the folder.
    """
    from git import Git, GitCommandError

    git = Git(root)
    try:
        git.execute(["git", *QUIET, "check-ignore", "-q", "."])
        return None
    except GitCommandError as error:
        if error.status != 1:  # 1: not ignored
            return None
    with git_errors_explained(f"the files in {root} were to be listed"):
        listed = git.execute(
            ["git", *QUIET, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            stdout_as_string=False,
        )
    assert isinstance(listed, bytes)
    return [os.fsdecode(path) for path in listed.split(b"\0") if path]


def _walked(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _may_hold_code(Path(here, name)))
        for name in files:
            yield os.path.relpath(os.path.join(here, name), root).replace(os.sep, "/")


def _may_hold_code(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in NOT_CODE_FOLDERS
    return not (hidden or (folder / "pyvenv.cfg").exists() or (folder / ".git").exists())
