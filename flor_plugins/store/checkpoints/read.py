"""Tensors of a checkpoint, each read once: from the file into the memory where it stays, and hashed there.

The files are read and not mapped: what was hashed is what is handed out, and a file that is truncated meanwhile is
an error here, where a mapped one would end the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.errors import DamagedCheckpoint
from flor_plugins.store.checkpoints.files import FILE, STATE, WHAT_TO_DO, TensorRecord, read_state, records
from flor_plugins.store.checkpoints.hashes import ALGORITHMS, bytes_of, hash_of
from flor_plugins.store.checkpoints.write import DTYPES

if TYPE_CHECKING:
    import torch

LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors package
_DTYPES = {code: name for name, (code, _) in DTYPES.items()}


def read_tensors(
    folder: Path, state: Mapping[str, Any], keys: Collection[str], into: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Tensors by key, on the CPU, each with the hash that state.json gives for it.

    into: contiguous CPU tensors by key: those of the right dtype and shape are filled in place and handed out, which
    saves the page faults of fresh memory. Raises DamagedCheckpoint, naming the file; then some of `into` may be filled.
    """
    wanted = {key: one for key, one in records(state).items() if key in keys}
    files: dict[str, dict[str, TensorRecord]] = {}
    for key, one in wanted.items():
        files.setdefault(one.file, {})[key] = one
    for file in files:  # all of them first: it is quick, and spares reading gigabytes in vain
        _check_size(folder, file, state["files"].get(file))
    loaded: dict[str, torch.Tensor] = {}
    for file, ones in files.items():
        loaded |= _read_file(folder / file, ones, into or {})
    return loaded


def _check_size(folder: Path, file: str, size: int | None) -> None:
    path = folder / file
    if FILE.fullmatch(file) is None:
        raise DamagedCheckpoint(f"{folder / STATE} names {file!r}, not a file of a checkpoint. {WHAT_TO_DO}")
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing, and the checkpoint {folder} needs it. {WHAT_TO_DO}")
    if size is None:  # a file of another checkpoint, which says itself how long it is
        size = read_state(path.parent.resolve())["files"].get(path.name)
    found = path.stat().st_size
    if found != size:
        raise DamagedCheckpoint(f"{path} has {found} bytes and was written with {size}. {WHAT_TO_DO}")


def _read_file(
    path: Path, ones: Mapping[str, TensorRecord], into: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    loaded = {}
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            header, begin = _header(handle)
            for key, one in ones.items():
                loaded[key] = _read_tensor(path, handle, begin, header.get(one.key), one, into.get(key))
        finally:
            os.close(handle)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} can't be read as safetensors: {error}. {WHAT_TO_DO}") from error
    return loaded


def _header(handle: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    size = int.from_bytes(os.pread(handle, 8, 0), "little")
    if size > min(LONGEST_HEADER, os.fstat(handle).st_size):
        raise ValueError(f"its header is said to have {size} bytes")
    header = json.loads(os.pread(handle, size, 8))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, 8 + size


def _read_tensor(
    path: Path, handle: int, begin: int, entry: Any, one: TensorRecord, into: torch.Tensor | None
) -> torch.Tensor:
    if entry is None:
        raise ValueError(f"it has no tensor {one.key!r}")
    start, end = entry["data_offsets"]
    found = (_DTYPES.get(entry["dtype"]), tuple(entry["shape"]), end - start)
    tensor = place_for(one, into)
    if found == (one.dtype, one.shape, one.nbytes):
        memory = bytes_of(tensor).cast("B") if one.nbytes else memoryview(b"")
        _read_into(handle, memory, begin + start)
        check(path, memory, one)
        return tensor
    raise _altered(path, one, f"{entry['dtype']} {entry['shape']}")


def place_for(one: TensorRecord, into: torch.Tensor | None) -> torch.Tensor:
    """Memory for a tensor: `into` where it fits, else fresh."""
    import torch

    dtype = getattr(torch, one.dtype)
    if into is not None and into.dtype == dtype and tuple(into.shape) == one.shape and into.is_contiguous():
        return into
    # the device is named: the user may have set another default
    return torch.empty(one.shape, dtype=dtype, device="cpu")


def check(path: Path, memory: memoryview, one: TensorRecord) -> None:
    """Raises DamagedCheckpoint unless the bytes have the hash that they were written with."""
    if one.hash.partition(":")[0] not in ALGORITHMS or hash_of(memory, one.hash) != one.hash:
        raise _altered(path, one, "other bytes")


def _read_into(handle: int, memory: memoryview, offset: int) -> None:
    while memory:
        count = os.preadv(handle, [memory], offset)
        if count == 0:
            raise ValueError("it is shorter than its header says")
        memory, offset = memory[count:], offset + count


def _altered(path: Path, one: TensorRecord, found: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path} was altered: its tensor {one.key!r} ({found}) is not the "
        f"{one.dtype} {list(one.shape)} with the hash {one.hash[:24]}... that was written. {WHAT_TO_DO}"
    )
