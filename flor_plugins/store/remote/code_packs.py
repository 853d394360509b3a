"""One version of the code as one file.

It is a git pack of a commit and all that its tree holds, without its history.

A bundle would carry all commits before it, once per version. The repository that a pack is put
into knows the commit as the first of a shallow history, as after `git fetch --depth 1`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.errors import SnapshotError
from flor_plugins.store.files import alone_in, whole_file
from flor_plugins.store.remote.commits import QUIET, git_errors_explained

if TYPE_CHECKING:
    from git import Repo


def pack(repo: Repo, vid: str, file: Path) -> None:
    """Write the pack of commit `vid` (40 hex digits). Raises SnapshotError where git refuses."""
    git_dir = os.path.abspath(repo.common_dir)
    with git_errors_explained(f"commit {vid} of {git_dir} was to be packed"):
        # objects of a submodule lie in another repository: git lists none of them
        listed = _git(git_dir, "rev-list", "--objects", "--no-object-names", "--no-walk", vid)
        with whole_file(file) as scratch:
            scratch.write_bytes(_git(git_dir, "pack-objects", "-q", "--stdout", given=listed))


def unpack(file: Path, vid: str, git_dir: Path) -> None:
    """Put a pack into a bare repository, which is made if it is not there.

    Twice, or two at once, does no harm.

    The commit is kept alive by refs/flor/<vid>. Raises SnapshotError for a torn pack, or one of
    another commit.
    """
    with git_errors_explained(f"commit {vid} was to be put into {git_dir} from {file}"):
        git_dir.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(git_dir.parent):  # two `git init` of one folder at once fail each other
            _git(None, "init", "-q", "--bare", "--template=", str(git_dir))
        _git(str(git_dir), "index-pack", "--stdin", "--fix-thin", given=file.read_bytes())
        with open(
            git_dir / "shallow", "a"
        ) as shallow:  # one short line: two that append at once do not mix
            shallow.write(f"{vid}\n")
        _git(str(git_dir), "update-ref", f"refs/flor/{vid}", vid)


def _git(git_dir: str | None, *args: str, given: bytes = b"") -> bytes:
    """What git prints. Not through GitPython, which decodes it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    place = {"GIT_DIR": git_dir} if git_dir else {}
    done = subprocess.run(
        ["git", *QUIET, *args],
        input=given,
        capture_output=True,
        env={**environment, "LC_ALL": "C", **place},
    )
    if done.returncode:
        raise SnapshotError(
            f"git {args[0]} failed (exit status {done.returncode}): "
            f"{' '.join(done.stderr.decode(errors='replace').split())}. "
            f"See what `git fsck` says of {git_dir or args[-1]}, and whether the disk is full."
        )
    return done.stdout
