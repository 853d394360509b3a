"""The files of one checkpoint: read with every check that state.json makes possible."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.files import PARTIAL, read_json

if TYPE_CHECKING:
    import torch

STATE = "state.json"
FORMAT = 1
WHAT_TO_DO = "Restore it from a copy, or delete this checkpoint's folder and replay from an earlier one."
# a file of this checkpoint or of another one of the same run, and nowhere else
_FILE = re.compile(r"(\.\./epoch=\d+,step=\d+/)?[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What state.json says of one tensor. file: relative to the checkpoint's folder."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: str

    def identity(self, key: str) -> tuple[str, str, str, tuple[int, ...]]:
        return (key, self.sha256, self.dtype, self.shape)

    def at(self, file: str, key: str) -> TensorRecord:
        return replace(self, file=file, key=key)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"shape": list(self.shape)}


def records(state: Mapping[str, Any]) -> dict[str, TensorRecord]:
    """The tensors that a checkpoint consists of, by key."""
    return {
        key: TensorRecord(**(one | {"shape": tuple(one["shape"])})) for key, one in state["tensors"].items()
    }


def own_hash(state: Mapping[str, Any]) -> str:
    """sha256 of all else in state.json, written as compact ASCII JSON with sorted keys."""
    rest = {key: one for key, one in state.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sha256(tensor: torch.Tensor) -> str:
    """sha256 of the bytes of a contiguous CPU tensor, as they lie in the file."""
    import torch

    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


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
    if number != FORMAT or state.get("sha256") != own_hash(state):
        raise DamagedCheckpoint(
            f"{path} was altered: its hash is not the one it was written with. {WHAT_TO_DO}"
        )
    said = Position(**state["position"])
    if position is not None and said != position:
        raise DamagedCheckpoint(
            f"{path} is the state at {said}: the folder was renamed or copied. Give it its name back."
        )
    return state


def read_tensors(folder: Path, state: Mapping[str, Any], keys: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors by key, each in fresh memory and with the hash that state.json gives for it.

    Raises DamagedCheckpoint, naming the file, before anything is returned.
    """
    wanted: dict[str, dict[str, TensorRecord]] = {}
    for key, one in records(state).items():
        if key in keys:
            wanted.setdefault(one.file, {})[key] = one
    for file in wanted:  # all of them first: it is quick, and spares reading gigabytes in vain
        _check_size(folder, file, state["files"].get(file))
    loaded: dict[str, torch.Tensor] = {}
    for file, ones in wanted.items():
        loaded |= _read_file(folder / file, ones)
    return loaded


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


def _check_size(folder: Path, file: str, size: int | None) -> None:
    path = folder / file
    if _FILE.fullmatch(file) is None:
        raise DamagedCheckpoint(f"{folder / STATE} names {file!r}, not a file of a checkpoint. {WHAT_TO_DO}")
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing, and the checkpoint {folder} needs it. {WHAT_TO_DO}")
    found = path.stat().st_size
    if found != size:
        raise DamagedCheckpoint(f"{path} has {found} bytes and was written with {size}. {WHAT_TO_DO}")


def _read_file(path: Path, ones: Mapping[str, TensorRecord]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    loaded = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key, one in ones.items():
                # cloned before it is hashed: what safe_open gives is the mapped file, which
                # may change, and which ends the process if it is truncated
                tensor = file.get_tensor(one.key).clone()
                _check_tensor(path, tensor, one)
                loaded[key] = tensor
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path} can't be read as safetensors: {error}. {WHAT_TO_DO}") from error
    return loaded


def _check_tensor(path: Path, tensor: torch.Tensor, one: TensorRecord) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (dtype, tuple(tensor.shape), sha256(tensor)) != (one.dtype, one.shape, one.sha256):
        raise DamagedCheckpoint(
            f"{path} was altered: its tensor {one.key!r} ({dtype} {list(tensor.shape)}) is not the "
            f"{one.dtype} {list(one.shape)} with sha256 {one.sha256[:12]}... that was written. {WHAT_TO_DO}"
        )
