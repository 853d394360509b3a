"""state.json of a checkpoint, and its folder as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.files import PARTIAL, read_json

STATE = "state.json"
FORMAT = 2
READABLE = (1, 2)
WHAT_TO_DO = "Restore it from a copy, or delete this checkpoint's folder and replay from an earlier one."
# a file of this checkpoint or of another one of the same run, and nowhere else
FILE = re.compile(r"(\.\./epoch=\d+,step=\d+/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What state.json says of one tensor. file: relative to the checkpoint's folder. hash: see hashes.py."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    hash: str

    def identity(self, key: str) -> tuple[str, str, str, tuple[int, ...]]:
        return (key, self.hash, self.dtype, self.shape)

    def at(self, file: str, key: str) -> TensorRecord:
        return replace(self, file=file, key=key)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"shape": list(self.shape)}


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


def read_state(folder: Path, position: Position | None = None) -> dict[str, Any]:
    """state.json of a checkpoint. Raises DamagedCheckpoint if it is absent, torn or altered.

    position: the one that the folder is named after, in a run; another one in the file is refused.
    """
    path = folder / STATE
    try:
        state = read_json(path)
    except StoreError as error:
        raise DamagedCheckpoint(f"the checkpoint {folder} is damaged: {error} {WHAT_TO_DO}") from error
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
            f"{path} is the state at {said}: the folder was renamed or copied. Give it its name back."
        )
    return state


def beside(path: Path) -> Path:
    """A new name in the same folder that readers pass over."""
    return path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")


def put_in_place(new: Path, path: Path) -> None:
    """Rename the folder `new`, which lies beside it, to `path`. What stood there is removed after.

    A folder can't be replaced in one step: between two renames nothing is at `path`. If the
    second fails, the first is undone and `new` removed: StoreError. Of a link only the link is replaced.
    """
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
        raise StoreError(f"{path} could not be replaced: {error}. What was there still is.") from error
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()
