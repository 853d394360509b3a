"""Hashes of tensors, as state.json holds them: "<algorithm>:<hex digits>".

They find what was torn or altered by accident and tell what has not changed; they are no
signature. xxh3_128 (https://xxhash.com) runs as fast as memory is read, sha256 twenty times
slower: next to a training that is the difference between none and a second of a core for each
gigabyte. Checkpoints of format 1 have sha256.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    import torch

ALGORITHMS = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
PRESENT = "xxh3_128"


class TensorHash:
    """A hash that is fed piece by piece; `str` gives what state.json holds."""

    def __init__(self, algorithm: str = PRESENT) -> None:
        self._algorithm = algorithm
        self._state: Any = ALGORITHMS[algorithm]()

    def update(self, memory: memoryview | bytes) -> None:
        """Add some bytes."""
        self._state.update(memory)

    def __str__(self) -> str:
        return f"{self._algorithm}:{self._state.hexdigest()}"


def hash_of(memory: memoryview | bytes, like: str = PRESENT) -> str:
    """The hash of some bytes.

    like: an algorithm, or a hash that the result is to be compared with.
    """
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{ALGORITHMS[algorithm](memory).hexdigest()}"


def hash_tensor(tensor: torch.Tensor, like: str = PRESENT) -> str:
    """The hash of a contiguous CPU tensor's bytes, as they lie in a file."""
    return hash_of(bytes_of(tensor), like)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, row-major; it is not copied."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
