"""What killed processes left in a store.

It is never read, and is removed once its writer is gone.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import RecordingProcess, Run
from flor_plugins.store.checkpoints import manifest
from flor_plugins.store.checkpoints.manifest import FOLDER
from flor_plugins.store.checkpoints.rewriting import locked
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.gc.disk_usage import parts_of, remove
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import is_gone, list_runs
from flor_plugins.store.writers import living_writer

_NAME = re.compile(re.escape(PARTIAL) + r"(\d+)-[0-9a-f]+")
# Of a process of another host only its silence can be heard.
SILENT_S = 86400.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that nobody reads or writes any more."""

    path: Path
    nbytes: int


def leftovers(store: Store) -> list[Leftover]:
    """All of a store; none of a run that is running."""
    runs = {run.path: run for run in list_runs(store)}
    found = []
    for path in _partial(store.root):
        run = next((runs[parent] for parent in path.parents if parent in runs), None)
        if run is not None and run.status == "running":
            continue
        is_here = run is None or run.process.host == socket.gethostname()
        if _is_abandoned(path, is_here):
            found.append(Leftover(path, size_of(path)))
    for run in runs.values():
        if run.status != "running":
            found += [Leftover(path, size_of(path)) for path in _unread(run)]
    return found


def clear(store: Store, planned: Iterable[Leftover]) -> Iterator[Path]:
    """Remove what was left over and still is, and yield each path then.

    Since it was planned a run may have gone on.
    """
    now = {leftover.path for leftover in leftovers(store)}
    for path in (leftover.path for leftover in planned if leftover.path in now):
        if manifest.FILE.fullmatch(path.name) is None:
            remove(path)
        else:
            with locked(
                path.parent
            ):  # whoever rewrites a checkpoint names its files only when they are all there
                if path.name in manifest.read_manifest_or_tombstone(path.parent)["files"]:
                    continue
                remove(path)
        yield path


def is_being_written(run: Run) -> bool:
    """Is a process still at work on checkpoints of a run? It may end later than the training."""
    if any(living_writer(part) is not None for part in parts_of(run.path)):
        return True
    is_here = run.process.host == socket.gethostname()
    found = (path for part in parts_of(run.path) for path in (part / FOLDER).glob(f"{PARTIAL}*"))
    return any(_NAME.fullmatch(one.name) and not _is_abandoned(one, is_here) for one in found)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; of what vanishes meanwhile none."""
    if path.is_file() and not path.is_symlink():
        return _size(path)
    return sum(_size(Path(root) / name) for root, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _partial(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = [name for name in [*folders, *names] if _NAME.fullmatch(name)]
        folders[:] = [name for name in folders if name not in here]
        yield from (Path(folder) / name for name in here)


def _is_abandoned(path: Path, is_here: bool) -> bool:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return False
    if not is_here:
        return time.time() - touched > SILENT_S
    pid = int(named[1])
    started = _started_at(pid)
    # The pid may have been given again: who began after the last touch is not the writer.
    is_another = started is not None and started > touched + 1.0
    return is_another or is_gone(RecordingProcess(socket.gethostname(), pid, ""))


def _started_at(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None where the system does not say."""
    try:
        ticks = int(
            Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
        )
        lines = Path("/proc/stat").read_text().splitlines()
    except (OSError, ValueError, IndexError):
        return None
    booted = next((int(line.split()[1]) for line in lines if line.startswith("btime ")), None)
    return None if booted is None else booted + ticks / os.sysconf("SC_CLK_TCK")


def _unread(run: Run) -> Iterator[Path]:
    """Yield files that no manifest names, and parts of a checkpoint that is gone.

    A killed collection leaves such files.
    """
    first, *others = parts_of(run.path)
    there = manifest.position_folders(first)
    for part in (first, *others):
        for position, folder in manifest.position_folders(part).items():
            if part != first and position not in there:
                yield folder
                continue
            try:
                named = manifest.read_manifest_or_tombstone(folder, position)["files"]
            except StoreError:
                continue
            yield from (
                path
                for path in sorted(folder.iterdir())
                if _is_ours(path) and path.name not in named
            )


def _is_ours(path: Path) -> bool:
    return manifest.FILE.fullmatch(path.name) is not None
