"""state.json of a checkpoint, and its folder as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.files import read_json, scratch_path

FOLDER = "checkpoints"
STATE = "state.json"
# what is left of a checkpoint that was given up, for the others that need tensors of it
TOMBSTONE = "shell.json"
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
    """What state.json says of one tensor.

    file: relative to the checkpoint's folder. hash: see hashes.py.

    packing: how its bytes are packed in the file (delta_packing.py), None: not at all; dtype,
    shape, nbytes and hash are those of the tensor itself. base: "../<position>/<its key in
    state.json there>", what a packed one is a delta to.
    """

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
        """Say whether it lies in this checkpoint, and not in another one of the run."""
        return "/" not in self.file

    @property
    def content(self) -> tuple[str, str, tuple[int, ...]]:
        """Equal for tensors that are equal."""
        return (self.hash, self.dtype, self.shape)

    def identity(self, key: str) -> tuple[str, str, str, tuple[int, ...]]:
        """Return what an equal tensor of the same key has, too."""
        return (key, self.hash, self.dtype, self.shape)

    def at(self, file: str, key: str) -> TensorRecord:
        """Return the record of the same tensor in another file."""
        return replace(self, file=file, key=key)

    def packed(self, packing: str, base: str | None) -> TensorRecord:
        """Return the record of the same tensor, packed."""
        return replace(self, packing=packing, base=base)

    def to_json(self) -> JsonObject:
        """Return its fields as state.json has them."""
        fields = {name: getattr(self, name) for name in self.__slots__} | {
            "shape": list(self.shape)
        }
        return {name: value for name, value in fields.items() if value is not None}


def records(state: JsonObject) -> dict[str, TensorRecord]:
    """The tensors that a checkpoint consists of, by key."""
    return {key: _record(one) for key, one in state["tensors"].items()}


def _record(one: JsonObject) -> TensorRecord:
    fields: JsonObject = dict(one)
    if "sha256" in fields:  # format 1
        fields["hash"] = f"sha256:{fields.pop('sha256')}"
    return TensorRecord(**{**fields, "shape": tuple(one["shape"])})


def own_nbytes(state: JsonObject) -> int:
    """Return the bytes of the files of a checkpoint, without those of others that it refers to."""
    return sum(size for file, size in state["files"].items() if "/" not in file)


def position_folders(run_path: Path) -> dict[Position, Path]:
    """Return the folders of a run's checkpoints and tombstones, by position, ascending."""
    folders = {}
    for folder in (run_path / FOLDER).glob("epoch=*,step=*"):
        with suppress(ValueError):  # not one of ours
            folders[Position.parse(folder.name)] = folder
    return dict(sorted(folders.items()))


def own_hash(state: JsonObject) -> str:
    """sha256 of all else in state.json, written as compact ASCII JSON with sorted keys."""
    rest = {key: one for key, one in state.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def stamp_of(folder: Path) -> FileStamp | None:
    """Return what is another one whenever state.json is written.

    None where it is too young, or not there, to tell.
    """
    try:
        found = os.stat(folder / STATE)
    except OSError:
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_manifest(folder: Path, position: Position | None = None) -> JsonObject:
    """state.json of a checkpoint. Raises DamagedCheckpoint if it is absent, torn or altered.

    position: the one that the folder is named after, in a run; another one in the file is refused.
    """
    return _read(folder / STATE, position)


def read_manifest_or_tombstone(folder: Path, position: Position | None = None) -> JsonObject:
    """Read state.json, or shell.json where a checkpoint was evicted.

    Others need tensors of such a one; its tree is empty.

    Raises as `read_manifest` does.
    """
    try:
        return read_manifest(folder, position)
    except DamagedCheckpoint:
        # not looked for first: state.json may become shell.json between the two looks, and
        # never the other way
        if (folder / STATE).exists() or not (folder / TOMBSTONE).exists():
            raise
        return _read(folder / TOMBSTONE, position)


def is_tombstone(folder: Path) -> bool:
    """Say whether a folder has only what other checkpoints need of it."""
    return (folder / TOMBSTONE).exists() and not (folder / STATE).exists()


def _read(path: Path, position: Position | None) -> JsonObject:
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


def put_in_place(new: Path, path: Path) -> None:
    """Rename the folder `new`, which lies beside it, to `path`. What stood there is removed after.

    A folder can't be replaced in one step: between two renames nothing is at `path`. If the
    second fails, the first is undone and `new` removed: StoreError. Of a link only the link is
    replaced.
    """
    old = scratch_path(path)
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
