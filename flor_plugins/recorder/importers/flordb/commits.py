"""FlorDB's own commits: which one holds the code of a run, and which values were arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flor_plugins.recorder.importers.flordb.typed_values import value_of
from flor_plugins.records import Code, JsonObject
from flor_plugins.store.remote.commits import QUIET, git_errors_explained

_SUBJECT = "FLOR::Auto-commit::"


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """args: what `flor.arg` gave, where the commit says it (FlorDB 4)."""

    code: Code
    args: Mapping[str, object] = field(default_factory=dict)


def commits_in(folder: Path) -> dict[str, CommitInfo]:
    """Return FlorDB's commits by tstamp; none without a repository.

    They are of all branches of the repository at or above a folder.

    Raises SnapshotError where git refuses.
    """
    with git_errors_explained(f"FlorDB's commits were looked for at {folder}"):
        from git import InvalidGitRepositoryError, NoSuchPathError, Repo

        try:
            repo = Repo(folder, search_parent_directories=True)
        except (InvalidGitRepositoryError, NoSuchPathError):
            return {}
        with repo:
            asked = [
                "log",
                "--all",
                "--fixed-strings",
                f"--grep={_SUBJECT}",
                "-z",
                "--format=%H%n%B",
            ]
            text = repo.git.execute(["git", *QUIET, *asked], stdout_as_string=True)
            root = str(repo.working_tree_dir or repo.common_dir)
            git_dir = str(Path(repo.common_dir).resolve())
    found: dict[str, CommitInfo] = {}
    for entry in str(text).split("\0"):
        vid, _, message = entry.strip().partition("\n")
        subject, _, body = message.strip().partition("\n")
        if subject.startswith(_SUBJECT):
            tstamp = subject.removeprefix(_SUBJECT).strip()
            found.setdefault(tstamp, CommitInfo(Code(vid, git_dir, root), _args(body)))
    return found


def _args(body: str) -> JsonObject:
    pairs = (line.partition("=") for line in body.splitlines() if "=" in line)
    return {name.strip(): value_of(value.strip()) for name, _, value in pairs}
