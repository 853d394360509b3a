"""Checkpoints of a run: one folder per position, a safetensors file per section, and state.json last.

state.json names the file, shape, dtype and sha256 of every tensor, and has a hash of
itself; nothing that was torn or altered is handed out. A tensor that an earlier
checkpoint of the run holds already is a reference to it, not a second copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint, StoreError
from flor_plugins.records import Checkpoint, Position
from flor_plugins.store import checkpoint_files
from flor_plugins.store.checkpoint_files import FORMAT, STATE, TensorRecord
from flor_plugins.store.files import whole_folder, write_json

if TYPE_CHECKING:  # listing checkpoints must not load torch
    import torch

    from flor_plugins.store.codec import Encoded

FOLDER = "checkpoints"

# (key, sha256, dtype, shape) of a tensor that is on disk -> (folder of the checkpoint, file, key in it)
Known = MutableMapping[tuple[str, str, str, tuple[int, ...]], tuple[str, str, str]]


def save_checkpoint(
    run_path: Path, position: Position, encoded: Encoded, known: Known | None = None
) -> Checkpoint:
    """Write an encoded state as the checkpoint of a run at `position`, whole or not at all.

    known: what is on disk already; kept by the caller, filled here after each
    success, and good for one run and one writer. Raises StoreError if the position
    has a checkpoint, or if the disk refuses.
    """
    folder = run_path / FOLDER / str(position)
    records = _records(encoded.tensors, folder, {} if known is None else known)
    state = _save(folder, position, encoded, records)
    if known is not None:
        for key, one in records.items():
            where = one.file.removeprefix("../").rpartition("/")
            known[one.identity(key)] = (where[0] or folder.name, where[2], one.key)
    return _checkpoint(folder, state)


def save_folder(folder: Path, position: Position, encoded: Encoded) -> None:
    """Write an encoded state as a folder of any name, outside a run: whole or not at all.

    Raises StoreError if the folder exists, or if the disk refuses.
    """
    _save(folder, position, encoded, _records(encoded.tensors, folder, {}))


def load_checkpoint(
    run_path: Path, position: Position, only: Collection[str] | None = None
) -> dict[str, Any]:
    """The state at a position: section to value, tensors on the CPU in memory of their own.

    only: the sections that are wanted (default all); other files are not read.
    Raises NoCheckpoint, listing the positions that exist; DamagedCheckpoint, naming
    the file, if anything it reads is missing, torn or altered; StoreError for a
    section that was not saved.
    """
    folder = _folder(run_path, position)
    return _load(folder, checkpoint_files.read_state(folder, position), only)


def load_folder(folder: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """What `save_folder` wrote, with the checks and errors of `load_checkpoint`."""
    return _load(folder, checkpoint_files.read_state(folder), only)


def list_checkpoints(run_path: Path) -> list[Checkpoint]:
    """The checkpoints of a run by position. One that can't be read is passed over with a warning."""
    found = []
    for position, folder in _positions(run_path):
        try:
            state = checkpoint_files.read_state(folder, position)
        except StoreError as error:
            warn(f"a checkpoint is passed over: {error}", stacklevel=2)
        else:
            found.append(_checkpoint(folder, state))
    return found


def tensor_hashes(run_path: Path, position: Position, section: str = "model") -> dict[str, str]:
    """sha256 of the bytes of each tensor of a section, by name; reads state.json only.

    A tied tensor stands under the name it was met with first. Raises as load_checkpoint does.
    """
    state = checkpoint_files.read_state(_folder(run_path, position), position)
    prefix = f"{section}/"
    return {
        key.removeprefix(prefix): one["sha256"]
        for key, one in state["tensors"].items()
        if key.startswith(prefix)
    }


def known_tensors(run_path: Path) -> Known:
    """What the checkpoints of a run hold, for a process that goes on writing it."""
    known: Known = {}
    for one in list_checkpoints(run_path):
        state = checkpoint_files.read_state(one.path, one.position)
        for key, record in checkpoint_files.records(state).items():
            if "/" not in record.file:
                known[record.identity(key)] = (one.path.name, record.file, record.key)
    return known


def references(run_path: Path) -> dict[Position, set[Position]]:
    """For each checkpoint the others that hold tensors of it: those must not be deleted before it."""
    needed: dict[Position, set[Position]] = {}
    for one in list_checkpoints(run_path):
        files = checkpoint_files.read_state(one.path, one.position)["files"]
        needed[one.position] = {Position.parse(name.split("/")[1]) for name in files if "/" in name}
    return needed


