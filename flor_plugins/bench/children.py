"""Processes of a bench: each trains once or answers once, and writes what it measured."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.errors import FlorError
from flor_plugins.records import JsonObject
from flor_plugins.store.files import read_json
from flor_plugins.store.layout import VARIABLE

# a terminal's Ctrl-C has reached the child, too: a replay takes its worker and its scratch
# files away
_GRACE_S = 10.0
RESULT = "{result}"


@dataclass(frozen=True, slots=True)
class BenchProcesses:
    """Where they record, and the file that gets what they print."""

    store: Path
    log: Path

    def run(self, module: str, arguments: Sequence[str], what: str) -> tuple[JsonObject, float]:
        """What a module of this package has written, and the seconds from its start to its end.

        arguments: RESULT among them stands for the file that it is to write. Raises FlorError where
        it fails, with its last line.
        """
        with (
            tempfile.TemporaryDirectory(prefix="flor-bench-") as scratch,
            self.log.open("ab") as log,
        ):
            result = os.path.join(scratch, "result.json")
            command = [
                sys.executable,
                "-m",
                f"flor_plugins.bench.{module}",
                *(result if word == RESULT else word for word in arguments),
            ]
            log.write(f"\n# {what}\n".encode())
            log.flush()
            begin, began = self.log.stat().st_size, time.perf_counter()
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, VARIABLE: str(self.store)},
            )  # fmt: skip
            try:
                status = child.wait()
            except BaseException:
                _end(child)
                raise
            seconds = time.perf_counter() - began
            if status:
                raise FlorError(
                    f"{what} ended with exit status {status}: {self._last_line(begin)} (all: "
                    f"{self.log})"
                )
            return read_json(Path(result)), seconds

    def _last_line(self, begin: int) -> str:
        with self.log.open("rb") as log:
            log.seek(begin)
            lines = [
                line.strip()
                for line in log.read().decode(errors="replace").splitlines()
                if line.strip()
            ]
        return lines[-1] if lines else "it said nothing"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for it to end by itself, and see that it does."""
    for ask in (child.poll, child.terminate, child.kill):
        ask()
        try:
            child.wait(_GRACE_S)
            return
        except subprocess.TimeoutExpired:
            continue
