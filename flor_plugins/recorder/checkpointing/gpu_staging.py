"""Copies of tensors on a GPU: first on the device, in order with the training; then to the host.

A copy within a device takes a twentieth of the time of one to the host (H100: 0.7 and 18 ms for
each GB). Because it is queued where the training's kernels are queued, nothing has to wait: what
comes after it may change the tensors. Where the device has no memory for that, tensors go to the
host directly, and an update's kernels wait for it.
"""

from __future__ import annotations

from typing import Any

import torch

from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.staging_copy import StagedTensor

MOST_OF_FREE = 0.5  # share of a device's free memory that copies may take


class GpuStaging:
    """What one device holds of a state. The memory for copies is kept and used again.

    api: what torch offers for that kind of device: `torch.cuda` or its like.
    """

    def __init__(self, device: torch.device, api: Any = None) -> None:
        self._device = device
        self._api = torch.get_device_module(device) if api is None else api
        self._stream = self._api.Stream(device=device)
        self._staged: dict[str, torch.Tensor] = {}
        self._sources: list[tuple[StagedTensor, torch.Tensor]] = []
        self._done: Any = None
        self._is_direct = False

    def begin(self, items: list[StagedTensor], constants: set[int]) -> None:
        """Queue the copies on the device, on the training's thread; nothing waits for them."""
        current = self._api.current_stream(self._device)
        if self._done is not None:
            current.wait_event(self._done)  # the memory for copies is still being read from
        self._is_direct = not self._has_memory(items)
        self._sources = []
        with torch.no_grad():
            for item in items:
                source = item.live()
                if not self._is_direct or source.data_ptr() not in constants:
                    source = self._memory(item).copy_(source, non_blocking=True)
                self._sources.append((item, source))
        self._stream.wait_stream(current)

    def copy_to_host(self, buffer: SharedBuffer) -> None:
        """Queue the copies to the host on a stream of their own, on the thread that copies."""
        with self._api.stream(self._stream), torch.no_grad():
            for item, source in self._sources:
                target = torch.from_numpy(item.copied(buffer))
                target = target.view(source.dtype).view(source.shape)
                target.copy_(source, non_blocking=True)
            done = self._api.Event()
            done.record(self._stream)
        self._done = done

    def before_update(self) -> None:
        """Let the training's thread, after `copy_to_host`, queue what changes the tensors."""
        if self._is_direct:
            self._api.current_stream(self._device).wait_event(self._done)
        self._sources = []

    def wait(self) -> None:
        """Return when all is on the host; for any thread but the training's."""
        self._done.synchronize()

    def _has_memory(self, items: list[StagedTensor]) -> bool:
        missing = sum(item.nbytes for item in items if not self._fits(item))
        if missing == 0:
            return True
        free, _ = self._api.mem_get_info(self._device)
        # what torch's allocator holds and does not use is free, too
        free += self._api.memory_reserved(self._device) - self._api.memory_allocated(self._device)
        return missing <= MOST_OF_FREE * free

    def _fits(self, item: StagedTensor) -> bool:
        staged, live = self._staged.get(item.key), item.live()
        return staged is not None and (staged.shape, staged.dtype) == (live.shape, live.dtype)

    def _memory(self, item: StagedTensor) -> torch.Tensor:
        if not self._fits(item):
            live = item.live()
            self._staged[item.key] = torch.empty(live.shape, dtype=live.dtype, device=self._device)
        return self._staged[item.key]


def pin(buffer: SharedBuffer) -> None:
    """Lock a buffer in memory once, so that a GPU copies to it without the processor.

    Where that is refused (`ulimit -l`) copies are only slower.
    """
    runtime: Any = torch.cuda.cudart()
    if not buffer.is_pinned:
        answer = runtime.cudaHostRegister(buffer.address, buffer.nbytes, 0)
        buffer.is_pinned = answer == runtime.cudaError.success


def unpin(buffer: SharedBuffer) -> None:
    """Unlock a buffer before its memory is given back."""
    if buffer.is_pinned:
        runtime: Any = torch.cuda.cudart()
        runtime.cudaHostUnregister(buffer.address)
        buffer.is_pinned = False
