"""What is known of each tensor of a training: may it be copied later, has it changed at all?

A tensor's version counter and address say that nothing was written to it, without reading it.
But neither what is written through `tensor.data` counts nor what a fused optimizer does (torch
2.13: `AdamW(fused=True)` leaves the versions of parameters and moments as they were). So a
trained tensor is copied later only after it was watched for one window, and one that seems
unchanged is believed only after its hash has been the same twice; even then it is read once
more, and compared."""

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


# every so many checkpoints, a tensor on a device that seems unchanged is copied all the same
RECHECK = 10


@dataclass(slots=True)
class WrittenTensor:
    """A tensor as it was written last. times: how often its hash was the same as the one before.

    storage: held weakly, so that no other one can take its place: fresh tensors, as states of
    random generators are, often lie where the last one lay."""

    storage: StorageWeakRef
    address: int
    version: int
    hash: str | None = None
    times: int = 0

    @property
    def identity(self) -> tuple[StorageWeakRef, int, int]:
        return self.storage, self.address, self.version


class MutationTracker:
    """Of the tensors of one training, by key."""

    def __init__(self) -> None:
        self._still: set[str] = set()  # was watched: changes in updates only
        self._restless: set[str] = set()  # changes between updates
        self._fickle: set[str] = set()  # changes without a trace
        self._written: dict[str, WrittenTensor] = {}

    def treatment(self, key: str, tensor: torch.Tensor, constants: set[int]) -> CopyMode:
        """How a tensor is to be saved.

        constants: the addresses of those that only an update changes.
        """
        if tensor.is_inference() or not tensor.numel():
            return "now"
        if tensor.data_ptr() in constants:
            if key in self._restless:
                return "now"
            return "later" if key in self._still else "watch"
        was = self._written.get(key)
        if was is None or not was.times or was.identity != _identity(tensor):
            return "now"
        # Reading it means copying it to the host: done now and then.
        is_checked = tensor.device.type != "cpu" and was.times % RECHECK == 0
        return "now" if is_checked else "same"

    def known_hash(self, key: str) -> str:
        """Of a tensor whose treatment is `same`."""
        known = self._written[key].hash
        assert known is not None
        return known

    def watched(self, key: str, *, is_still: bool) -> None:
        """The tensor's window is over: did nobody write to it?"""
        (self._still if is_still else self._restless).add(key)

    def surprised(self, key: str) -> None:
        """It was written to in spite of all: from now on it is copied at once."""
        self._restless.add(key)
        self._fickle.add(key)
        self._written.pop(key, None)

    def taken(self, key: str, tensor: torch.Tensor, constants: set[int]) -> WrittenTensor | None:
        """A checkpoint is being written that holds it as it is now; the result is for `written`."""
        if tensor.is_inference() or key in self._fickle or tensor.data_ptr() in constants:
            self._written.pop(key, None)
            return None
        was, now = self._written.get(key), _identity(tensor)
        if was is None or was.identity != now:
            was = self._written[key] = WrittenTensor(*now)
        return was

    def not_written(self, taken: Mapping[str, WrittenTensor]) -> None:
        """That checkpoint is not on the disk: what it took for known may be gone, and is
        copied the next time.
        """
        for key, was in taken.items():
            if self._written.get(key) is was:
                del self._written[key]

    def written(self, taken: Mapping[str, WrittenTensor], hashes: Mapping[str, str]) -> None:
        """That checkpoint is on the disk; the hashes of its tensors by key."""
        for key, was in taken.items():
            one = hashes.get(key)
            if one is None or self._written.get(key) is not was:
                continue
            if was.hash is not None and was.hash != one:
                self._fickle.add(key)
                del self._written[key]
            else:
                was.times += was.hash is not None
                was.hash = one


def _identity(tensor: torch.Tensor) -> tuple[StorageWeakRef, int, int]:
    return StorageWeakRef(tensor.untyped_storage()), tensor.data_ptr(), tensor._version
