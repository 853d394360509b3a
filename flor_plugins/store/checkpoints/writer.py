"""Write a checkpoint's folder from bytes in memory.

No torch: the process that writes beside a training starts in no time.

The files are safetensors (https://huggingface.co/docs/safetensors#format): 8 bytes with the
length of a JSON header, the header, the tensors one after the other. They are written here and
not by that package because it takes tensors of a framework, and all of them at once: here bytes
go from the memory that they were copied to straight to the file, and the one who writes can
pause at any time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.checkpoints.direct_io import DirectFile
from flor_plugins.store.checkpoints.hashes import TensorHash
from flor_plugins.store.checkpoints.manifest import FORMAT, STATE, TOMBSTONE, TensorRecord, own_hash
from flor_plugins.store.files import whole_folder, write_json

CHUNK = 1 << 19  # bytes between two calls of `pace`; they fit into the cache of a core
REMEMBERED = 8  # states; a training writes thousands, and most of their tensors never come again

# (key, hash, dtype, shape) of a tensor that is on disk -> (folder of the checkpoint, file, key
# in it)
KnownTensors = MutableMapping[tuple[str, str, str, tuple[int, ...]], tuple[str, str, str]]

# What safetensors calls the dtypes of torch (safetensors/src/tensor.rs), and their bytes.
DTYPES = {
    "float64": ("F64", 8), "int64": ("I64", 8), "uint64": ("U64", 8), "complex64": ("C64", 8),
    "float32": ("F32", 4), "int32": ("I32", 4), "uint32": ("U32", 4),
    "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int16": ("I16", 2), "uint16": ("U16", 2),
    "bool": ("BOOL", 1), "uint8": ("U8", 1), "int8": ("I8", 1),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor of a State, in memory.

    key: "<section>/<name>". dtype: one of DTYPES. memory: its bytes, row-major; None where
    `hash` says that it is what was written with that hash before.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    memory: memoryview | None
    hash: str | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes that it has in a file."""
        count = DTYPES[self.dtype][1]
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class CheckpointDraft:
    """What a checkpoint is to hold.

    lost: what could not be encoded. is_full: training can go on from it exactly.
    """

    tree: JsonObject
    pieces: Sequence[StateTensor]
    lost: tuple[str, ...] = ()
    is_full: bool = True


def no_pause() -> None:
    """Go on at once."""


def write_folder(
    folder: Path,
    position: Position,
    draft: CheckpointDraft,
    known: KnownTensors | None = None,
    pace: Callable[[], None] = no_pause,
) -> JsonObject:
    """Write a checkpoint, whole or not at all; returns what state.json holds.

    known: what the run has on disk, filled here after success: a piece that is there already
    becomes a reference.
    pace: called after each half MiB, for a writer that must not disturb. Raises StoreError if
    the folder exists, if the disk refuses, or if a piece without memory is not on disk any
    more.
    """
    known = {} if known is None else known
    try:
        with whole_folder(folder) as scratch:
            records = _write_files(scratch, folder, draft.pieces, known, pace)
            state = _state(position, draft, records, scratch)
            # compact: Python's fast JSON encoder does not indent, and the tree may be long
            write_json(scratch / STATE, state, indent=None)
    except OSError as error:
        raise StoreError(
            f"the checkpoint {folder} could not be written: {error}. "
            f"Nothing of it was left behind; look at the free space and the rights of "
            f"{folder.parent}."
        ) from error
    _remember(known, records, folder)
    return state


def _remember(known: KnownTensors, records: Mapping[str, TensorRecord], folder: Path) -> None:
    """What is on the disk now; of what has not been seen for long, nothing."""
    for key, one in records.items():
        place, _, file = one.file.removeprefix("../").rpartition("/")
        was = known.pop(one.identity(key), None)  # so that it becomes the newest one
        if was is None or not (folder.parent / was[0] / STATE).is_file():
            was = (place or folder.name, file, one.key)
        known[one.identity(key)] = was
    for identity in list(islice(known, max(0, len(known) - REMEMBERED * len(records)))):
        del known[identity]


