"""Rewrite a checkpoint that readers may be reading.

One process does so at a time, and nothing is left over.

The order is always: new files beside the old ones, fsynced; state.json replaced by renaming;
the old files removed. Killed in between, a checkpoint has the one or the other state.json with
all its files, and some files too many.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import JsonObject
from flor_plugins.store.checkpoints.manifest import (
    FILE,
    STATE,
    TOMBSTONE,
    own_hash,
    read_manifest_or_tombstone,
)
from flor_plugins.store.files import PARTIAL, alone_in, write_json


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process rewrites checkpoints of this run, and keep others waiting."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(folder.parent))
        except OSError as error:
            raise StoreError(
                f"the checkpoint {folder} can't be rewritten: {error}. Is it one of this run?"
            ) from error
        yield


@contextmanager
def no_disk_error(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the checkpoint {folder} could not be rewritten: {error}. "
            f"It is as it was; look at the free space and the rights of {folder}."
        ) from error


def remove_orphans(folder: Path) -> None:
    """Remove what a killed process left: files that neither state.json nor shell.json names."""
    try:
        state = read_manifest_or_tombstone(folder)
    except DamagedCheckpoint:
        return  # nobody knows what belongs to it
    if (folder / STATE).exists():  # it was about to be given up, and is not
        (folder / TOMBSTONE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name.startswith(PARTIAL):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif FILE.fullmatch(path.name) and path.name not in state["files"]:
            path.unlink(missing_ok=True)


def free_name(section: str, kind: str, taken: Collection[str]) -> str:
    """A name for a new file.

    taken: names of files; "model.cold" may be the name of a section, too.
    """
    numbers = iter(range(2, len(taken) + 3))
    name = f"{section}.{kind}.safetensors"
    while name in taken:
        name = f"{section}.{kind}{next(numbers)}.safetensors"
    return name


def replace_manifest(folder: Path, file: str, old: JsonObject, new: JsonObject) -> None:
    """Replace state.json, or put shell.json in its place.

    Then remove the files that only the old one named.
    """
    whole = {key: value for key, value in new.items() if key != "sha256"}
    write_json(folder / file, whole | {"sha256": own_hash(whole)}, indent=None)
    if file == TOMBSTONE:
        (folder / STATE).unlink(missing_ok=True)
    for name in old["files"].keys() - new["files"].keys():
        if "/" not in name:
            (folder / name).unlink(missing_ok=True)
