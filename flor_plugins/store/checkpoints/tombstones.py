"""What is left of a checkpoint that was given up while others need tensors of it, and who
needs what. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import folder_of, list_checkpoints
from flor_plugins.store.checkpoints.manifest import (
    FORMAT,
    SHELL,
    TensorRecord,
    read_holder,
    read_state,
    records,
)
from flor_plugins.store.checkpoints.rewriting import (
    alone,
    free_name,
    no_disk_error,
    put_state,
    sweep,
)
from flor_plugins.store.checkpoints.streaming_safetensors import StreamingSafetensors
from flor_plugins.store.checkpoints.tensor_reader import TensorReader
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.files import whole_file

WORTH = 0.9  # of a file: if less of it is kept, it is written again without the rest
PART = 1 << 20  # bytes

TensorKey = tuple[Position, str]


def needed_tensors(
    run_path: Path, of: Collection[Position] | None = None
) -> dict[Position, set[str]]:
    """For each checkpoint or shell the keys of its tensors that other checkpoints can't be read
    without.

    of: the checkpoints that shall stay readable, default all of them. Deltas are followed to
    their keyframes. One that nobody needs is not in the answer; a tensor that can't be read any
    more needs nothing."""
    needed: dict[Position, set[str]] = {}
    for user, (position, key) in _needs(run_path):
        if (of is None or user in of) and user != position:
            needed.setdefault(position, set()).add(key)
    return needed


def references(run_path: Path) -> dict[Position, set[Position]]:
    """For each checkpoint the others, and shells, that it can't be read without: they must
    not be deleted before it.
    """
    found: dict[Position, set[Position]] = {
        one.position: set() for one in list_checkpoints(run_path)
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
    holders = ManifestCache(listed[0].path, read_state(listed[0].path, listed[0].position))
    for one in listed:
        for key in holders.records(one.path):
            try:
                chain = holders.chain(key, one.path)
            except DamagedCheckpoint:
                continue
            yield from ((one.position, link.tensor) for link in chain)


def hollow(run_path: Path, position: Position, keep: Collection[str]) -> None:
    """Give up a checkpoint, or a shell, but for some tensors that others need: by key, at least
    one.

    It is no checkpoint after that. Killed at any moment, or with readers of the others at work,
    no tensor of `keep` is lost. Raises StoreError for a key that it does not have, or if the
    disk refuses; DamagedCheckpoint."""
    folder = folder_of(run_path, position)
    with alone(folder), no_disk_error(folder):
        state = read_holder(folder, position)
        held = records(state)
        missing = sorted(set(keep) - held.keys())
        if missing or not keep:
            raise StoreError(
                f"of the checkpoint {folder} the tensors {', '.join(missing) or '(none)'} were "
                f"to be kept, "
                f"and it has {len(held)} others. Keep what `needed_tensors` names, or delete "
                f"the folder."
            )
        sweep(folder)
        try:
            shell = _shell(folder, state, {key: held[key] for key in keep})
        except BaseException:
            sweep(folder)
            raise
        put_state(folder, SHELL, state, shell)


def _shell(folder: Path, state: Mapping[str, Any], kept: dict[str, TensorRecord]) -> dict[str, Any]:
    files: dict[str, int] = {}
    for file in {one.file: None for one in kept.values() if one.is_own}:
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
    state: Mapping[str, Any],
    file: str,
    ones: Mapping[str, TensorRecord],
    made: Collection[str],
) -> str:
    """The name of a file with these tensors of `file` as they lie there: itself, or a
    smaller one that is written.
    """
    name = free_name(file.partition(".")[0], "shell", {*state["files"], *made})
    holders = ManifestCache(folder, state)
    with TensorReader() as reader:
        entries = {key: reader.entry(holders.chain(key)[-1]) for key in ones}
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
