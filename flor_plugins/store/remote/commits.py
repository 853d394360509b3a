"""The commits that hold the code of runs.

git is asked without running the user's programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.errors import SnapshotError
from flor_plugins.records import Code

if TYPE_CHECKING:
    from git import Repo

    from flor_plugins.store.layout import Store

# Hooks, monitors and signing are the user's programs: a snapshot runs none of them.
QUIET = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "commit.gpgSign=false"),
    *(
        "-c",
        "core.splitIndex=false",
        "-c",
        "core.logAllRefUpdates=false",
        "-c",
        "log.showSignature=false",
    ),
)


def find_commit(code: Code, store: Store, start: Path) -> Repo:
    """The repository that holds code.vid; the caller closes it.

    Looks in code.git_dir, then in the repository at or above `start` (it may be bare),
    then in the one around the store, then in the store's own; else SnapshotError.
    """
    asked = f"the code of commit {code.vid} was asked for"
    with git_errors_explained(asked):
        from git import InvalidGitRepositoryError, NoSuchPathError, Repo

        tried = []
        for place in (Path(code.git_dir), start, store.root, store.root / "code.git"):
            try:
                repo = Repo(place, search_parent_directories=place in (start, store.root))
            except (InvalidGitRepositoryError, NoSuchPathError):
                tried.append(f"{place} (no repository)")
                continue
            if _has_commit(repo, code.vid):
                return repo
            tried.append(str(repo.common_dir))
            repo.close()
    raise SnapshotError(
        f"{asked}; it is in none of: {', '.join(dict.fromkeys(tried))}. If it was pushed, "
        "get it with: git fetch <origin> 'refs/flor/*:refs/flor/*'"
    )


@contextmanager
def git_errors_explained(asked: str) -> Iterator[None]:
    """Turn what git says into a SnapshotError that says what was asked."""
    try:
        yield
    except ImportError as error:  # GitPython raises this where there is no git
        raise SnapshotError(f"{asked}; git can't be used: {error}. Install git.") from error
    except SnapshotError:
        raise
    except Exception as error:
        from git import GitError

        if not isinstance(error, GitError | OSError | ValueError):
            raise
        said = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise SnapshotError(
            f"{asked}; git refused: {said}. See what `git status` says there."
        ) from error


def _has_commit(repo: Repo, vid: str) -> bool:
    from git import GitCommandError

    try:
        repo.git.execute(["git", *QUIET, "cat-file", "-e", f"{vid}^{{commit}}"])
    except GitCommandError:
        return False
    return True
