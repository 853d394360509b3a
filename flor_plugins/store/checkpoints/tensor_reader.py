"""The bytes of a tensor, from its files into memory, unpacked and checked. No torch.

The files are read and not mapped: what was hashed is what is handed out, and a file that is
truncated meanwhile is an error here, where a mapped one would end the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint
from flor_plugins.records import JsonObject
from flor_plugins.store.checkpoints.hashes import ALGORITHMS, TensorHash
from flor_plugins.store.checkpoints.manifest import WHAT_TO_DO, TensorRecord
from flor_plugins.store.checkpoints.tensor_references import DeltaChain, TensorReference
from flor_plugins.store.checkpoints.writer import DTYPES
from flor_plugins.store.sizes import processors

LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors package
PER_THREAD = 8 << 20  # bytes of work that starting a thread is worth
MOST_THREADS = 8  # by then it is the memory that is waited for
PACKED_COST = 8  # of a packed byte in each tensor of a chain, where one that is read costs 1
PART = 1 << 20  # bytes that are read and then hashed while they are in the cache of the processor
_DTYPES = {code: name for name, (code, _) in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where a tensor lies in an open file, from `begin` to `end`, and as what.

    dtype: as safetensors calls it.
    """

    handle: int
    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return how many bytes it has in the file."""
        return self.end - self.begin


class MissingTensorFile(DamagedCheckpoint):
    """A file that a state.json names is not there.

    Unless the checkpoint was rewritten meanwhile, it is damaged.
    """


class TensorReader:
    """Reads tensors; each file is opened once. A context manager: it closes them."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[int, int, JsonObject]] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1][0])

    def open(self, chains: Iterable[DeltaChain]) -> None:
        """Open all files of some tensors first.

        It is quick, and spares reading gigabytes in vain.
        """
        for reference in {
            reference.path: reference for chain in chains for reference in chain
        }.values():
            if reference.path not in self._files:
                self._files[reference.path] = _opened(reference)

    def fetch_all(self, wanted: Collection[tuple[DeltaChain, memoryview]]) -> None:
        """Fill the memory of many tensors; as `fetch`.

        On as many threads as it pays for, at most MOST_THREADS.
        """
        self.open(chain for chain, _ in wanted)  # from here on the threads only look things up
        work = sum(len(memory) * _cost(chain) for chain, memory in wanted)
        threads = min(processors(), MOST_THREADS, len(wanted), work // PER_THREAD)
        if threads < 2:
            for one in wanted:
                self.fetch(*one)
            return
        # the large ones first: else the last thread is alone with one of them in the end
        order = sorted(wanted, key=lambda one: len(one[1]) * _cost(one[0]), reverse=True)
        with ThreadPoolExecutor(threads, "flor reads") as pool:
            jobs = [pool.submit(self.fetch, *one) for one in order]
            try:
                for job in jobs:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()

    def fetch(self, chain: DeltaChain, memory: memoryview) -> None:
        """Fill `memory` with a tensor.

        Raises DamagedCheckpoint, naming the file; then it may be filled in part.
        """
        self.open([chain])
        last = chain[-1]
        found = str(
            self._read_packed(chain, memory) if _is_packed(chain) else self._read(last, memory)
        )
        if found != last.record.hash:
            raise _altered(self._culprit(chain, memory), "other bytes")

    def _culprit(self, chain: DeltaChain, memory: memoryview) -> TensorReference:
        """Return the first tensor of a chain that is not what was written."""
        for end in range(1, len(chain)):
            if str(self._read_packed(chain[:end], memory)) != chain[end - 1].record.hash:
                return chain[end - 1]
        return chain[-1]

    def _read(self, reference: TensorReference, memory: memoryview) -> TensorHash:
        handle, offset = self._place(reference)
        hashing = _hash(reference)
        for start in range(0, len(memory), PART):
            part = memory[start : start + PART]
            _read_into(reference, handle, part, offset + start)
            hashing.update(part)
        return hashing

    def _read_packed(self, chain: DeltaChain, memory: memoryview) -> TensorHash:
        from flor_plugins.store.checkpoints.delta_packing import CHUNK

        hashing = _hash(chain[-1])
        places = [self._spans(reference) for reference in chain]
        longest = max((end - begin for _, spans in places for begin, end in spans), default=0)
        room = memoryview(bytearray(longest))
        for number, start in enumerate(range(0, len(memory), CHUNK)):
            part = memory[start : start + CHUNK]
            for reference, (handle, spans) in zip(chain, places, strict=True):
                _unpack(reference, handle, spans[number], room, part)
            hashing.update(part)
        return hashing

    def _spans(self, reference: TensorReference) -> tuple[int, list[tuple[int, int]]]:
        """The handle of a reference's file and where in it the chunks begin and end."""
        from flor_plugins.store.checkpoints.delta_packing import ALIGNED, CHUNK, chunks, tail

        record = reference.record
        if record.packing is None:
            handle, begin = self._place(reference)
            ends = [*range(CHUNK, record.nbytes, CHUNK), record.nbytes]
            return handle, [
                (begin + start, begin + end) for start, end in zip([0, *ends], ends, strict=False)
            ]
        entry = self.entry(reference)
        lengths = memoryview(bytearray(tail(record.nbytes)))
        if entry.dtype != "U8" or entry.nbytes < len(lengths):
            raise _altered(reference, f"{entry.dtype} {list(entry.shape)}")
        _read_into(reference, entry.handle, lengths, entry.end - len(lengths))
        spans = [
            (entry.begin + start, entry.begin + stop)
            for start, stop in chunks(lengths, record.nbytes)
        ]
        if spans and not 0 <= entry.end - len(lengths) - spans[-1][1] < ALIGNED:
            raise _altered(reference, "chunks of another length")
        return entry.handle, spans

    def _place(self, reference: TensorReference) -> tuple[int, int]:
        entry, record = self.entry(reference), reference.record
        stored = (_DTYPES.get(entry.dtype), entry.shape, entry.nbytes)
        if stored != (record.dtype, record.shape, record.nbytes):
            raise _altered(reference, f"{entry.dtype} {list(entry.shape)}")
        return entry.handle, entry.begin

    def entry(self, reference: TensorReference) -> TensorLocation:
        """What the header of its file says of a tensor. Raises DamagedCheckpoint."""
        self.open([(reference,)])
        handle, begin, header = self._files[reference.path]
        try:
            if reference.record.key not in header:
                raise ValueError(f"it has no tensor {reference.record.key!r}")
            found = header[reference.record.key]
            start, end = found["data_offsets"]
            if not 0 <= start <= end <= reference.size - begin:
                raise ValueError(
                    f"its tensor {reference.record.key!r} is said to lie at {start}:{end}"
                )
            return TensorLocation(
                handle, begin + start, begin + end, found["dtype"], tuple(found["shape"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(reference.path, error) from error


def _cost(chain: DeltaChain) -> int:
    return PACKED_COST * len(chain) if _is_packed(chain) else 1


def _is_packed(chain: DeltaChain) -> bool:
    return chain[-1].record.packing is not None


def _opened(reference: TensorReference) -> tuple[int, int, JsonObject]:
    """The handle of a safetensors file, where its tensors begin, and its header."""
    path = reference.path
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise MissingTensorFile(
            f"{path} is missing, and its checkpoint needs it. {WHAT_TO_DO}"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        found = os.fstat(handle).st_size
        if found != reference.size:
            raise DamagedCheckpoint(
                f"{path} has {found} bytes and was written with {reference.size}. {WHAT_TO_DO}"
            )
        length = int.from_bytes(os.pread(handle, 8, 0), "little")
        if length > min(LONGEST_HEADER, found):
            raise ValueError(f"its header is said to have {length} bytes")
        header = json.loads(os.pread(handle, length, 8))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        return handle, 8 + length, header
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError | ValueError):
            raise _unreadable(path, error) from error
        raise


def _unpack(
    reference: TensorReference,
    handle: int,
    span: tuple[int, int],
    room: memoryview,
    part: memoryview,
) -> None:
    """One chunk of a reference; `part` holds that of the one before. room: for what is packed."""
    from flor_plugins.store.checkpoints.delta_packing import unpack_chunk, width_of

    begin, end = span
    if reference.record.packing is None:
        return _read_into(reference, handle, part, begin)
    packed = room[: end - begin]
    _read_into(reference, handle, packed, begin)
    try:
        return unpack_chunk(
            packed, width_of(reference.record.dtype), reference.record.packing, part
        )
    except ValueError as error:
        raise _altered(reference, str(error)) from error


def _hash(reference: TensorReference) -> TensorHash:
    algorithm = reference.record.hash.partition(":")[0]
    if algorithm not in ALGORITHMS:
        raise _altered(reference, "an unknown hash")
    return TensorHash(algorithm)


def _read_into(reference: TensorReference, handle: int, memory: memoryview, offset: int) -> None:
    try:
        while memory:
            count = os.preadv(handle, [memory], offset)
            if count == 0:
                raise ValueError("it is shorter than its header says")
            memory, offset = memory[count:], offset + count
    except (OSError, ValueError) as error:
        raise _unreadable(reference.path, error) from error


def _unreadable(path: Path, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path} can't be read as safetensors: {error}. {WHAT_TO_DO}")


def _altered(reference: TensorReference, found: str) -> DamagedCheckpoint:
    one: TensorRecord = reference.record
    return DamagedCheckpoint(
        f"{reference.path} was altered: its tensor {one.key!r} ({found}) is not the "
        f"{one.dtype} {list(one.shape)} with the hash {one.hash[:24]}... that was written. "
        f"{WHAT_TO_DO}"
    )
