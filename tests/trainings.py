"""Scripts in processes of their own that are forked from one in which the heavy packages are
imported: as `python ARGS`, but for the seconds that imports take.

A process of pytest has one such parent, for all of its tests. What an interpreter or a library
reads only when it starts needs a new interpreter, and gets one: flags, and the variables that
READ_AT_START names."""

from __future__ import annotations

import atexit
import builtins
import gc
import json
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
READ_AT_START = re.compile(
    r"PYTHON(?!PATH$|UNBUFFERED$|DONTWRITEBYTECODE$|WARNINGS$)|(OMP|MKL|HF|TORCH|CUDA|CUBLAS|LD|MALLOC)_"
)
PRELOADED = (
    "pyarrow.parquet",
    "pyarrow.compute",
    "pandas",
    "duckdb",
    "git",
    "lightning.pytorch",
    "transformers.trainer",
    "transformers.models.gpt2.modeling_gpt2",
    "flor_plugins.api",
    "flor_plugins.hf",
    "flor_plugins.lightning",
    "flor_plugins.loops",
    "flor_plugins.recorder.start_run",
    "flor_plugins.cli.app",
    "flor_plugins.replayer.requests",
)


def run_python(
    folder: Path, args: Sequence[str], env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """`python ARGS` in a folder, with these variables and no others.

    Its exit status is the caller's to look at. Raises subprocess.TimeoutExpired.
    """
    parent = fork_parent()
    if parent.can_run(args, env):
        return parent.run(folder, args, env, timeout_s)
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=dict(env), timeout=timeout_s, capture_output=True,
        text=True,
    )  # fmt: skip


def variables(**more: str) -> dict[str, str]:
    """Those of a user who has neither a store nor a PYTHONPATH: a run records the latter."""
    ours = ("FLOR_DIR", "PYTHONPATH")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **more}


class ForkParent:
    """The process that forks, and the line to it: one script after the other."""

    def __init__(self) -> None:
        self._env, self._lock = variables(), threading.Lock()
        own = {"PYTHONPATH": str(ROOT), "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._env | own,
        )

    def can_run(self, args: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a fork does what a new interpreter with these arguments would do."""
        read = {name for name in {*env, *self._env} if READ_AT_START.match(name)}
        has_flags = args[0].startswith("-") and args[0] not in ("-c", "-m")
        return not has_flags and all(env.get(name) == self._env.get(name) for name in read)

    def run(
        self, folder: Path, args: Sequence[str], env: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        with self._lock, tempfile.TemporaryDirectory(prefix="flor-tests-") as scratch:
            outputs = [Path(scratch, name) for name in ("stdout", "stderr")]
            order = {"folder": str(folder), "args": list(args), "env": dict(env)}
            self._tell(order | {"outputs": [str(path) for path in outputs]})
            pid = int(self._answer(None))
            try:
                status = int(self._answer(timeout_s))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)  # it is not reaped yet
                self._answer(None)
                raise subprocess.TimeoutExpired(list(args), timeout_s) from None
            printed = [path.read_text() for path in outputs]
        return subprocess.CompletedProcess([sys.executable, *args], status, *printed)

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _tell(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _answer(self, timeout_s: float | None) -> str:
        answers = self._process.stdout
        assert answers is not None
        if not select.select([answers], [], [], timeout_s)[0]:
            raise TimeoutError
        return answers.readline()


@cache
def fork_parent() -> ForkParent:
    """That of this process, started when it is first needed."""
    parent = ForkParent()
    atexit.register(parent.close)
    return parent


# ---- in the parent


def serve(orders: IO[str]) -> None:
    """One order a line; answers with the child's pid, then with its exit status."""
    import numpy

    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # a collection in a child doesn't write to, and so copy, every page
    for line in orders:
        child = os.fork()
        if child == 0:
            numpy.random.seed()  # drawn from the system, as in a new interpreter
            _be(json.loads(line))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be(order: dict[str, Any]) -> NoReturn:
    for stream, path in enumerate([os.devnull, *order["outputs"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, stream)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    # A shell's background job, and so its children, have Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    given = [one for one in order["env"].get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*given, *(one for one in sys.path if one not in given)]
    status = _run(order["args"])
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter does at its end
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(status)


def _run(args: list[str]) -> int:
    """The exit status; -2 for Ctrl-C."""
    try:
        if args[0] == "-m":
            sys.argv = args[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        elif args[0] == "-c":
            sys.argv = ["-c", *args[2:]]
            sys.path.insert(0, "")
            exec(compile(args[1], "<string>", "exec"), _main())
        else:
            sys.argv = args
            path = os.path.join(os.getcwd(), args[0])  # as an interpreter does, not normalized
            sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
            exec(compile(Path(path).read_bytes(), path, "exec"), _main(path))
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return -signal.SIGINT
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _main(path: str | None = None) -> dict[str, Any]:
    """The names of a new `__main__`."""
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    if path is not None:
        main.__file__ = path
    sys.modules["__main__"] = main
    return main.__dict__


if __name__ == "__main__":
    serve(sys.stdin)
