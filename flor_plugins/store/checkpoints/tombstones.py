"""Tombstones: what is left of an evicted checkpoint while others need tensors of it.

Who needs what is found here, too. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.checkpoints import folder_of, list_checkpoints
from flor_plugins.store.checkpoints.manifest import (
    FORMAT,
    TOMBSTONE,
    TensorRecord,
    read_manifest,
    read_manifest_or_tombstone,
    records,
)
from flor_plugins.store.checkpoints.rewriting import (
    free_name,
    locked,
    no_disk_error,
    remove_orphans,
    replace_manifest,
)
from flor_plugins.store.checkpoints.streaming_safetensors import StreamingSafetensors
from flor_plugins.store.checkpoints.tensor_reader import TensorReader
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.files import whole_file

WORTH = 0.9  # of a file: if less of it is kept, it is written again without the rest
PART = 1 << 20  # bytes

TensorKey = tuple[Position, str]  # of which checkpoint, and its "<section>/<name>" there


def needed_tensors(
    run_path: Path, of: Collection[Position] | None = None
) -> dict[Position, set[str]]:
    """Return for each checkpoint or tombstone the keys of its tensors that others need to be read.

    of: the checkpoints that shall stay readable, default all of them. Deltas are followed to
    their keyframes. One that nobody needs is not in the answer; a tensor that can't be read any
    more needs nothing.
    """
    needed: dict[Position, set[str]] = {}
    for user, (position, key) in _needs(run_path):
        if (of is None or user in of) and user != position:
            needed.setdefault(position, set()).add(key)
    return needed


def references(run_path: Path) -> dict[Position, set[Position]]:
    """Return for each checkpoint the others, and tombstones, that it can't be read without.

    They must not be deleted before it.
    """
    found: dict[Position, set[Position]] = {
        checkpoint.position: set() for checkpoint in list_checkpoints(run_path)
    }
    for user, (position, _) in _needs(run_path):
        if user != position:
            found[user].add(position)
    return found


def _needs(run_path: Path) -> Iterator[tuple[Position, TensorKey]]:
    """All pairs of a checkpoint and a tensor that it is read from, its own included."""
    listed = list_checkpoints(run_path)
    if not listed:
        return
    manifests = ManifestCache(listed[0].path, read_manifest(listed[0].path, listed[0].position))
    for checkpoint in listed:
        for key in manifests.records(checkpoint.path):
            try:
                chain = manifests.chain(key, checkpoint.path)
            except DamagedCheckpoint:
                continue
            yield from ((checkpoint.position, reference.tensor) for reference in chain)


def write_tombstone(run_path: Path, position: Position, keep: Collection[str]) -> None:
    """Evict a checkpoint, or a tombstone, but for some tensors that others need.

    keep: their keys, at least one.

    It is no checkpoint after that. Killed at any moment, or with readers of the others at work,
    no tensor of `keep` is lost. Raises StoreError for a key that it does not have, or if the
    disk refuses; DamagedCheckpoint.
    """
    folder = folder_of(run_path, position)
    with locked(folder), no_disk_error(folder):
        state = read_manifest_or_tombstone(folder, position)
        held = records(state)
        missing = sorted(set(keep) - held.keys())
        if missing or not keep:
            raise StoreError(
                f"of the checkpoint {folder} the tensors {', '.join(missing) or '(none)'} were "
                f"to be kept, "
                f"and it has {len(held)} others. Keep what `needed_tensors` names, or delete "
                f"the folder."
            )
        remove_orphans(folder)
        try:
            shell = _shell(folder, state, {key: held[key] for key in keep})
        except BaseException:
            remove_orphans(folder)
            raise
        replace_manifest(folder, TOMBSTONE, state, shell)


def _shell(folder: Path, state: JsonObject, kept: dict[str, TensorRecord]) -> JsonObject:
    files: dict[str, int] = {}
    for file in {record.file: None for record in kept.values() if record.is_own}:
        ones = {key: one for key, one in kept.items() if one.file == file}
        name = _without_the_rest(folder, state, file, ones, files)
        kept |= {key: one.at(name, one.key) for key, one in ones.items()}
        files[name] = (folder / name).stat().st_size
    return {
        "format": FORMAT,
        "position": state["position"],
        "full": False,
        "lost": [],
        "saved_at": state["saved_at"],
        "tree": {},
        "tensors": {key: one.to_json() for key, one in kept.items()},
        "files": files,
    }


def _without_the_rest(
    folder: Path,
    state: JsonObject,
    file: str,
    ones: Mapping[str, TensorRecord],
    made: Collection[str],
) -> str:
    """Return the name of a file with these tensors of `file` as they lie there.

    That is the file itself, or a smaller one that is written.
    """
    name = free_name(file.partition(".")[0], "shell", {*state["files"], *made})
    manifests = ManifestCache(folder, state)
    with TensorReader() as reader:
        entries = {key: reader.entry(manifests.chain(key)[-1]) for key in ones}
        if sum(entry.nbytes for entry in entries.values()) >= WORTH * state["files"][file]:
            return file
        with (
            whole_file(folder / name) as scratch,
            StreamingSafetensors(
                scratch, {one.key: entries[key].shape for key, one in ones.items()}
            ) as grown,
        ):
            # as they lay there: packed ones first, then wide dtypes, so that all stay aligned
            for key in sorted(ones, key=lambda key: entries[key].begin):
                entry = entries[key]
                grown.add(
                    ones[key].key,
                    _parts(entry.handle, entry.begin, entry.end),
                    entry.dtype,
                    entry.shape,
                )
    return name


def _parts(handle: int, begin: int, end: int) -> Iterator[bytes]:
    for start in range(begin, end, PART):
        part = os.pread(handle, min(PART, end - start), start)
        if len(part) < min(PART, end - start):
            raise OSError("a file became shorter while it was copied")
        yield part
