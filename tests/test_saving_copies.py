"""Copies of tensors, made by two threads into memory that is used again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posting import open_files

from flor_plugins.errors import StoreError
from flor_plugins.recorder.checkpointing.shared_buffers import (
    ROUND,
    SMALL,
    BufferPool,
    SharedBuffer,
)
from flor_plugins.recorder.checkpointing.staging_copy import (
    ALIGNMENT,
    BufferSlot,
    CopyThread,
    PendingCopies,
    StagedTensor,
    copy,
)
from flor_plugins.store.checkpoints.hashes import hash_of

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
]
LAYOUTS = [
    "row-major",
    "transposed",
    "strided",
    "channels_last",
    "offset",
    "0-d",
    "empty",
    "expanded",
    "parameter",
]


def tensor_of(dtype: torch.dtype, layout: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4, 5)
    most = 2 if dtype is torch.bool else 256
    nbytes = 120 * torch.empty((), dtype=dtype).element_size()
    rows = (
        torch.randint(0, most, (nbytes,), dtype=torch.uint8, generator=generator)
        .view(dtype)
        .view(shape)
    )
    if layout == "channels_last":
        return torch.empty_strided(shape, (60, 1, 15, 3), dtype=dtype).copy_(rows)
    if layout == "parameter":
        is_float = dtype.is_floating_point or dtype.is_complex
        return torch.nn.Parameter(rows, requires_grad=is_float)
    return {
        "row-major": rows,
        "transposed": rows.transpose(1, 3),
        "strided": rows[:, :, ::2, 1::2],
        "offset": rows.view(-1)[7:],
        "0-d": rows[1, 1, 1, 1],
        "empty": rows[:, :0],
        "expanded": rows[:, :1].expand(shape),
    }[layout]


def row_major(tensor: torch.Tensor) -> bytes:
    """Its bytes as a checkpoint holds them; made without what is tested here."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@contextmanager
def placed(tensors: list[torch.Tensor]) -> Iterator[tuple[SharedBuffer, list[StagedTensor]]]:
    """A buffer full of other bytes, and an item with a place in it for each tensor."""
    items, end = [], 0
    for number, tensor in enumerate(tensors):
        item = StagedTensor.of(f"model/{number}", tensor)
        item.slot = BufferSlot(end, item.nbytes)
        end += -(-item.nbytes // ALIGNMENT) * ALIGNMENT
        items.append(item)
    buffer = SharedBuffer(end)
    buffer.array[:] = 0xAA
    try:
        yield buffer, items
    finally:
        buffer.close()


def bytes_at(buffer: SharedBuffer, item: StagedTensor) -> bytes:
    assert item.slot is not None
    return buffer.array[item.slot.offset : item.slot.offset + item.slot.nbytes].tobytes()


def closed(copies: PendingCopies) -> None:
    copies.work()
    copies.close()


kinds = st.tuples(st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 1 << 30))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_copy_has_the_bytes_of_the_tensor_row_by_row_and_touches_no_others(
    dtype: torch.dtype, layout: str
) -> None:
    tensor = tensor_of(dtype, layout, 1)
    with placed([torch.ones(3), tensor, torch.ones(3)]) as (buffer, items):
        copy(items[1], buffer)
        assert bytes_at(buffer, items[1]) == row_major(tensor)
        assert len(row_major(tensor)) == items[1].nbytes == tensor.numel() * tensor.element_size()
        assert {*bytes_at(buffer, items[0]), *bytes_at(buffer, items[2])} == {0xAA}


@given(st.lists(kinds, max_size=12), st.booleans())
def test_two_threads_copy_every_byte_as_it_was_when_the_state_was_taken(
    made: list[Any], is_early: bool
) -> None:
    tensors = [tensor_of(*one) for one in made]
    expected = [row_major(one) for one in tensors]
    with placed(tensors) as (buffer, items):
        copies, copier = PendingCopies(buffer, items, []), CopyThread()
        copier.start(copies.work)
        if not is_early:
            copier.close()  # all is copied in the background
        copies.close()
        for tensor in tensors:
            if tensor.numel() and tensor.stride() and 0 not in tensor.stride():
                tensor.detach().zero_()
        assert [bytes_at(buffer, item) for item in items] == expected
        assert copies.torn == []
        if is_early:
            copier.close()


