"""Scripts that train, each in a process of its own that is forked from one in which the
heavy packages are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

# As `python train.py ARGS` in that folder, but for the time that imports take.
LOOP = """
import json, os, runpy, sys
import flor_plugins.{framework}, pandas
for line in sys.stdin:
    folder, *argv = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.path.join(folder, "output.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Trainings:
    """Scripts of one framework. Use it in a `with`."""

    def __init__(self, framework: str) -> None:
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FLOR_DIR", "PYTHONPATH")
        }
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP.format(framework=framework)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)

    def run(self, folder: Path, *argv: str) -> None:
        """`python ARGV` there; its output goes to output.log, which is shown if it fails."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), *argv]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "0", (folder / "output.log").read_text()


@contextmanager
def trainings(framework: str) -> Iterator[Trainings]:
    with Trainings(framework) as started:
        yield started
