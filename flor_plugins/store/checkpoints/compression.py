"""The cold tier: older checkpoints of a run, compressed without loss and read as before. No torch.

Tensors go packed (delta_packing.py) into `<section>.cold.safetensors`, as deltas to those of an
earlier checkpoint where that is smaller. Every sixteenth checkpoint of a run is a keyframe. The
base of any other is found by clearing the lowest bit that is set in its number: half of them
are deltas to the one before, and none is more than four deltas away from its keyframe, two on
average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from warnings import warn

from flor_plugins.errors import DamagedCheckpoint
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.checkpoints import folder_of, list_checkpoints
from flor_plugins.store.checkpoints.delta_packing import choose, pack, width_of
from flor_plugins.store.checkpoints.manifest import (
    FORMAT,
    STATE,
    TensorRecord,
    own_nbytes,
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
from flor_plugins.store.checkpoints.tensor_references import DeltaChain, ManifestCache
from flor_plugins.store.checkpoints.writer import DTYPES, no_pause
from flor_plugins.store.files import whole_file

KEYFRAME_EVERY = 16  # checkpoints
MOST_DELTAS = 4  # between a tensor and what can be read without another
SMALLEST = 256  # bytes; of less than that nothing is gained
WORTH = 0.97  # of its bytes: what shrinks less is left as it is, which is faster to read

Throttle = Callable[[], None]


def compress_run(run_path: Path, *, keep: int = 2, pace: Throttle = no_pause) -> int:
    """Compress all checkpoints of a run but the newest `keep`, oldest first.

    Returns the bytes that it freed.

    pace: called after each MiB or so; it may wait, or raise to stop: what was done is kept, and
    a later call goes on. A checkpoint that is damaged is passed over with a warning. Raises
    StoreError if the disk refuses.
    """
    positions = [checkpoint.position for checkpoint in list_checkpoints(run_path)]
    freed = 0
    for number, position in enumerate(positions[: max(0, len(positions) - keep)]):
        pace()
        try:
            freed += compress(run_path, position, base_of(positions, number), pace)
        except DamagedCheckpoint as error:
            warn(f"a checkpoint is not compressed: {error}", stacklevel=2)
    return freed


def base_of(positions: list[Position], number: int) -> Position | None:
    """What the checkpoint at positions[number] is to be a delta to; None for a keyframe."""
    return positions[number & (number - 1)] if number % KEYFRAME_EVERY else None


def compress(
    run_path: Path, position: Position, base: Position | None = None, pace: Throttle = no_pause
) -> int:
    """Compress a checkpoint; returns the bytes that it freed, 0 if it is compressed already.

    base: a checkpoint that the tensors may become deltas to, where that pays and no circle or
    long chain comes of it. Killed at any moment, or with readers at work, the checkpoint stays
    whole. Raises DamagedCheckpoint if it or the base can't be read; StoreError if the disk
    refuses: then it is as it was.
    """
    folder = folder_of(run_path, position)
    with locked(folder), no_disk_error(folder):
        remove_orphans(folder)
        state = read_manifest(folder, position)
        if state.get("cold"):
            return 0
        try:
            with TensorReader() as reader:
                new = _CheckpointCompressor(folder, state, base, reader, pace).rewritten()
            _verify(folder, new, pace)
        except BaseException:
            remove_orphans(folder)
            raise
        replace_manifest(folder, STATE, state, new)
    return own_nbytes(state) - own_nbytes(new)


def _verify(folder: Path, new: JsonObject, pace: Throttle) -> None:
    """Read all that was rewritten before the old files are given up. Raises DamagedCheckpoint."""
    manifests, memory = ManifestCache(folder, new), _TensorBuffer()
    with TensorReader() as reader:
        for key, record in records(new).items():
            if record.is_own:
                reader.fetch(manifests.chain(key), memory.of(record.nbytes))
                pace()


class _TensorBuffer:
    """Room for one tensor after the other."""

    def __init__(self) -> None:
        self._room = memoryview(bytearray())

    def of(self, nbytes: int) -> memoryview:
        if len(self._room) < nbytes:
            self._room = memoryview(bytearray(nbytes))
        return self._room[:nbytes]


class _CheckpointCompressor:
    """Writes the packed files of one checkpoint."""

    def __init__(
        self,
        folder: Path,
        state: JsonObject,
        base: Position | None,
        reader: TensorReader,
        pace: Throttle,
    ) -> None:
        self._folder, self._state, self._reader, self._pace = folder, state, reader, pace
        self._manifests = ManifestCache(folder, state)
        self._base = None if base is None else folder.parent / str(base)
        self._bases = (
            {} if self._base is None else records(read_manifest_or_tombstone(self._base, base))
        )
        self._tensor, self._origin = _TensorBuffer(), _TensorBuffer()

    def rewritten(self) -> JsonObject:
        """Write the files; returns what state.json is to be."""
        tensors, files = records(self._state), dict(self._state["files"])
        for file in [file for file in files if "/" not in file]:
            held = {key: one for key, one in tensors.items() if one.file == file}
            name = free_name(file.removesuffix(".safetensors"), "cold", files)
            with whole_file(self._folder / name) as scratch:
                new = self._write(scratch, name, held)
            size = (self._folder / name).stat().st_size
            if size > WORTH * files[file]:
                (self._folder / name).unlink()
                continue
            tensors |= new
            files = {one: nbytes for one, nbytes in files.items() if one != file} | {name: size}
        saved = {key: one.to_json() for key, one in tensors.items()}
        return {**self._state, "format": FORMAT, "cold": True, "tensors": saved, "files": files}

    def _write(
        self, path: Path, name: str, held: Mapping[str, TensorRecord]
    ) -> dict[str, TensorRecord]:
        """The new records of the tensors of one file.

        Packed ones come first: they leave the others aligned.
        """
        found: dict[str, TensorRecord] = {}
        with StreamingSafetensors(path, {one.key: one.shape for one in held.values()}) as file:
            for key, one in held.items():
                packed = self._pack(file, key, one)
                if packed is not None:
                    found[key] = packed.at(name, one.key)
            rest = [key for key in held if key not in found]
            for key in sorted(rest, key=lambda key: (-DTYPES[held[key].dtype][1], key)):
                one = held[key]
                file.add(one.key, [self._read(key, one)], DTYPES[one.dtype][0], one.shape)
                found[key] = one.at(name, one.key)
                self._pace()
        return found

    def _pack(self, file: StreamingSafetensors, key: str, one: TensorRecord) -> TensorRecord | None:
        """Add a tensor, packed; None if it is better left as it is."""
        if one.nbytes < SMALLEST:
            return None
        memory, width, base = self._read(key, one), width_of(one.dtype), self._base_chain(key, one)
        origin = None
        if base is not None:
            origin = self._origin.of(one.nbytes)
            self._reader.fetch(base, origin)
        method, shrunk = choose(memory, width, origin)
        if shrunk > WORTH:
            return None
        if not method.startswith("delta"):
            base = origin = None
        file.add(one.key, self._paced(pack(memory, width, method, origin)), "U8", None)
        return one.packed(
            method, None if base is None else f"../{base[-1].folder.name}/{base[-1].key}"
        )

    def _read(self, key: str, one: TensorRecord) -> memoryview:
        memory = self._tensor.of(one.nbytes)
        self._reader.fetch(self._manifests.chain(key), memory)
        return memory

    def _paced(self, pieces: Any) -> Any:
        for piece in pieces:
            yield piece
            self._pace()

    def _base_chain(self, key: str, one: TensorRecord) -> DeltaChain | None:
        there = self._bases.get(key)
        if there is None or (there.dtype, there.shape) != (one.dtype, one.shape):
            return None
        # Links of a chain are tensors of their own: cut short, it ends in an earlier one.
        chain = self._manifests.chain(key, self._base)[:MOST_DELTAS]
        return (
            None
            if any(reference.folder.name == self._folder.name for reference in chain)
            else chain
        )
