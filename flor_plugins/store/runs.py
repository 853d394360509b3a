"""run.json: what is known of a run, written and read; and which run a name means."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import socket
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flor_plugins.errors import StoreError, UnknownRun
from flor_plugins.records import RecordingProcess, Run, from_json
from flor_plugins.store.files import read_json, write_json
from flor_plugins.store.layout import Store

FORMAT = 1
SHORTEST_PREFIX = 4
FIELDS = tuple(field.name for field in dataclasses.fields(Run) if field.name != "path")


def save_run(run: Run) -> None:
    """Write `run.path`/run.json, whole. Parameters that JSON can't say are written as text."""
    run.path.mkdir(parents=True, exist_ok=True)
    content = {name: plain(getattr(run, name)) for name in FIELDS}
    write_json(run.path / "run.json", {"format": FORMAT, **content})


def load_run(path: Path) -> Run:
    """The run in the folder `path`; StoreError if its run.json is gone, torn or too new.

    A run that says "running" and whose process is gone from this host is "killed".
    Of a run that another host records, the status is what that host last wrote.
    """
    file = path / "run.json"
    content = read_json(file)
    try:
        if content["format"] > FORMAT:
            raise StoreError(
                f"{file} has format {content['format']}, and this version reads up to "
                f"{FORMAT}. Update flor_plugins."
            )
        run = from_json(Run, {**_unplain(content), "path": path}, strict=True)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(
            f"{file} was asked for and is not a run: {type(error).__name__} {error}. "
            f"Repair it, or move the folder out of the store."
        ) from error
    if run.status == "running" and is_gone(run.process):
        return dataclasses.replace(run, status="killed")
    return run


def list_runs(store: Store) -> list[Run]:
    """All runs, the oldest first. Damaged ones are left out, with one warning for all."""
    runs, damaged = [], []
    for path in _folders(store):
        try:
            runs.append(load_run(path))
        except StoreError as error:
            if (path / "run.json").exists():  # else the run was deleted meanwhile
                damaged.append(str(error))
    if damaged:
        warnings.warn(f"{len(damaged)} run(s) are left out: " + "; ".join(damaged), stacklevel=2)
    return runs


def find_run(store: Store, text: str) -> Run:
    """The run with this run_id, else the newest with this name, else the one whose id begins so.

    A beginning counts from four characters on and only if one run has it. UnknownRun otherwise.
    """
    path = store.run(text)
    if path.name == text and not text.startswith(".") and (path / "run.json").exists():
        return load_run(path)
    runs = list_runs(store)
    named = [run for run in runs if run.name == text]
    if named:
        return named[-1]
    begun = (
        [run for run in runs if run.run_id.startswith(text)] if len(text) >= SHORTEST_PREFIX else []
    )
    if len(begun) == 1:
        return begun[0]
    raise UnknownRun(_unknown(store, text, begun or runs, is_ambiguous=bool(begun)))


def this_process() -> RecordingProcess:
    """The process that calls."""
    return process_of(os.getpid())


def process_of(pid: int) -> RecordingProcess:
    """A process of this host; `started` is empty where the system has no /proc."""
    state = _proc_stat(pid)
    return RecordingProcess(socket.gethostname(), pid, state[1] if state else "")


def is_gone(process: RecordingProcess) -> bool:
    """Say whether a process of this host has ended.

    False for one of another host, which can't be asked.
    """
    if process.host != socket.gethostname():
        return False
    if Path("/proc/self/stat").exists():
        state = _proc_stat(process.pid)
        # A zombie has ended and waits for its parent; another start means that the pid was
        # given again.
        return (
            state is None
            or state[0] in "ZX"
            or bool(process.started and state[1] != process.started)
        )
    if sys.platform == "win32":  # there, os.kill(pid, 0) would end the process
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _proc_stat(pid: int) -> tuple[str, str] | None:
    """(state letter, start in clock ticks) of a process, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name in the second field may hold spaces and parentheses: count from the last one.
    after = text.rpartition(")")[2].split()
    return after[0], after[19]


def _folders(store: Store) -> list[Path]:
    if not store.runs.is_dir():
        return []
    folders = (path.parent for path in store.runs.glob("*/run.json"))
    # else unfinished
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def _unknown(store: Store, text: str, runs: list[Run], *, is_ambiguous: bool) -> str:
    known = [f"{run.run_id} ({run.name})" for run in reversed(runs)]
    listed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    if is_ambiguous:
        return (
            f"{len(runs)} runs in {store.root} begin with {text!r}: {listed}. Give more of the id."
        )
    words = {run.name for run in runs} | {run.run_id for run in runs}
    close = difflib.get_close_matches(text, sorted(words), n=3)
    hint = (
        f"Did you mean {' or '.join(close)}?"
        if close
        else "Give a run_id, its beginning, or a name."
    )
    return f"no run answers to {text!r} in {store.root}; it has {listed or 'no runs'}. {hint}"


def plain(value: Any) -> Any:
    """Return JSON for anything.

    Hyper-parameters hold what the user put there, so the rest becomes text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$": "float", "v": str(float(value))}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        items = {str(key): plain(one) for key, one in value.items()}
        return {"$": "dict", "v": items} if "$" in items else items
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return [plain(one) for one in sorted(value, key=repr)]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        item = value.item()  # pyright: ignore[reportAttributeAccessIssue]
        return str(item) if type(item) is type(value) else plain(item)  # a longdouble stays one
    return str(value)


def _unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [_unplain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("$") == "float":
        return float(value["v"])
    items = value["v"] if value.get("$") == "dict" else value
    return {key: _unplain(one) for key, one in items.items()}
