"""Processes that are started fast and killed, and what makes two runs the same.

`python -m tests.resuming` loads the trainers once and forks a process for every script that it
is told to run."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.recorder.checkpointing.writer_lock import wait_for_writer
from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints, tensor_hashes
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.reserved_names import is_measured
from flor_plugins.store.runs import list_runs
from tests.conftest import PROJECTS, QUIET, environment, table_of

ROOT = Path(__file__).parents[1]
SCRIPT = "resume_cell.py"


class Starter:
    """Runs scripts in processes of their own, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, *argv: str, **env: str) -> tuple[int, str]:
        """`python ARGV...` in a folder; returns exit status (-9 after SIGKILL) and output."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {
            "folder": str(folder),
            "argv": argv,
            "env": env,
            "output": str(folder / "output.txt"),
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, (folder / "output.txt").read_text()


@contextmanager
def starter() -> Iterator[Starter]:
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.resuming"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield Starter(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture(scope="module")
def start() -> Iterator[Starter]:
    with starter() as made:
        yield made


Whole = Callable[[str, str], Run]


@pytest.fixture(scope="module")
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


# ---- in the process that starts them


def serve() -> None:
    """One order a line; answers with the exit status."""
    for name in ("lightning.pytorch", "tests.cells_lightning", "tests.cells_hf", "flor_plugins.hf"):
        __import__(name)
    for name in (
        "flor_plugins.lightning",
        "flor_plugins.recorder.start_run",
        "pandas",
        "pyarrow.parquet",
        "git",
    ):
        __import__(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _be(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be(order: dict[str, Any]) -> None:
    status = 1
    with open(order["output"], "w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.chdir(order["folder"])
    os.environ.update(order["env"])
    sys.argv = list(order["argv"])
    sys.path.insert(0, order["folder"])
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    os.environ.update(QUIET)
    serve()