def _write_files(
    scratch: Path,
    folder: Path,
    pieces: Sequence[StateTensor],
    known: KnownTensors,
    pace: Callable[[], None],
) -> dict[str, TensorRecord]:
    """One file per section with what is new; the records of all pieces, in their order."""
    places, restless = _TensorPlacement(folder, known), _restless(known)
    found: dict[str, TensorRecord] = {}
    sections: dict[str, list[StateTensor]] = {}
    for piece in pieces:
        if piece.memory is None:
            found[piece.key] = places.unchanged(piece)
        elif (
            piece.key in restless
        ):  # it changes each time: it is hashed as it is written, and read only once
            sections.setdefault(piece.key.partition("/")[0], []).append(piece)
        else:
            record = found[piece.key] = places.find(piece, piece.hash or _hash(piece, pace))
            if "/" not in record.file:
                sections.setdefault(piece.key.partition("/")[0], []).append(piece)
    for section, ones in sections.items():
        hashes = _write_file(scratch / f"{section}.safetensors", ones, pace)
        found |= {
            one.key: places.here(one, hashes[one.key]) for one in ones if one.key not in found
        }
    return {piece.key: found[piece.key] for piece in pieces}


def _restless(known: KnownTensors) -> set[str]:
    """The keys of the tensors that were new in the last checkpoint, and not in that one alone."""
    newest = {identity[0]: place for identity, (place, _, _) in known.items()}
    count = Counter(identity[0] for identity in known)
    last = next(reversed(newest.values()), None)
    return {key for key, place in newest.items() if place == last and count[key] > 2}


def _hash(piece: StateTensor, pace: Callable[[], None]) -> str:
    assert piece.memory is not None
    hashing = TensorHash()
    for start in range(0, piece.nbytes, CHUNK):
        hashing.update(piece.memory[start : start + CHUNK])
        pace()
    return str(hashing)


def _write_file(
    path: Path, pieces: Iterable[StateTensor], pace: Callable[[], None]
) -> dict[str, str]:
    """Returns the hash of each, taken while its bytes are in the processor's cache."""
    # wide dtypes first, so that every tensor is aligned to its items
    ordered = sorted(pieces, key=lambda piece: (-DTYPES[piece.dtype][1], piece.key))
    hashes = {}
    with DirectFile(path, sum(piece.nbytes for piece in ordered)) as file:
        file.write(memoryview(_header(ordered)))
        for piece in ordered:
            assert piece.memory is not None
            hashing = TensorHash()
            for start in range(0, piece.nbytes, CHUNK):
                part = piece.memory[start : start + CHUNK]
                hashing.update(part)
                file.write(part)
                pace()
            hashes[piece.key] = str(hashing)
    return hashes


def _header(pieces: Sequence[StateTensor]) -> bytes:
    header, end = {}, 0
    for piece in pieces:
        name, start = piece.key.partition("/")[2], end
        end = start + piece.nbytes
        header[name] = {
            "dtype": DTYPES[piece.dtype][0],
            "shape": list(piece.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


class _TensorPlacement:
    """Where a tensor will be found: in this checkpoint, or in an earlier one that is there."""

    def __init__(self, folder: Path, known: KnownTensors) -> None:
        self._folder, self._known = folder, known
        self._there: dict[str, bool] = {}

    def here(self, piece: StateTensor, hash: str) -> TensorRecord:
        section, _, name = piece.key.partition("/")
        return TensorRecord(
            f"{section}.safetensors", name, piece.dtype, piece.shape, piece.nbytes, hash
        )

    def find(self, piece: StateTensor, hash: str) -> TensorRecord:
        one = self.here(piece, hash)
        earlier = self._known.get(one.identity(piece.key))
        if earlier is None or earlier[0] == self._folder.name or not self._is_there(earlier[0]):
            return one
        place, file, name = earlier
        return one.at(f"../{place}/{file}", name)

    def unchanged(self, piece: StateTensor) -> TensorRecord:
        assert piece.hash is not None
        record = self.find(piece, piece.hash)
        if "/" not in record.file:
            raise StoreError(
                f"the checkpoint {self._folder} needs {piece.key!r} from an earlier one that "
                f"is gone. "
                f"It is not written; the next one will hold all of it."
            )
        return record

    def _is_there(self, place: str) -> bool:
        if place not in self._there:  # it may have been deleted since
            holder = self._folder.parent / place
            self._there[place] = (holder / STATE).is_file() or (holder / TOMBSTONE).is_file()
        return self._there[place]


def _state(
    position: Position,
    draft: CheckpointDraft,
    records: dict[str, TensorRecord],
    scratch: Path,
) -> JsonObject:
    files = sorted({record.file for record in records.values()})
    own = {file: (scratch / file).stat().st_size for file in files if "/" not in file}
    state = {
        "format": FORMAT,
        "position": {"epoch": position.epoch, "step": position.step},
        "full": draft.is_full and not draft.lost,
        "lost": list(draft.lost),
        "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "tree": draft.tree,
        "tensors": {key: one.to_json() for key, one in records.items()},
        # of a file of another checkpoint no size: that one may be compressed one day
        "files": {file: own.get(file) for file in files},
    }
    return state | {"sha256": own_hash(state)}
