"""Checkpoints of a run: one folder per position with a safetensors file per section.

Its manifest, state.json, is written last.

state.json names the file, shape, dtype and hash of every tensor, and has a hash of
itself; nothing that was torn or altered is handed out. A tensor that an earlier
checkpoint of the run holds already is a reference to it, not a second copy. Older
ones may be compressed (compression.py), or evicted but for tensors that others
need (tombstones.py): both change files and state.json, not what is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint, StoreError
from flor_plugins.records import Checkpoint, JsonObject, Position
from flor_plugins.records.sections import MODEL, LoadedSections
from flor_plugins.store.checkpoints import manifest
from flor_plugins.store.checkpoints.manifest import FOLDER, STATE
from flor_plugins.store.checkpoints.writer import (
    CheckpointDraft,
    KnownTensors,
    StateTensor,
    write_folder,
)

if TYPE_CHECKING:  # listing checkpoints must not load torch
    import torch

    from flor_plugins.store.codec import Encoded


def save_checkpoint(
    run_path: Path, position: Position, encoded: Encoded, known: KnownTensors | None = None
) -> Checkpoint:
    """Write an encoded state as the checkpoint of a run at `position`, whole or not at all.

    known: what is on disk already; kept by the caller, filled here after each
    success, and good for one run and one writer. Raises StoreError if the position
    has a checkpoint, or if the disk refuses.
    """
    state = write_folder(folder_of(run_path, position), position, draft_of(encoded), known)
    return checkpoint_of(run_path, state)


def save_folder(folder: Path, position: Position, encoded: Encoded) -> None:
    """Write an encoded state as a folder of any name, outside a run: whole or not at all.

    Raises StoreError if the folder exists, or if the disk refuses.
    """
    write_folder(folder, position, draft_of(encoded))


def load_checkpoint(
    run_path: Path,
    position: Position,
    only: Collection[str] | None = None,
    into: Mapping[str, torch.Tensor] | None = None,
) -> LoadedSections:
    """The state at a position: section to value, tensors on the CPU in memory of their own.

    only: the sections that are wanted (default all); other files are not read. into: see
    `read_tensors`. Raises NoCheckpoint, listing the positions that exist; DamagedCheckpoint,
    naming the file, if anything it reads is missing, torn or altered; StoreError for a section
    that was not saved.
    """
    folder = _folder(run_path, position)
    return _load(folder, manifest.read_manifest(folder, position), only, into)


def load_folder(folder: Path, only: Collection[str] | None = None) -> LoadedSections:
    """What `save_folder` wrote, with the checks and errors of `load_checkpoint`."""
    return _load(folder, manifest.read_manifest(folder), only)


def list_checkpoints(run_path: Path) -> list[Checkpoint]:
    """The checkpoints of a run by position.

    One that can't be read is passed over with a warning.
    """
    found = []
    for position, folder in _positions(run_path):
        try:
            stamp = manifest.stamp_of(folder)
            read = _read_checkpoint if stamp is None else _known_checkpoint
            found.append(read(run_path, folder, position, stamp))
        except StoreError as error:
            warn(f"a checkpoint is passed over: {error}", stacklevel=2)
    return found


def _read_checkpoint(
    run_path: Path, folder: Path, position: Position, stamp: manifest.FileStamp | None
) -> Checkpoint:
    return checkpoint_of(run_path, manifest.read_manifest(folder, position))


# A request looks at each several times, and reading and checking its state.json takes milliseconds.
_known_checkpoint = lru_cache(1 << 14)(_read_checkpoint)


def tensor_hashes(run_path: Path, position: Position, section: str = MODEL) -> dict[str, str]:
    """The hash of the bytes of each tensor of a section, by name; reads state.json only.

    A tied tensor stands under the name it was met with first. Raises as load_checkpoint does.
    """
    return hashes_of(manifest.read_manifest(_folder(run_path, position), position), section)


def hashes_of(state: JsonObject, section: str) -> dict[str, str]:
    """`tensor_hashes` of a state.json that was read already."""
    prefix = f"{section}/"
    held = manifest.records(state).items()
    return {key.removeprefix(prefix): one.hash for key, one in held if key.startswith(prefix)}


def known_tensors(run_path: Path) -> KnownTensors:
    """What the checkpoints of a run hold, for a process that goes on writing it."""
    known: KnownTensors = {}
    for checkpoint in list_checkpoints(run_path):
        state = manifest.read_manifest(checkpoint.path, checkpoint.position)
        for key, record in manifest.records(state).items():
            if record.is_own:
                known[record.identity(key)] = (checkpoint.path.name, record.file, record.key)
    return known


def draft_of(encoded: Encoded, *, is_full: bool = True) -> CheckpointDraft:
    """What is to be written of an encoded state: its tensors' own memory."""
    from flor_plugins.store.checkpoints.hashes import bytes_of

    pieces = [
        StateTensor(key, str(one.dtype).removeprefix("torch."), tuple(one.shape), bytes_of(one))
        for key, one in encoded.tensors.items()
    ]
    return CheckpointDraft(encoded.tree, pieces, encoded.lost, is_full)


def _load(
    folder: Path,
    state: JsonObject,
    only: Collection[str] | None,
    into: Mapping[str, torch.Tensor] | None = None,
) -> LoadedSections:
    from flor_plugins.errors import EncodingError
    from flor_plugins.store.checkpoints.loader import read_tensors
    from flor_plugins.store.codec import decode

    tree = state["tree"]
    missing = sorted(set(only or ()) - set(tree))
    if missing:
        raise StoreError(
            f"the checkpoint {folder} was asked for its sections {', '.join(missing)} "
            f"and has only {', '.join(tree)}. Ask for one of those."
        )
    wanted = {name: part for name, part in tree.items() if only is None or name in only}
    try:
        return decode(wanted, read_tensors(folder, state, keys_of(wanted), into))
    except EncodingError as error:
        raise DamagedCheckpoint(f"{folder / STATE} can't be understood: {error}") from error


def folder_of(run_path: Path, position: Position) -> Path:
    """Where the checkpoint of a run at a position lies, or would."""
    return run_path / FOLDER / str(position)


def checkpoint_of(run_path: Path, state: JsonObject) -> Checkpoint:
    """What a state.json says of its checkpoint."""
    position = Position(**state["position"])
    return Checkpoint(
        run_id=run_path.name,
        position=position,
        path=folder_of(run_path, position),
        is_full=state["full"],
        nbytes=manifest.own_nbytes(state),
        lost=tuple(state["lost"]),
        sections=tuple(state["tree"]),
    )


def _positions(run_path: Path) -> list[tuple[Position, Path]]:
    folders = manifest.position_folders(run_path).items()
    return [(position, folder) for position, folder in folders if not manifest.is_tombstone(folder)]


def _folder(run_path: Path, position: Position) -> Path:
    folder = folder_of(run_path, position)
    if folder.is_dir() and not manifest.is_tombstone(folder):
        return folder
    there = "; ".join(str(one) for one, _ in _positions(run_path))
    raise NoCheckpoint(
        f"run {run_path.name} has no checkpoint at {position}; it has {there or 'none'}, in "
        f"{folder.parent}. "
        f"Replay from one of those, or record with checkpoints closer together."
    )


def keys_of(node: Any) -> set[str]:
    """The keys of all tensors that a tree names: a tied one may lie in another section's file."""
    if isinstance(node, list):
        return set().union(*map(keys_of, node))
    if not isinstance(node, dict):
        return set()
    if node.get("$") in ("tensor", "ndarray", "Generator"):
        return {node["key"]}
    return set().union(*map(keys_of, node.values()))
