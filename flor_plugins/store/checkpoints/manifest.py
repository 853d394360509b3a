"""state.json of a checkpoint, and its folder as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.files import PARTIAL, read_json

STATE = "state.json"
# what is left of a checkpoint that was given up, for the others that need tensors of it
SHELL = "shell.json"
SETTLED_S = 2.0  # a file that was written twice within a tick of the clock may look the same
FORMAT = 2
READABLE = (1, 2)
WHAT_TO_DO = (
    "Restore it from a copy, or delete this checkpoint's folder and replay from an earlier one."
)
# a file of this checkpoint or of another one of the same run, and nowhere else
FILE = re.compile(r"(\.\./epoch=\d+,step=\d+/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")

FileStamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What state.json says of one tensor. file: relative to the checkpoint's folder. hash: see
    hashes.py.

    packing: how its bytes are packed in the file (packing.py), None: not at all; dtype, shape,
    nbytes and hash are those of the tensor itself. base: "../<position>/<its key in state.json
    there>", what a packed one is a delta to."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    hash: str
    packing: str | None = None
    base: str | None = None

    @property
    def is_own(self) -> bool:
        """Does it lie in this checkpoint, and not in another one of the run?"""
        return "/" not in self.file

    @property
    def content(self) -> tuple[str, str, tuple[int, ...]]:
        """Equal for tensors that are equal."""
        return (self.hash, self.dtype, self.shape)

    def identity(self, key: str) -> tuple[str, str, str, tuple[int, ...]]:
        return (key, self.hash, self.dtype, self.shape)

    def at(self, file: str, key: str) -> TensorRecord:
        return replace(self, file=file, key=key)

    def packed(self, packing: str, base: str | None) -> TensorRecord:
        return replace(self, packing=packing, base=base)

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__} | {
            "shape": list(self.shape)
        }
        return {name: value for name, value in fields.items() if value is not None}


def records(state: Mapping[str, Any]) -> dict[str, TensorRecord]:
    """The tensors that a checkpoint consists of, by key."""
    return {key: _record(one) for key, one in state["tensors"].items()}


def _record(one: Mapping[str, Any]) -> TensorRecord:
    fields: dict[str, Any] = dict(one)
    if "sha256" in fields:  # format 1
        fields["hash"] = f"sha256:{fields.pop('sha256')}"
    return TensorRecord(**{**fields, "shape": tuple(one["shape"])})


def own_hash(state: Mapping[str, Any]) -> str:
    """sha256 of all else in state.json, written as compact ASCII JSON with sorted keys."""
    rest = {key: one for key, one in state.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def stamp_of(folder: Path) -> FileStamp | None:
    """What is another one whenever state.json is written; None where it is too young, or not
    there, to tell.
    """
    try:
        found = os.stat(folder / STATE)
    except OSError:
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_state(folder: Path, position: Position | None = None) -> dict[str, Any]:
    """state.json of a checkpoint. Raises DamagedCheckpoint if it is absent, torn or altered.

    position: the one that the folder is named after, in a run; another one in the file is refused.
    """
    return _read(folder / STATE, position)


def read_holder(folder: Path, position: Position | None = None) -> dict[str, Any]:
    """state.json, or shell.json where a checkpoint was given up and others need its tensors;
    then its tree is empty.

    Raises as `read_state` does.
    """
    try:
        return read_state(folder, position)
    except DamagedCheckpoint:
        # not looked for first: state.json may become shell.json between the two looks, and
        # never the other way
        if (folder / STATE).exists() or not (folder / SHELL).exists():
            raise
        return _read(folder / SHELL, position)


def is_shell(folder: Path) -> bool:
    return (folder / SHELL).exists() and not (folder / STATE).exists()


def _read(path: Path, position: Position | None) -> dict[str, Any]:
    folder = path.parent
    try:
        state = read_json(path)
    except StoreError as error:
        raise DamagedCheckpoint(
            f"the checkpoint {folder} is damaged: {error} {WHAT_TO_DO}"
        ) from error
    number = state.get("format") if isinstance(state, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise StoreError(
            f"{path} is of format {number}, and this version of flor-plugins reads up to {FORMAT}. "
            f"Install a newer flor-plugins."
        )
    if number not in READABLE or state.get("sha256") != own_hash(state):
        raise DamagedCheckpoint(
            f"{path} was altered: its hash is not the one it was written with. {WHAT_TO_DO}"
        )
    said = Position(**state["position"])
    if position is not None and said != position:
        raise DamagedCheckpoint(
            f"{path} is the state at {said}: the folder was renamed or copied. Give it its "
            f"name back."
        )
    return state


def beside(path: Path) -> Path:
    """A new name in the same folder that readers pass over."""
    return path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")


def put_in_place(new: Path, path: Path) -> None:
    """Rename the folder `new`, which lies beside it, to `path`. What stood there is removed after.

    A folder can't be replaced in one step: between two renames nothing is at `path`. If the
    second fails, the first is undone and `new` removed: StoreError. Of a link only the link is
    replaced."""
    old = beside(path)
    try:
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise StoreError(
            f"{path} could not be replaced: {error}. What was there still is."
        ) from error
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()
