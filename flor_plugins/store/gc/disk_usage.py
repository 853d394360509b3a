"""Checkpoints on disk: what each holds, and how one is reduced.

A kill at any moment leaves each whole or gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from warnings import warn

from flor_plugins.errors import DamagedCheckpoint, StoreError
from flor_plugins.records import Checkpoint, Position
from flor_plugins.records.sections import OPTIMIZER
from flor_plugins.store.checkpoints import FOLDER, checkpoint_of, folder_of, keys_of, manifest
from flor_plugins.store.checkpoints.rewriting import alone, no_disk_error, put_state
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.checkpoints.tombstones import hollow
from flor_plugins.store.files import sync
from flor_plugins.store.gc.checkpoint_sizes import CheckpointContent, CheckpointSizes, TensorKey
from flor_plugins.store.gc.replay_cost import CheckpointForm

GIVEN_UP = "optimizer: given up to free space"


def parts_of(run_path: Path) -> list[Path]:
    """The folders in which the processes of a run keep their checkpoints, the first process'
    first.
    """
    others = [one for one in (run_path / "ranks").glob("*") if one.name.isdecimal()]
    return [run_path, *sorted(others, key=lambda one: int(one.name))]


class _RunFolder(ManifestCache):
    """The checkpoints and shells of a folder, each state.json read once."""

    def __init__(self, run_path: Path) -> None:
        super().__init__(run_path, {})
        self.states: dict[Position, dict[str, Any]] = {}
        self.listed: list[Checkpoint] = []
        for folder in (run_path / FOLDER).glob("epoch=*,step=*"):
            try:
                position = Position.parse(folder.name)
                is_shell = manifest.is_shell(folder)
                state = manifest.read_holder(folder, position)
            except ValueError:
                continue  # not one of ours
            except StoreError as error:
                warn(f"a checkpoint is left as it is: {error}", stacklevel=4)
                continue
            self.states[position] = self._states[folder.name] = state
            if not is_shell:
                self.listed.append(checkpoint_of(run_path, state))


def read_sizes(run_path: Path) -> tuple[CheckpointSizes, list[Checkpoint]]:
    """What the checkpoints of a process hold, and those that can be loaded, by position.

    One that can't be read is passed over with a warning.
    """
    run = _RunFolder(run_path)
    forms: dict[Position, CheckpointForm] = {
        one.position: "full" if one.can_train else "weights" for one in run.listed
    }
    contents = {
        position: _content(folder_of(run_path, position), state, run)
        for position, state in sorted(run.states.items())
    }
    return CheckpointSizes(contents, forms), sorted(run.listed, key=lambda one: one.position)


def _content(folder: Path, state: Mapping[str, Any], holders: ManifestCache) -> CheckpointContent:
    rest = keys_of({name: part for name, part in state["tree"].items() if name != OPTIMIZER})
    own: dict[str, dict[str, int]] = {}
    for key, one in holders.records(folder).items():
        if one.is_own:
            own.setdefault(one.file, {})[key] = one.nbytes
    only_optimizer = {file for file, ones in own.items() if not rest & ones.keys()}
    sizes = {file: _size(folder / file) for file in own}
    described = _size(folder / manifest.STATE) or _size(folder / manifest.SHELL)
    return CheckpointContent(
        rest=described + sum(size for file, size in sizes.items() if file not in only_optimizer),
        optimizer=sum(sizes[file] for file in only_optimizer),
        tensors={
            key: nbytes for file, ones in own.items() for key, nbytes in _shares(ones, sizes[file])
        },
        of_optimizer=frozenset(key for file in only_optimizer for key in own[file]),
        frame=2
        * described,  # a shell's state.json and the headers of its files are no longer than that
        uses=_uses(folder, rest, holders),
        optimizer_uses=_uses(folder, keys_of(state["tree"]) - rest, holders),
    )


def _shares(ones: Mapping[str, int], size: int) -> Iterator[tuple[str, int]]:
    """Each tensor's part of a file, which may be compressed, and has a header."""
    whole = sum(ones.values()) or 1
    return ((key, -(-size * nbytes // whole)) for key, nbytes in ones.items())


def _uses(folder: Path, keys: Collection[str], holders: ManifestCache) -> frozenset[TensorKey]:
    """The tensors of other checkpoints that some of this one are read from."""
    found, held = set(), holders.records(folder)
    for key in keys:
        if key not in held or (held[key].is_own and held[key].base is None):
            continue
        try:
            found |= {
                link.tensor
                for link in holders.chain(key, folder)
                if link.folder.name != folder.name
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
    run_path: Path, shelf: CheckpointSizes, was: Mapping[Position, CheckpointForm]
) -> Iterator[tuple[Position, CheckpointForm]]:
    """Make a process' checkpoints what `shelf` says; `was`: what they are.

    Yields each with its new form before it is changed: who stops there leaves it, and all that
    follow, as they are. One that refers to others goes before them, so that no reference is
    ever broken."""
    for position in _users_first(shelf, was):
        form, kept = shelf.forms[position], shelf.kept(position)
        if form == "gone" and (was[position] != "gone" or _is_larger(run_path, position, kept)):
            yield position, form
            give_up(run_path, position, kept)
        elif form == "weights" and (was[position] == "full" or shelf.is_left_over(position)):
            yield position, form
            drop_optimizer(run_path, position, kept)


def _users_first(
    shelf: CheckpointSizes, was: Mapping[Position, CheckpointForm]
) -> Iterable[Position]:
    order: TopologicalSorter[Position] = TopologicalSorter()
    now = dict(shelf.forms)
    for position in sorted(now, reverse=True):
        order.add(position)
    for position, form in was.items():
        shelf.put(position, form)
        for owner in shelf.owners(position) & now.keys() - {position}:
            order.add(owner, position)
        shelf.put(position, now[position])
    return list(order.static_order())


def _is_larger(run_path: Path, position: Position, kept: Collection[str]) -> bool:
    """Does a shell hold more than is needed of it?"""
    return bool(
        manifest.records(manifest.read_holder(folder_of(run_path, position))).keys() - set(kept)
    )


def drop_optimizer(run_path: Path, position: Position, keep: Collection[str] = ()) -> None:
    """Make weights of a full checkpoint: training can't go on from it any more, all else of it
    is as it was.

    keep: tensors of it that other checkpoints refer to. Raises DamagedCheckpoint if it can't be
    read, StoreError if the disk refuses."""
    folder = folder_of(run_path, position)
    with alone(folder), no_disk_error(folder):
        state = manifest.read_state(folder, position)
        put_state(folder, manifest.STATE, state, _without_optimizer(state, keep))


def _without_optimizer(state: Mapping[str, Any], keep: Collection[str]) -> dict[str, Any]:
    tree = {name: part for name, part in state["tree"].items() if name != OPTIMIZER}
    wanted = keys_of(tree) | set(keep)
    tensors = {key: one for key, one in state["tensors"].items() if key in wanted}
    held = {one["file"] for one in tensors.values()}
    bases = {one["base"].split("/")[1] for one in tensors.values() if "base" in one}
    held |= {file for file in state["files"] if "/" in file and file.split("/")[1] in bases}
    return {
        **state,
        "full": False,
        "lost": [*state["lost"], *([] if GIVEN_UP in state["lost"] else [GIVEN_UP])],
        "tree": tree,
        "tensors": tensors,
        "files": {file: size for file, size in state["files"].items() if file in held},
    }


def give_up(run_path: Path, position: Position, keep: Collection[str] = ()) -> None:
    """Remove a checkpoint but for the tensors `keep`, which other checkpoints refer to."""
    folder = folder_of(run_path, position)
    if keep:
        hollow(run_path, position, keep)
    elif folder.is_dir():
        with alone(folder):
            remove(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder; what is half removed has a name that readers pass over."""
    try:
        aside = manifest.beside(path)
        path.rename(aside)
        sync(path.parent)  # else a machine that loses its power may keep the name and not the files
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    except OSError as error:
        raise StoreError(
            f"{path} could not be removed: {error}. Look at the rights of {path.parent}; what "
            f"is left is not read."
        ) from error