@pytest.mark.parametrize("shape", [(21,), (40, 50), (8, 3, 5, 5)])
@pytest.mark.parametrize("is_row_major", [True, False])
def test_a_write_that_no_version_counts_is_found_though_it_leaves_half_of_the_elements_as_they_were(
    shape: tuple[int, ...], is_row_major: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.rand(shape, generator=generator) for _ in range(200)]
    if not is_row_major:
        tensors = [
            one.flip(0).mT.contiguous().mT if one.ndim > 1 else one.repeat_interleave(2)[::2]
            for one in tensors
        ]
    with placed(tensors) as (buffer, items):
        copies = PendingCopies(buffer, items, [])
        for one in tensors:
            one.data.add_(1)
            one.data.sub_(1)  # rounding has changed the lowest bits of some
        closed(copies)
        assert len(copies.torn) == len(tensors)


class Slow(StagedTensor):
    """A tensor whose copy begins and waits."""

    __slots__ = ()
    begun, goes_on = threading.Event(), threading.Event()

    def live(self) -> torch.Tensor:
        if threading.current_thread().name == "flor-copier":
            self.begun.set()
            assert self.goes_on.wait(60)
        return StagedTensor.live(self)


def test_closing_in_the_middle_copies_the_rest_and_waits_for_the_one_that_is_being_copied() -> None:
    tensors = [torch.full((1000,), float(number)) for number in range(4)]
    with placed(tensors) as (buffer, items):
        slow = Slow.of(items[0].key, tensors[0])
        slow.slot = items[0].slot
        copies, copier = PendingCopies(buffer, [slow, *items[1:]], []), CopyThread()
        copier.start(copies.work)
        assert Slow.begun.wait(60)
        closing = threading.Thread(target=copies.close)
        closing.start()
        while bytes_at(buffer, items[1]) != row_major(
            tensors[1]
        ):  # copied last, from the other end
            assert closing.is_alive()
        assert bytes_at(buffer, items[0])[:4] == b"\xaa" * 4 and closing.is_alive()
        Slow.goes_on.set()
        closing.join()
        copier.close()
        assert [bytes_at(buffer, item) for item in items] == [row_major(one) for one in tensors]


def test_what_goes_wrong_in_the_background_is_raised_when_the_window_closes() -> None:
    with placed([torch.ones(3)]) as (buffer, items):
        items[0].slot = BufferSlot(0, 7)  # no room for 12 bytes
        copies = PendingCopies(buffer, items, [])
        copies.work()
        with pytest.raises(ValueError):
            copies.close()


