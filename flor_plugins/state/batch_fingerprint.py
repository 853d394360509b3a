"""Fingerprints of batches: they tell data that differ from numerics that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch

MAX_DEPTH = 8  # of nested containers: a batch that holds itself ends here


def checksum(batch: object) -> torch.Tensor | int:
    """Return the sum of all words of a batch as a 0-d int64 tensor on its device.

    It needs no synchronisation.

    Integers sum in any order to the same bits. The order of the samples within a batch does not
    count; that of its tensors does. 0 for a batch without tensors.
    """
    tensors = [
        leaf
        for leaf in _leaves(batch)
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
    ]
    return by_place([_sum(tensor) for tensor in tensors])


def by_place(checksums: Sequence[torch.Tensor | int]) -> torch.Tensor | int:
    """Return their sum, each times its place: once the first, twice the second; 0 for none.

    No operation that isn't needed: this is called at every step.
    """
    if not checksums:
        return 0
    total = checksums[0]
    for place, one in enumerate(checksums[1:], start=2):
        are_tensors = isinstance(total, torch.Tensor) and isinstance(one, torch.Tensor)
        total = torch.add(total, one, alpha=place) if are_tensors else total + place * one
    return total


def sha256(batch: object) -> str:
    """sha256 over every leaf of a batch: dtypes, shapes and bytes of tensors, other values by repr.

    Synchronises.
    """
    digest = hashlib.sha256()
    for leaf in _leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(_words(leaf.detach().cpu()).numpy().tobytes())
        elif isinstance(leaf, (bool, int, float, str, bytes)) or leaf is None:
            digest.update(repr(leaf).encode())
        else:
            digest.update(type(leaf).__qualname__.encode())  # a repr may hold an address
    return digest.hexdigest()


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum all words of a tensor, in one operation where it can be.

    It can for token ids, and for most batches of anything else.
    """
    if tensor.dtype == torch.int64:
        return tensor.sum()
    if tensor.requires_grad:
        tensor = tensor.detach()
    is_row = tensor.dtype == torch.float32 and tensor.numel() > 1 and tensor.is_contiguous()
    if is_row and tensor.size(-1) % 2 == 0 and tensor.storage_offset() % 2 == 0:
        return tensor.view(torch.int64).sum()
    return _long_words(tensor).sum(dtype=torch.int64)


def _long_words(tensor: torch.Tensor) -> torch.Tensor:
    """Return its memory as 64-bit integers where it fills them.

    They are summed six times faster than 32-bit ones.
    """
    words = _words(tensor)
    size = 8 // words.element_size()
    if size == 1 or words.numel() % size or words.storage_offset() % size:
        return words
    return words.view(torch.int64)


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor as integers of its element size; complex numbers as their parts."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().reshape(-1).view(size)


def _leaves(value: object, depth: int = 0) -> Iterator[object]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for key in value:  # a batch has its keys in the order in which the loader collates them
            yield str(key)
            yield from _leaves(value[key], depth + 1)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name, None), depth + 1)
    else:
        yield value
