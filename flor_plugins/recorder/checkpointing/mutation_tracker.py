"""What is known of each tensor of a training: whether it may be copied later, or has changed.

A tensor's version counter and address say that nothing was written to it, without reading it.
But neither what is written through `tensor.data` counts nor what a fused optimizer does (torch
2.13: `AdamW(fused=True)` leaves the versions of parameters and moments as they were). So a
trained tensor is copied later only after it was watched for one window, and one that seems
unchanged is believed only after its hash has been the same twice; even then it is read once
more, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.multiprocessing.reductions import StorageWeakRef

# now: copied at once. later: until the next update. watch: copied at once, and compared at the
# end of the window. same: not copied; until the next update its hash is taken, and has to be
# the known one.
CopyMode = Literal["now", "later", "watch", "same"]
# The storage is held weakly, so that no other one can take its place: fresh tensors, as states of
# random generators are, often lie where the last one lay.
TensorIdentity = tuple[StorageWeakRef, int, int]  # storage, address, version

# every so many checkpoints, a tensor on a device that seems unchanged is copied all the same
RECHECK = 10


@dataclass(slots=True)
class WrittenTensor:
    """A tensor as it was written last. repeats: how often its hash was that of the time before."""

    identity: TensorIdentity
    hash: str | None = None
    repeats: int = 0


class MutationTracker:
    """When the tensors of one training change, by key."""

    def __init__(self) -> None:
        self._stable: set[str] = set()  # was watched: changes in updates only
        self._unstable: set[str] = set()  # changes between updates
        self._untraceable: set[str] = set()  # changes without a trace
        self._written: dict[str, WrittenTensor] = {}

    def copy_mode(self, key: str, tensor: torch.Tensor, constants: set[int]) -> CopyMode:
        """Return how a tensor is to be copied.

        constants: the addresses of those that only an update changes.
        """
        if tensor.is_inference() or not tensor.numel():
            return "now"
        if tensor.data_ptr() in constants:
            if key in self._unstable:
                return "now"
            return "later" if key in self._stable else "watch"
        last = self._written.get(key)
        if last is None or not last.repeats or last.identity != _identity(tensor):
            return "now"
        # Reading it means copying it to the host: done now and then.
        is_checked = tensor.device.type != "cpu" and last.repeats % RECHECK == 0
        return "now" if is_checked else "same"

    def known_hash(self, key: str) -> str:
        """Return the hash of a tensor whose mode is `same`."""
        known = self._written[key].hash
        assert known is not None
        return known

    def watched(self, key: str, *, is_unchanged: bool) -> None:
        """Note whether anybody wrote to a watched tensor in its window, which is over."""
        (self._stable if is_unchanged else self._unstable).add(key)

    def torn(self, key: str) -> None:
        """Note that a tensor was written to in spite of all: from now on it is copied at once."""
        self._unstable.add(key)
        self._distrust(key)

    def taken(self, key: str, tensor: torch.Tensor, constants: set[int]) -> WrittenTensor | None:
        """Note that a checkpoint is being written with a tensor as it is now.

        The result is for `written`.
        """
        if tensor.is_inference() or key in self._untraceable or tensor.data_ptr() in constants:
            self._written.pop(key, None)
            return None
        last, identity = self._written.get(key), _identity(tensor)
        if last is None or last.identity != identity:
            last = self._written[key] = WrittenTensor(identity)
        return last

    def not_written(self, taken: Mapping[str, WrittenTensor]) -> None:
        """Note that a checkpoint is not on the disk.

        What it took for known may be gone, and is copied the next time.
        """
        for key, last in taken.items():
            if self._written.get(key) is last:
                del self._written[key]

    def written(self, taken: Mapping[str, WrittenTensor], hashes: Mapping[str, str]) -> None:
        """Note that a checkpoint is on the disk, with the hashes of its tensors by key."""
        for key, last in taken.items():
            written_hash = hashes.get(key)
            if written_hash is None or self._written.get(key) is not last:
                continue
            if last.hash not in (None, written_hash):
                self._distrust(key)
            else:
                last.repeats += last.hash is not None
                last.hash = written_hash

    def _distrust(self, key: str) -> None:
        self._untraceable.add(key)
        self._written.pop(key, None)


def _identity(tensor: torch.Tensor) -> TensorIdentity:
    return StorageWeakRef(tensor.untyped_storage()), tensor.data_ptr(), tensor._version