def test_what_goes_wrong_in_front_waits_for_the_thread_behind_before_the_buffer_is_given_away() -> (
    None
):
    Slow.begun.clear()
    Slow.goes_on.clear()
    tensors = [torch.ones(3), torch.ones(3)]
    with placed(tensors) as (buffer, items):
        slow = Slow.of(items[0].key, tensors[0])
        slow.slot, items[1].slot = items[0].slot, BufferSlot(64, 7)  # no room for 12 bytes
        copies, copier, raised = PendingCopies(buffer, [slow, items[1]], []), CopyThread(), []

        def close() -> None:
            with pytest.raises(ValueError):
                copies.close()
            raised.append(bytes_at(buffer, items[0]))

        copier.start(copies.work)
        assert Slow.begun.wait(60)
        closing = threading.Thread(target=close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive() and not raised
        Slow.goes_on.set()
        closing.join()
        copier.close()
        assert raised == [row_major(tensors[0])]


def test_a_tensor_that_was_written_to_before_the_window_closed_is_torn() -> None:
    tensors = [torch.ones(3), torch.ones(3), torch.ones(3)]
    with placed(tensors) as (buffer, items):
        copies = PendingCopies(buffer, items, [])
        tensors[1].add_(1)
        closed(copies)
        assert copies.torn == ["model/1"]


@pytest.mark.parametrize("size", [1, 3, 1000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_a_tensor_that_was_written_to_through_data_before_it_was_copied_is_torn(
    size: int, dtype: torch.dtype
) -> None:
    tensor = torch.ones(2, size, dtype=dtype).T
    with placed([tensor]) as (buffer, items):
        copies = PendingCopies(buffer, items, [])
        tensor.data.mul_(2)
        closed(copies)
        assert copies.torn == ["model/0"]


def test_a_tensor_that_was_written_to_through_data_after_it_was_copied_is_not_torn() -> None:
    tensor = torch.ones(1000)
    expected = row_major(tensor)
    with placed([tensor]) as (buffer, items):
        copies = PendingCopies(buffer, items, [])
        copies.work()
        tensor.data.mul_(2)
        copies.close()
        assert copies.torn == [] and bytes_at(buffer, items[0]) == expected


def test_a_tensor_that_is_only_compared_is_torn_if_its_hash_is_another_one() -> None:
    tensors = [torch.ones(3), torch.ones(3).to(torch.bfloat16), torch.zeros(4, 4).T]
    with placed(tensors) as (buffer, items):
        for item, tensor in zip(items, tensors, strict=True):
            item.slot, item.hash = None, hash_of(row_major(tensor))
        tensors[1].data.add_(1)
        copies = PendingCopies(buffer, items, [])
        closed(copies)
        assert copies.torn == ["model/1"]


def test_a_watched_tensor_is_still_if_neither_its_version_nor_its_bytes_moved() -> None:
    tensors = [torch.ones(3), torch.ones(3), torch.ones(3), torch.ones(3, 2).T]
    with placed(tensors) as (buffer, items):
        for item in items:
            copy(item, buffer)
        tensors[1].data.add_(1)
        tensors[2].add_(1).sub_(1)  # as it was, and written to all the same
        copies = PendingCopies(buffer, [], items)
        closed(copies)
        assert copies.unchanged == {
            "model/0": True,
            "model/1": False,
            "model/2": False,
            "model/3": True,
        }
        assert copies.torn == []


# ---- memory


def ignore(buffer: SharedBuffer) -> None:
    """Do nothing before the memory of a buffer is given back."""


def test_a_buffer_is_used_again_for_a_state_of_the_same_size_or_a_little_more() -> None:
    pool = BufferPool(ignore)
    first = pool.take(5 * ROUND)
    assert first is not None and first.nbytes == 5 * ROUND
    handle = first.handle
    for nbytes in (5 * ROUND, 5 * ROUND - 7, 4 * ROUND + 1, 1):
        pool.give(first)
        assert pool.take(nbytes) is first and first.handle == handle
    pool.give(first)
    pool.close()


def test_a_third_large_state_is_refused_until_one_is_written() -> None:
    pool = BufferPool(ignore)
    size = SMALL // 2 + 1
    taken = [pool.take(size), pool.take(size)]
    assert None not in taken and pool.is_full()
    assert pool.take(size) is None and pool.take(1) is None
    assert taken[0] is not None
    pool.give(taken[0])
    assert not pool.is_full()
    assert pool.take(size) is taken[0]


def test_small_states_may_wait_side_by_side_up_to_a_limit() -> None:
    pool = BufferPool(ignore)
    each = SMALL // 8
    taken = [pool.take(each) for _ in range(8)]
    assert None not in taken and len({id(one) for one in taken}) == 8
    assert pool.is_full() and pool.take(each) is None
    pool.close()


def test_who_waits_for_room_gets_it_when_a_state_is_written() -> None:
    pool = BufferPool(ignore)
    size, found = SMALL // 2 + 1, []
    held = [pool.take(size), pool.take(size)]
    waiting = threading.Thread(target=lambda: found.append(pool.take(size, wait=True)))
    waiting.start()
    waiting.join(0.05)
    assert found == [] and held[1] is not None
    pool.give(held[1])
    waiting.join()
    assert found == [held[1]]


def test_memory_that_fits_nobody_is_given_back_and_said_so_before() -> None:
    dropped: list[tuple[int, bool]] = []
    pool = BufferPool(
        lambda one: dropped.append((one.nbytes, os.fstat(one.handle).st_size == one.nbytes))
    )
    small = pool.take(1)
    assert small is not None
    pool.give(small)
    pool.give(small)  # a second time says nothing
    large = pool.take(3 * ROUND)
    assert large is not None and dropped == [(ROUND, True)]
    with pytest.raises(OSError):
        os.fstat(small.handle) if small.handle != large.handle else os.fstat(-1)
    pool.give(large)
    pool.close()
    assert dropped == [(ROUND, True), (3 * ROUND, True)]


def test_a_system_without_memory_is_an_error_that_says_what_was_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(handle: int, size: int) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "ftruncate", full)
    handles = open_files()
    with pytest.raises(StoreError, match=f"needs {ROUND} bytes of shared memory.*File too large"):
        SharedBuffer(5)
    assert open_files() <= handles
