"""Checkpoints on disk: what each holds, and how one is reduced.

A kill at any moment leaves each whole or gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from operator import attrgetter
from pathlib import Path
from warnings import warn

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Checkpoint, JsonObject, Position
from flor_plugins.records.sections import OPTIMIZER
from flor_plugins.store.checkpoints import checkpoint_of, folder_of, keys_of, manifest
from flor_plugins.store.checkpoints.rewriting import locked, no_disk_error, replace_manifest
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.checkpoints.tombstones import write_tombstone
from flor_plugins.store.files import scratch_path, sync
from flor_plugins.store.gc.checkpoint_sizes import CheckpointContent, CheckpointSizes, TensorKey
from flor_plugins.store.gc.replay_cost import CheckpointForm

GIVEN_UP = "optimizer: given up to free space"


def parts_of(run_path: Path) -> list[Path]:
    """Return the folders in which the processes of a run keep their checkpoints.

    The first process' folder comes first.
    """
    others = [path for path in (run_path / "ranks").glob("*") if path.name.isdecimal()]
    return [run_path, *sorted(others, key=lambda one: int(one.name))]


class _RunFolder(ManifestCache):
    """The checkpoints and tombstones of a folder, each state.json read once."""

    def __init__(self, run_path: Path) -> None:
        super().__init__(run_path, {})
        self.states: dict[Position, JsonObject] = {}
        self.listed: list[Checkpoint] = []
        for position, folder in manifest.position_folders(run_path).items():
            try:
                is_tombstone = manifest.is_tombstone(folder)
                state = manifest.read_manifest_or_tombstone(folder, position)
            except StoreError as error:
                warn(f"a checkpoint is left as it is: {error}", stacklevel=4)
                continue
            self.states[position] = self._states[folder.name] = state
            if not is_tombstone:
                self.listed.append(checkpoint_of(run_path, state))


def read_sizes(run_path: Path) -> tuple[CheckpointSizes, list[Checkpoint]]:
    """What the checkpoints of a process hold, and those that can be loaded, by position.

    One that can't be read is passed over with a warning.
    """
    run = _RunFolder(run_path)
    forms: dict[Position, CheckpointForm] = {
        checkpoint.position: "full" if checkpoint.can_train else "weights"
        for checkpoint in run.listed
    }
    contents = {
        position: _content(folder_of(run_path, position), state, run)
        for position, state in sorted(run.states.items())
    }
    return CheckpointSizes(contents, forms), sorted(run.listed, key=attrgetter("position"))


def _content(folder: Path, state: JsonObject, manifests: ManifestCache) -> CheckpointContent:
    rest = keys_of({name: part for name, part in state["tree"].items() if name != OPTIMIZER})
    own: dict[str, dict[str, int]] = {}
    for key, one in manifests.records(folder).items():
        if one.is_own:
            own.setdefault(one.file, {})[key] = one.nbytes
    only_optimizer = {file for file, ones in own.items() if not rest & ones.keys()}
    sizes = {file: _size(folder / file) for file in own}
    described = _size(folder / manifest.STATE) or _size(folder / manifest.TOMBSTONE)
    return CheckpointContent(
        rest=described + sum(size for file, size in sizes.items() if file not in only_optimizer),
        optimizer=sum(sizes[file] for file in only_optimizer),
        tensors={
            key: nbytes for file, ones in own.items() for key, nbytes in _shares(ones, sizes[file])
        },
        of_optimizer=frozenset(key for file in only_optimizer for key in own[file]),
        # A tombstone's state.json and the headers of its files are no longer than that.
        frame=2 * described,
        uses=_uses(folder, rest, manifests),
        optimizer_uses=_uses(folder, keys_of(state["tree"]) - rest, manifests),
    )


def _shares(ones: Mapping[str, int], size: int) -> Iterator[tuple[str, int]]:
    """Each tensor's part of a file, which may be compressed, and has a header."""
    whole = sum(ones.values()) or 1
    return ((key, -(-size * nbytes // whole)) for key, nbytes in ones.items())


def _uses(folder: Path, keys: Collection[str], manifests: ManifestCache) -> frozenset[TensorKey]:
    """The tensors of other checkpoints that some of this one are read from."""
    found, held = set(), manifests.records(folder)
    for key in keys:
        if key not in held or (held[key].is_own and held[key].base is None):
            continue
        try:
            found |= {
                reference.tensor
                for reference in manifests.chain(key, folder)
                if reference.folder.name != folder.name
            }
        except DamagedCheckpoint:
            continue  # what it needs is gone already
    return frozenset(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def reduce(
    run_path: Path, sizes: CheckpointSizes, was: Mapping[Position, CheckpointForm]
) -> Iterator[tuple[Position, CheckpointForm]]:
    """Make a process' checkpoints what `sizes` says; `was`: what they are.

    Yields each with its new form before it is changed: who stops there leaves it, and all that
    follow, as they are. One that refers to others goes before them, so that no reference is
    ever broken.
    """
    for position in _users_first(sizes, was):
        form, kept = sizes.forms[position], sizes.kept(position)
        if form == "gone" and (was[position] != "gone" or _is_larger(run_path, position, kept)):
            yield position, form
            evict(run_path, position, kept)
        elif form == "weights" and (was[position] == "full" or sizes.is_left_over(position)):
            yield position, form
            evict_optimizer(run_path, position, kept)


def _users_first(
    sizes: CheckpointSizes, was: Mapping[Position, CheckpointForm]
) -> Iterable[Position]:
    order: TopologicalSorter[Position] = TopologicalSorter()
    now = dict(sizes.forms)
    for position in sorted(now, reverse=True):
        order.add(position)
    for position, form in was.items():
        sizes.put(position, form)
        for owner in sizes.owners(position) & now.keys() - {position}:
            order.add(owner, position)
        sizes.put(position, now[position])
    return list(order.static_order())


def _is_larger(run_path: Path, position: Position, kept: Collection[str]) -> bool:
    """Say whether a tombstone holds more than is needed of it."""
    return bool(
        manifest.records(manifest.read_manifest_or_tombstone(folder_of(run_path, position))).keys()
        - set(kept)
    )


def evict_optimizer(run_path: Path, position: Position, keep: Collection[str] = ()) -> None:
    """Make weights of a full checkpoint.

    Training can't go on from it any more; all else of it is as it was.

    keep: tensors of it that other checkpoints refer to. Raises DamagedCheckpoint if it can't be
    read, StoreError if the disk refuses.
    """
    folder = folder_of(run_path, position)
    with locked(folder), no_disk_error(folder):
        state = manifest.read_manifest(folder, position)
        replace_manifest(folder, manifest.STATE, state, _without_optimizer(state, keep))


def _without_optimizer(state: JsonObject, keep: Collection[str]) -> JsonObject:
    tree = {name: part for name, part in state["tree"].items() if name != OPTIMIZER}
    wanted = keys_of(tree) | set(keep)
    tensors = {key: one for key, one in state["tensors"].items() if key in wanted}
    held = {tensor["file"] for tensor in tensors.values()}
    bases = {tensor["base"].split("/")[1] for tensor in tensors.values() if "base" in tensor}
    held |= {file for file in state["files"] if "/" in file and file.split("/")[1] in bases}
    return {
        **state,
        "full": False,
        "lost": [*state["lost"], *([] if GIVEN_UP in state["lost"] else [GIVEN_UP])],
        "tree": tree,
        "tensors": tensors,
        "files": {file: size for file, size in state["files"].items() if file in held},
    }


def evict(run_path: Path, position: Position, keep: Collection[str] = ()) -> None:
    """Remove a checkpoint but for the tensors `keep`, which other checkpoints refer to."""
    folder = folder_of(run_path, position)
    if keep:
        write_tombstone(run_path, position, keep)
    elif folder.is_dir():
        with locked(folder):
            remove(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder; what is half removed has a name that readers pass over."""
    try:
        aside = scratch_path(path)
        path.rename(aside)
        sync(path.parent)  # else a machine that loses its power may keep the name and not the files
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    except OSError as error:
        raise StoreError(
            f"{path} could not be removed: {error}. Look at the rights of {path.parent}; what "
            f"is left is not read."
        ) from error
