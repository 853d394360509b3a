"""Processes that are started fast and killed, and what makes two runs the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.recorder.checkpointing.writer_lock import wait_for_writer
from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints, tensor_hashes
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.reserved_names import is_measured
from flor_plugins.store.runs import list_runs
from tests.conftest import PROJECTS, environment, table_of
from tests.trainings import run_python

TIMEOUT_S = 240
SCRIPT = "resume_cell.py"


class Starter:
    """Runs scripts in processes of their own, one after the other."""

    def run(self, folder: Path, *argv: str, **env: str) -> tuple[int, str]:
        """`python ARGV...` in a folder; returns exit status (-9 after SIGKILL) and output."""
        done = run_python(folder, argv, environment(env), TIMEOUT_S)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def start() -> Starter:
    return Starter()


Whole = Callable[[str, str], Run]


@pytest.fixture(scope="session")
def whole(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The uninterrupted run of a cell."""
    known: dict[tuple[str, str], Run] = {}

    def of(framework: str, cell: str) -> Run:
        if (framework, cell) not in known:
            folder = make_folder(tmp_path_factory.mktemp("whole") / "project")
            status, output = start.run(folder, SCRIPT, framework, cell)
            assert status == 0, output
            known[framework, cell] = the_run(folder)
        return known[framework, cell]

    return of


def make_folder(folder: Path) -> Path:
    """A folder with the script of the cells, without git."""
    folder.mkdir(parents=True)
    shutil.copy(PROJECTS / "resume_cell.py", folder)
    return folder


def the_run(folder: Path) -> Run:
    (run,) = list_runs(Store(folder / ".flor"))
    wait_for_writer(run.path)
    return run


def differences(run: Run, whole: Run) -> list[str]:
    """What is not equal in two runs, clocks aside: rows, checkpoints, end.

    A value that stands twice is an error.
    """
    found = []
    for name in ("status", "position", "error", "gaps", "obstacles"):
        if getattr(run, name) != getattr(whole, name):
            found.append(f"{name}: {getattr(run, name)!r} and {getattr(whole, name)!r}")
    mine, other = _rows(run), _rows(whole)
    found += [(f"{place}: {mine.get(place)} and "
              f"{other.get(place)}") for place in mine.keys() | other.keys()
              if mine.get(place) != other.get(place)]  # fmt: skip
    tensors, others = _tensors(run), _tensors(whole)
    found += [
        f"tensors at {one}"
        for one in tensors.keys() | others.keys()
        if tensors.get(one) != others.get(one)
    ]
    return found


def _rows(run: Run) -> dict[Any, str]:
    return {
        place: repr(
            {name: value for name, value in sorted(values.items()) if not is_measured(name)}
        )
        for place, values in table_of(run).items()
    }


def _tensors(run: Run) -> dict[Position, Any]:
    return {
        one.position: [
            tensor_hashes(run.path, one.position, section) for section in ("model", "optimizer")
        ]
        for one in list_checkpoints(run.path)
    }
