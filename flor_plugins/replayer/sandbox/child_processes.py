"""Programs that a replayed script starts: another Python is guarded, other programs are not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLE = "FLOR_GUARD"
STARTUP = Path(__file__).parent / "startup"  # holds a sitecustomize.py, which every Python loads
IMPORT_PATH = str(Path(__file__).resolve().parents[3])  # the folder that holds flor_plugins

# They write nothing; libraries ask them about the machine when they are imported.
READERS = frozenset(
    [
        "arch",
        "getconf",
        "hostname",
        "id",
        "ldconfig",
        "lscpu",
        "nproc",
        "nvidia-smi",
        "sw_vers",
        "uname",
        "whoami",
    ]
)
WITHOUT_STARTUP = frozenset("EIS")  # options of Python that leave the environment or `site` out

# Where an event names the program, its arguments and its environment.
EVENTS: dict[str, tuple[int, int, int]] = {
    "subprocess.Popen": (0, 1, 3),
    "os.exec": (0, 1, 2),
    "os.posix_spawn": (0, 1, 2),
    "os.spawn": (1, 2, 3),
}


def bind_pythons(guard: Mapping[str, Any]) -> None:
    """Let each Python that this process starts begin with a guard (see `inherited_guard`)."""
    paths = [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path and path != str(STARTUP)
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(STARTUP), *paths, IMPORT_PATH]))
    os.environ[VARIABLE] = json.dumps(guard)


def inherited_guard() -> dict[str, Any] | None:
    """Return the guard that this process was started with."""
    guard = os.environ.get(VARIABLE)
    return json.loads(guard) if guard else None


def unguarded(event: str, args: tuple[Any, ...]) -> str | None:
    """Return the program that an event is about to start, if no guard comes along with it."""
    if event == "os.system":
        return os.fsdecode(args[0])
    program, words, environment = (
        args[place] if len(args) > place else None for place in EVENTS[event]
    )
    words = [words] if isinstance(words, str | bytes | os.PathLike) else list(words or ())
    named = os.fsdecode(program if program is not None else words[0])
    path = shutil.which(named) or named
    is_reader = os.path.basename(path) in READERS
    if is_reader or (_is_python(path) and _starts_guarded(words[1:], environment)):
        return None
    return " ".join(os.fsdecode(word) for word in words) or named


def _is_python(program: str) -> bool:
    return os.path.realpath(program) == os.path.realpath(sys.executable)


def _starts_guarded(words: Sequence[Any], environment: Mapping[Any, Any] | None) -> bool:
    given = os.environ if environment is None else environment
    variables = {os.fsdecode(name): os.fsdecode(value) for name, value in given.items()}
    first = variables.get("PYTHONPATH", "").split(os.pathsep)[0]
    if variables.get(VARIABLE) != os.environ.get(VARIABLE) or first != str(STARTUP):
        return False
    for word in map(os.fsdecode, words):
        if not word.startswith("-") or word in ("-", "-c", "-m"):
            return True  # what follows is the program's
        if not word.startswith("--") and WITHOUT_STARTUP & set(
            word[1:].partition("W")[0].partition("X")[0]
        ):
            return False
    return True
