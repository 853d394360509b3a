"""Where a store lies and what its folders are called. Nothing here reads a run."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.store.files import make_folder

FOLDER = ".flor"
VARIABLE = "FLOR_DIR"


@dataclass(frozen=True, slots=True)
class Store:
    """The folder that holds all runs and replays; it need not exist yet."""

    root: Path

    @property
    def runs(self) -> Path:
        """Return the folder of all runs."""
        return self.root / "runs"

    @property
    def replays(self) -> Path:
        """Return the folder of all replays."""
        return self.root / "replays"

    def run(self, run_id: str) -> Path:
        """Return the folder of a run."""
        return self.runs / run_id

    def replay(self, replay_id: str) -> Path:
        """Return the folder of a replay."""
        return self.replays / replay_id

    def make(self) -> Store:
        """Create the folder, with a `.gitignore` that hides it from git. Returns itself.

        A folder that already held something is left as it is: a `.gitignore` of
        ours there would hide the user's own files.
        """
        try:
            make_folder(self.root)
            if not any(self.root.iterdir()):
                (self.root / ".gitignore").write_text("*\n")
        except OSError as error:
            raise StoreError(
                f"the store can't be created: {error.strerror or error}, at {self.root}. "
                f"Set {VARIABLE} to a folder that can be written."
            ) from error
        return self


def find_store(start: Path | None = None) -> Store:
    """The store that a process working in `start` (default: the current folder) uses.

    $FLOR_DIR wins; then `.flor` at the top of the git work tree around `start`;
    then `start/.flor`. Nothing is created. Raises StoreError where $FLOR_DIR is the url of an
    object store.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return store_in(named)
    here = (start or Path.cwd()).absolute()
    return Store((_git_top(here) or here) / FOLDER)


def store_in(folder: str | Path) -> Store:
    """The store in a folder that was named. Raises StoreError for the url of an object store."""
    if is_url(str(folder)):
        raise StoreError(
            f"the store {folder} was asked for; this needs a folder: an object store can be "
            f"read and replayed. "
            f"Name a folder, and put its runs there: flor-hf upload {folder}"
        )
    return Store(Path(folder).expanduser().absolute())


def is_url(text: str) -> bool:
    """Say whether a text names an object store, and not a folder."""
    return "://" in text


def new_id(now: datetime | None = None) -> str:
    """An id that sorts by time and is unique: 20261123-200501-123-9f3a2c (UTC, ms, random)."""
    at = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{at:%Y%m%d-%H%M%S}-{at.microsecond // 1000:03d}-{secrets.token_hex(3)}"


def _git_top(folder: Path) -> Path | None:
    # `.git` is a file in worktrees and submodules, so exists() and not is_dir()
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), None)
