"""Where a benchmark records: a git repository and a store of its own, gone when it is over."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import flor_plugins
from flor_plugins.records import Launch
from flor_plugins.store.checkpoints import list_checkpoints

_IDENTITY = {
    f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


@dataclass(frozen=True, slots=True)
class Place:
    """root: scratch; project: a git repository with a script and as much code as a project has."""

    root: Path
    project: Path
    _numbers: Iterator[int]

    def folder(self) -> Path:
        """A new empty folder."""
        made = self.root / f"scratch-{next(self._numbers)}"
        made.mkdir()
        return made

    def callback(self, framework: str, folder: Path, **options: Any) -> Any:
        """A FlorCallback that records into `folder`, as if the project's script had made it.

        The budget of time is off unless asked for: what checkpoints cost is measured, and none
        may be skipped."""
        made = import_module(f"flor_plugins.{framework}").FlorCallback
        known = inspect.signature(made).parameters
        budget = {"overhead": None} if "overhead" in known else {}
        callback = made("benchmark", store=folder, **{**budget, **options})
        callback.launch = Launch(
            kind="script", target=str(self.project / "train.py"), cwd=str(self.project)
        )
        return callback


@contextmanager
def place(folder: str | None = None) -> Iterator[Place]:
    """Yield a Place; everything written there is deleted afterwards."""
    with tempfile.TemporaryDirectory(
        prefix="flor-benchmark-", dir=folder, ignore_cleanup_errors=True
    ) as root:
        project = Path(root) / "project"
        source = Path(flor_plugins.__file__).parent
        shutil.copytree(
            source, project / "flor_plugins", ignore=shutil.ignore_patterns("__pycache__")
        )
        (project / "train.py").write_text("# stands for the script of a user\n", encoding="utf-8")
        for command in ("init -q -b main", "add .", "commit -q -m first"):
            subprocess.run(
                ["git", *command.split()], cwd=project, env=os.environ | _IDENTITY, check=True
            )
        yield Place(Path(root), project, count())


def remove(folder: Path) -> None:
    """Delete what was written, and wait until the disk has nothing left to do for the next one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def require(folder: Path, steps: Collection[int]) -> None:
    """What was to be saved must have been: raises AssertionError if a run in `folder` has no
    checkpoint at a step.
    """
    for run in run_paths(folder):
        there = {one.position.step for one in list_checkpoints(run)}
        missing = sorted(set(steps) - there)
        if missing:
            raise AssertionError(
                f"no checkpoint at steps {missing}, only at {sorted(there)}: nothing was "
                f"measured there"
            )


def run_paths(folder: Path) -> list[Path]:
    """The runs in a store, oldest first."""
    return sorted(one.parent for one in (folder / "runs").glob("*/run.json"))
