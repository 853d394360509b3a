"""Memory for States that are read ahead: how much there is, and some that is used again."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KEPT = 2  # pieces for each name: one whose tensor may still be held, and one to fill meanwhile
MEMINFO, CGROUPS, OWN_CGROUP = (
    Path("/proc/meminfo"),
    Path("/sys/fs/cgroup"),
    Path("/proc/self/cgroup"),
)


class HostMemoryPool:
    """Lends tensors of memory that is allocated once, which saves the page faults of fresh memory.

    A piece is lent again only when nobody holds a tensor, view or array of it any more: what
    somebody keeps of a State (a module its state_dict, an optimizer its moments) is never
    written over. Pieces are pinned where CUDA is in use. One thread lends; any may let go.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, list[_PooledBlock]] = {}

    def lend(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], nbytes: int
    ) -> torch.Tensor:
        """A contiguous CPU tensor with whatever was in that memory before.

        name: whose memory it is.
        """
        pieces = self._pieces.setdefault(name, [])
        free = next(
            (piece for piece in pieces if piece.is_free and piece.memory.nbytes == nbytes), None
        )
        if free is None:
            free = _PooledBlock(_allocated(nbytes))
            pieces.append(free)
            del pieces[:-KEPT]
        return free.lend().view(dtype).reshape(shape)


@dataclass(slots=True)
class _PooledBlock:
    """memory: flat, uint8. lent: the array through which the tensor that was lent last holds it."""

    memory: torch.Tensor
    lent: weakref.ref[Any] | None = None

    @property
    def is_free(self) -> bool:
        return self.lent is None or self.lent() is None

    def lend(self) -> torch.Tensor:
        # The storage that from_numpy makes holds its array until the last tensor, view or array
        # over it is gone.
        array = self.memory.numpy()
        self.lent = weakref.ref(array)
        return torch.from_numpy(array)


def _allocated(nbytes: int) -> torch.Tensor:
    if torch.cuda.is_initialized():
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        except RuntimeError:
            # the system pins no more; a copy to the device then goes through memory of the
            # driver
            pass
    # Not torch.empty: with deterministic algorithms that one fills what it allocates, on all
    # threads.
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(
        torch.UntypedStorage(nbytes, device="cpu")
    )


def available_bytes() -> int:
    """Return what can be allocated without swapping.

    Of the machine, or of the control groups that this process is in.
    """
    return min([_of_machine(), *_of_groups()])


def _of_machine() -> int:
    available_kib = _fields(MEMINFO).get("MemAvailable:")
    if available_kib is not None:
        return available_kib * 1024
    # macOS says only how much there is in all
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _of_groups() -> Iterator[int]:
    """Of control groups, version 2, the own one and those around it.

    Cached files make room where it is needed.
    """
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    own = next(
        (line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), None
    )
    if own is None:
        return
    for folder in [CGROUPS / own, *(CGROUPS / own).parents]:
        if not folder.is_relative_to(CGROUPS):
            return
        try:
            limit, used = (
                int((folder / "memory.max").read_text()),
                int((folder / "memory.current").read_text()),
            )
        except (OSError, ValueError):  # the root has none, and "max" is no limit
            continue
        yield max(0, limit - used + _fields(folder / "memory.stat").get("inactive_file", 0))


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number; {} where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
