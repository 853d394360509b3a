"""The command line in the process of the tests, its output caught as of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO
from unittest.mock import patch

from flor_plugins.cli import main


def flor_here(
    folder: Path, args: Sequence[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`flor-hf ARGS` in a folder, with these variables and no others. It has no time limit of its
    own: the test's is one."""
    command = ["flor-hf", *args]
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in "oe"
        ]
        with _place(folder, env), patch.object(sys, "argv", command), _written_to(*outputs):
            status = _status()
        for file in outputs:
            file.seek(0)
        return subprocess.CompletedProcess(command, status, *(file.read() for file in outputs))


def _status() -> int:
    # as of `python -c`: a main module that is no file of the user's
    with patch.dict(sys.modules, {"__main__": types.ModuleType("__main__")}):
        try:
            main()
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


@contextmanager
def _place(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    before = Path.cwd()
    with patch.dict(os.environ, dict(env), clear=True):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextmanager
def _written_to(out: IO[str], err: IO[str]) -> Iterator[None]:
    """What this process and its children print."""
    with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
        before = os.dup(1), os.dup(2)
        try:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for number, (file, kept) in enumerate(zip((out, err), before, strict=True), start=1):
                file.flush()
                os.dup2(kept, number)
                os.close(kept)
