"""`FlorCheckpointIO`: Lightning's own checkpoints in our format, without pickle.

A checkpoint is a folder at the path that Lightning chose (`epoch=1-step=30.ckpt/`): state.json and
safetensors files, as in a run's `checkpoints/`.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from flor_plugins.errors import NoCheckpoint, StoreError
from flor_plugins.recorder.gaps import FlorWarning
from flor_plugins.recorder.importers.lightning import position_of, read_file
from flor_plugins.records import Position
from flor_plugins.records.sections import MODEL, OPTIMIZER, TRAINER
from flor_plugins.store import checkpoints, codec
from flor_plugins.store.checkpoints.manifest import STATE, put_in_place
from flor_plugins.store.files import scratch_path

MapLocation = Callable[..., Any] | torch.device | str | Mapping[str, str] | None

# What Lightning calls the parts that are sections of their own here; all else is in TRAINER.
_KEYS = {MODEL: "state_dict", OPTIMIZER: "optimizer_states"}


class FlorCheckpointIO(CheckpointIO):
    """`Trainer(plugins=[FlorCheckpointIO()])`: checkpoints are folders of JSON and safetensors.

    Saving is whole or not at all; where a checkpoint is overwritten, the old one stays until
    the new one is whole. What can't be stored without pickle is warned about once, by its path,
    and the rest is saved. Loading also takes `.ckpt` files of Lightning that hold nothing but
    data (they are read with `weights_only=True`). Strategies that write shards themselves
    (FSDP, DeepSpeed) do not ask a CheckpointIO, and only local paths are possible.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write the dict that Lightning dumped as a folder at `path`. Called on rank 0 only.

        Raises StoreError if the disk refuses, as Lightning's own plugin would: nobody shall
        believe in a checkpoint that is not there.
        """
        if storage_options is not None:
            raise StoreError(
                f"save_checkpoint was given storage_options={storage_options!r}, and "
                f"FlorCheckpointIO writes "
                f"to local folders only. Leave them out."
            )
        target = _local(path)
        encoded = codec.encode(_sections(checkpoint))
        self._tell(target, "is saved without", encoded.lost)
        position = position_of(checkpoint) or Position(0, 0)
        if not os.path.lexists(target):
            checkpoints.save_folder(target, position, encoded)
            return
        new = scratch_path(target)
        checkpoints.save_folder(new, position, encoded)
        put_in_place(new, target)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: MapLocation = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the dict that was saved.

        Tensors are on the CPU, or where `map_location` says (as in torch.load).

        weights_only: has no effect, nothing in a checkpoint is ever run. Raises as
        `load_checkpoint`.
        """
        checkpoint = load_checkpoint(path)
        self._tell(_local(path), "was saved without", _lost(checkpoint))
        return checkpoint if map_location is None else _moved(checkpoint, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, or a link to one (`save_last="link"`); nothing if there is none."""
        target = _local(path)
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            gone = scratch_path(target)
            target.rename(gone)  # whole or absent, at any moment
            shutil.rmtree(gone, ignore_errors=True)

    def _tell(self, path: Path, what: str, lost: tuple[str, ...]) -> None:
        new = [one for one in lost if one not in self._told]
        if not new:
            return
        self._told.update(new)
        message = f"flor: the checkpoint {path} {what} {'; '.join(new)}"
        try:
            warnings.warn(message, FlorWarning, stacklevel=3)
        except FlorWarning:  # `python -W error`: still no reason to end the training
            print(message, file=sys.stderr)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the dict of a checkpoint that FlorCheckpointIO wrote.

    Its keys are Lightning's: "state_dict", "hyper_parameters", "loops" ...

    Tensors are on the CPU; every hash is checked. Instead of `Net.load_from_checkpoint(path)`,
    which unpickles: `net = Net(**held["hyper_parameters"])` and
    `net.load_state_dict(held["state_dict"])`. A `.ckpt` file of Lightning is read with
    `weights_only=True`. Raises NoCheckpoint if there is nothing at `path`, DamagedCheckpoint if
    a file is missing, torn or altered, StoreError for what is no such checkpoint.
    """
    target = _local(path)
    if not target.exists():
        raise NoCheckpoint(
            f"a checkpoint was asked for and is not there: {target}. Look at the path."
        )
    if target.is_file():
        return read_file(target, mapped=False)
    if not (target / STATE).is_file() and not any(target.glob("*.safetensors")):
        raise StoreError(
            f"{target} was to be loaded as a checkpoint, and is a folder without {STATE}: "
            f"FlorCheckpointIO did not "
            f"write it. Load it with the strategy that did."
        )
    sections = checkpoints.load_folder(target)
    if TRAINER not in sections or not sections.keys() <= {*_KEYS, TRAINER}:
        raise StoreError(
            f"{target} was to be loaded as a checkpoint of Lightning, and is one of a run that "
            f"FlorCallback recorded. "
            f"`flor-hf show {target.parent.parent.name}` says which; its weights: "
            f"flor.checkpoint(RUN)."
        )
    found = dict(sections[TRAINER])
    found.update({key: sections[name] for name, key in _KEYS.items() if name in sections})
    return found


def _sections(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    parts = {name: checkpoint[key] for name, key in _KEYS.items() if key in checkpoint}
    # None keeps their places in the order of the keys.
    return {**parts, TRAINER: {**checkpoint, **{_KEYS[name]: None for name in parts}}}


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path).removeprefix("file://")
    if "://" in text:
        raise StoreError(
            f"{text} was given as the path of a checkpoint, and FlorCheckpointIO knows local "
            f"folders only. "
            f"Give ModelCheckpoint a local `dirpath`."
        )
    return Path(text).absolute()


def _lost(value: object) -> tuple[str, ...]:
    """Return why each leaf that is missing was lost.

    It was lost while saving, or its class is not loaded here.
    """
    if isinstance(value, codec.LostLeaf):
        return (value.why,)
    parts = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, (list, tuple, set))
        else ()
    )
    return tuple(why for part in parts for why in _lost(part))


def _moved(value: Any, where: MapLocation) -> Any:
    """Put every tensor where `torch.load(map_location=where)` would put it; ties stay."""
    moved: dict[int, torch.Tensor] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor.to(_device(tensor, where))
        return moved[id(tensor)]

    return apply_to_collection(value, torch.Tensor, move, allow_frozen=True)


def _device(tensor: torch.Tensor, where: MapLocation) -> Any:
    if callable(where):
        storage = where(tensor.untyped_storage(), "cpu")
        return "cpu" if storage is None else storage.device
    return where.get("cpu", "cpu") if isinstance(where, Mapping) else where
