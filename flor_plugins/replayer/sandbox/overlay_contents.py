"""The contents of the overlay: a run's files over today's, at the project's own place."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from flor_plugins.replayer.sandbox.overlay import copy_owner

CODE_SUFFIX = ".py"
NOT_OF_A_RUN = frozenset((".git", ".flor"))


def lay_over(sandbox: Path, root: Path, covered: Path, over: Path) -> None:
    """Put what makes `root` look like `sandbox` into `over`, which will lie over `covered`.

    These are files of the run's commit that are not the same today; and for each file of code
    that the sandbox does not have (it was written since) a sign that hides it. Data is there
    already, under its own name.
    """
    for folder, names in _own_folders(sandbox):
        inside = folder.relative_to(sandbox)
        today = root / inside
        for name in names:
            file, twin = folder / name, today / name
            if not _is_link_to(file, twin) and not _is_same(file, twin):
                _copy(file, _folder_over(covered, today, over) / name)
        if today.is_dir() and not today.is_symlink():
            for name in _new_code(today, set(os.listdir(folder))):
                whiteout = _folder_over(covered, today, over) / name
                os.mknod(whiteout, stat.S_IFCHR, os.makedev(0, 0))  # overlayfs: no such file


def _own_folders(sandbox: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders of a sandbox with the names in each that are no folders."""
    for folder, folders, names in os.walk(sandbox):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in links and name not in NOT_OF_A_RUN]
        yield Path(folder), [name for name in (*names, *links) if name not in NOT_OF_A_RUN]


def _new_code(today: Path, known: set[str]) -> Iterator[str]:
    for entry in os.scandir(today):
        if entry.name.endswith(CODE_SUFFIX) and entry.name not in known and not entry.is_dir():
            yield entry.name


def _folder_over(covered: Path, folder: Path, over: Path) -> Path:
    """Make the folder over `folder`, with those that lead to it."""
    twin = over
    place = covered
    for part in folder.relative_to(covered).parts:
        twin, place = twin / part, place / part
        if twin.is_symlink() or (twin.exists() and not twin.is_dir()):
            twin.unlink()
        if not twin.exists():
            twin.mkdir()
            if place.is_dir() and not place.is_symlink():
                copy_owner(place, twin)
    return twin


def _copy(file: Path, twin: Path) -> None:
    if file.is_symlink():
        os.symlink(os.readlink(file), twin)
    else:
        shutil.copy2(file, twin)


def _is_link_to(file: Path, twin: Path) -> bool:
    """Is `file` a link that the sandbox was filled with?"""
    return file.is_symlink() and os.readlink(file) == os.path.abspath(twin)


def _is_same(file: Path, twin: Path) -> bool:
    if file.is_symlink() or twin.is_symlink():
        return file.is_symlink() and twin.is_symlink() and os.readlink(file) == os.readlink(twin)
    if not twin.is_file() or file.stat().st_mode != twin.stat().st_mode:
        return False
    return filecmp.cmp(file, twin, shallow=False)