def _save(
    folder: Path, position: Position, encoded: Encoded, records: dict[str, TensorRecord]
) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with whole_folder(folder) as scratch:
            for file, tensors in _by_file(encoded.tensors, records).items():
                save_file(tensors, scratch / file)
            state = _state(position, encoded, records, scratch, folder.parent)
            # compact: Python's fast JSON encoder does not indent, and the tree may be long
            write_json(scratch / STATE, state, indent=None)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the checkpoint {folder} could not be written: {error}. "
            f"Nothing of it was left behind; look at the free space and the rights of {folder.parent}."
        ) from error
    return state


def _load(folder: Path, state: dict[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    from flor_plugins.errors import EncodingError
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
        return decode(wanted, checkpoint_files.read_tensors(folder, state, _keys(wanted)))
    except EncodingError as error:
        raise DamagedCheckpoint(f"{folder / STATE} can't be understood: {error}") from error


def _records(tensors: dict[str, torch.Tensor], folder: Path, known: Known) -> dict[str, TensorRecord]:
    """Where each tensor will be found: in this checkpoint, or in an earlier one that still is there."""
    records = {}
    there: dict[tuple[str, str], bool] = {}
    for key, tensor in tensors.items():
        section, _, name = key.partition("/")
        one = TensorRecord(
            file=f"{section}.safetensors",
            key=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            nbytes=tensor.numel() * tensor.element_size(),
            sha256=checkpoint_files.sha256(tensor),
        )
        earlier = known.get(one.identity(key))
        if earlier is not None and earlier[0] != folder.name:
            place, file, name = earlier
            if (place, file) not in there:  # it may have been deleted since
                there[place, file] = (folder.parent / place / file).is_file()
            if there[place, file]:
                one = one.at(f"../{place}/{file}", name)
        records[key] = one
    return records


def _by_file(
    tensors: dict[str, torch.Tensor], records: dict[str, TensorRecord]
) -> dict[str, dict[str, torch.Tensor]]:
    files: dict[str, dict[str, torch.Tensor]] = {}
    for key, one in records.items():
        if "/" not in one.file:
            files.setdefault(one.file, {})[one.key] = tensors[key]
    return files


def _state(
    position: Position, encoded: Encoded, records: dict[str, TensorRecord], scratch: Path, parent: Path
) -> dict[str, Any]:
    files = sorted({one.file for one in records.values()})
    sizes = {file: _size(scratch / file if "/" not in file else parent / file[3:]) for file in files}
    state = {
        "format": FORMAT,
        "position": {"epoch": position.epoch, "step": position.step},
        "full": not encoded.lost,
        "lost": list(encoded.lost),
        "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "tree": encoded.tree,
        "tensors": {key: one.to_json() for key, one in records.items()},
        "files": sizes,
    }
    return state | {"sha256": checkpoint_files.own_hash(state)}


def _size(path: Path) -> int:
    return path.stat().st_size


def _checkpoint(folder: Path, state: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        run_id=folder.parent.parent.name,
        position=Position(**state["position"]),
        path=folder,
        is_full=state["full"],
        nbytes=sum(size for file, size in state["files"].items() if "/" not in file),
        lost=tuple(state["lost"]),
        sections=tuple(state["tree"]),
    )


def _positions(run_path: Path) -> Iterable[tuple[Position, Path]]:
    found = []
    for folder in (run_path / FOLDER).glob("epoch=*,step=*"):
        try:
            found.append((Position.parse(folder.name), folder))
        except ValueError:
            continue  # not one of ours
    return sorted(found)


def _folder(run_path: Path, position: Position) -> Path:
    folder = run_path / FOLDER / str(position)
    if folder.is_dir():
        return folder
    there = "; ".join(str(one) for one, _ in _positions(run_path))
    raise NoCheckpoint(
        f"run {run_path.name} has no checkpoint at {position}; it has {there or 'none'}, in {folder.parent}. "
        f"Replay from one of those, or record with checkpoints closer together."
    )


def _keys(node: Any) -> set[str]:
    """The keys of all tensors that a tree names: a tied one may lie in another section's file."""
    if isinstance(node, list):
        return set().union(*map(_keys, node))
    if not isinstance(node, dict):
        return set()
    if node.get("$") in ("tensor", "ndarray", "Generator"):
        return {node["key"]}
    return set().union(*map(_keys, node.values()))
