"""What is common to rewriting a checkpoint that readers may be reading: one process at a time,
and nothing left over.

The order is always: new files beside the old ones, fsynced; state.json replaced by renaming;
the old files removed. Killed in between, a checkpoint has the one or the other state.json with
all its files, and some files too many."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.store.checkpoints.manifest import FILE, SHELL, STATE, own_hash, read_holder
from flor_plugins.store.files import PARTIAL, alone_in, write_json


@contextmanager
def alone(folder: Path) -> Iterator[None]:
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
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the checkpoint {folder} could not be rewritten: {error}. "
            f"It is as it was; look at the free space and the rights of {folder}."
        ) from error


def sweep(folder: Path) -> None:
    """Remove what a killed process left: files that neither state.json nor shell.json names."""
    try:
        state = read_holder(folder)
    except DamagedCheckpoint:
        return  # nobody knows what belongs to it
    if (folder / STATE).exists():  # it was about to be given up, and is not
        (folder / SHELL).unlink(missing_ok=True)
    for one in folder.iterdir():
        if one.name.startswith(PARTIAL):
            shutil.rmtree(one) if one.is_dir() else one.unlink(missing_ok=True)
        elif FILE.fullmatch(one.name) and one.name not in state["files"]:
            one.unlink(missing_ok=True)


def free_name(section: str, kind: str, taken: Collection[str]) -> str:
    """A name for a new file.

    taken: names of files; "model.cold" may be the name of a section, too.
    """
    numbers = iter(range(2, len(taken) + 3))
    name = f"{section}.{kind}.safetensors"
    while name in taken:
        name = f"{section}.{kind}{next(numbers)}.safetensors"
    return name


def put_state(folder: Path, file: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Replace state.json, or put shell.json in its place; then remove the files that only
    the old one named.
    """
    whole = {key: value for key, value in new.items() if key != "sha256"}
    write_json(folder / file, whole | {"sha256": own_hash(whole)}, indent=None)
    if file == SHELL:
        (folder / STATE).unlink(missing_ok=True)
    for name in old["files"].keys() - new["files"].keys():
        if "/" not in name:
            (folder / name).unlink(missing_ok=True)
