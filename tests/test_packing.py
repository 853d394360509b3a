"""The codec of the cold tier: whatever the bytes are, they come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.store.checkpoints import delta_packing
from flor_plugins.store.checkpoints.delta_packing import (
    DELTA,
    METHODS,
    PLAIN,
    SORTED,
    choose,
    pack,
    unpack,
    width_of,
)
from flor_plugins.store.checkpoints.writer import DTYPES

WIDTHS = (1, 2, 4, 8)

# tensors of 160 bytes, packed in chunks of 64 and segments of 16
GOLDEN = {
    "shuffle,zstd": (
        "1000100010001000fdc67f4801ca834c05ce875009d28b54ffc68d541be1a86f36fcc38a5117dea5ff2d5b89b7e41240"
        "6e9bc9f7255380aeff00000000000101010101010202020210001000100010000dd68f5811da935c15de976019e29b64"
        "6c32f9c0874d14dba2682ff6bd834a11dc0a376593c1ef1c4a78a6d3012f5d8b02030303030303040404040405050505"
        "08000800080008001de69f6821eaa36cd89e652cf3b98047b8e614426f9dcbf905050606060606060000000048000000"
        "4800000028000000"
    ),
    "delta,shuffle,zstd": (
        "1000000000000000050a050a050a050a050a050a050a050a1000000000000000050a050a050a050a050a050a050a050a"
        "0800000000000000050a050a050a050a00000000180000001800000010000000"
    ),
    "delta,sort,shuffle,zstd": (
        "1000000000000000050a050a050a050a050a050a050a050a1000000000000000050a050a050a050a050a050a050a050a"
        "0800000000000000050a050a050a050a00000000180000001800000010000000"
    ),
}


@contextmanager
def small_chunks() -> Iterator[None]:
    """So that a few bytes are many chunks and segments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_packing, "CHUNK", 64)
        patch.setattr(delta_packing, "SEGMENT", 16)
        yield


def packed(memory: bytes, width: int, method: str, base: bytes | None = None) -> bytes:
    return b"".join(
        pack(memoryview(memory), width, method, None if base is None else memoryview(base))
    )


def unpacked(
    there: bytes, width: int, method: str, nbytes: int, base: bytes | None = None
) -> bytes:
    into = bytearray(base if base is not None else nbytes)
    unpack(memoryview(there), width, method, memoryview(into))
    return bytes(into)


# Runs of equal bytes are packed, others are noise: both kinds must meet in one tensor.
RUNS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.builds(lambda one, n: bytes([one]) * n, st.integers(0, 255), st.integers(0, 90)),
    )
)
MEMORY = RUNS.map(b"".join).map(lambda whole: whole[: len(whole) // 8 * 8])


@given(MEMORY, st.sampled_from(WIDTHS), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_any_bytes_come_back(memory: bytes, width: int, method: str, random: Any) -> None:
    base = bytearray(memory)
    for _ in range(random.randrange(0, 9) if base else 0):
        base[random.randrange(len(base))] = random.randrange(256)
    with small_chunks():
        there = packed(memory, width, method, bytes(base))
        assert len(there) % delta_packing.ALIGNED == 0
        assert (
            unpacked(there, width, method, len(memory), None if method == PLAIN else bytes(base))
            == memory
        )


@given(MEMORY.filter(bool), st.sampled_from(METHODS), st.data())
def test_altered_bytes_never_end_in_anything_but_an_error_or_other_bytes(
    memory: bytes, method: str, data: st.DataObject
) -> None:
    base = None if method == PLAIN else bytes(len(memory))
    with small_chunks():
        there = bytearray(packed(memory, 4, method, base))
    place = data.draw(st.integers(0, len(there) - 1))
    there[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(there)))
    for broken in (there, there[:cut]):
        with (
            suppress(ValueError),
            small_chunks(),
        ):  # what this does not find, the hash of the tensor does
            assert len(unpacked(bytes(broken), 4, method, len(memory), base)) == len(memory)


def weights(seed: int, count: int = 300_000) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(count) * 0.05).astype(np.float32)


def moved(start: np.ndarray[Any, Any], by: float = 1e-4) -> np.ndarray[Any, Any]:
    return start + (np.random.default_rng(9).standard_normal(len(start)) * by).astype(np.float32)


def test_weights_that_moved_a_little_shrink_by_a_third() -> None:
    start = weights(1)
    end = moved(start)
    sizes = {method: len(packed(end.tobytes(), 4, method, start.tobytes())) for method in METHODS}
    assert sizes[SORTED] < 0.67 * end.nbytes
    assert sizes[SORTED] < sizes[DELTA] < sizes[PLAIN] < end.nbytes
    assert (
        unpacked(packed(end.tobytes(), 4, SORTED, start.tobytes()), 4, SORTED, 0, start.tobytes())
        == end.tobytes()
    )
    assert choose(memoryview(end.tobytes()), 4, memoryview(start.tobytes()))[0] == SORTED


def test_a_delta_is_not_taken_where_it_does_not_help() -> None:
    one, other = weights(1), weights(2)
    assert choose(memoryview(one.tobytes()), 4, memoryview(other.tobytes()))[0] == PLAIN


def test_noise_grows_by_less_than_a_thousandth_and_is_known_not_to_shrink() -> None:
    noise = np.random.default_rng(0).bytes(3_000_000)
    assert len(packed(noise, 4, PLAIN)) < 1.001 * len(noise)
    assert choose(memoryview(noise), 4)[1] > 0.999


def test_zeros_are_nearly_nothing() -> None:
    assert len(packed(bytes(1 << 20), 4, PLAIN)) < 200


def test_each_dtype_has_items_of_its_own_width() -> None:
    assert all(nbytes % width_of(dtype) == 0 for dtype, (_, nbytes) in DTYPES.items())
    assert [
        width_of(one)
        for one in ("float64", "complex64", "float32", "bfloat16", "float8_e5m2", "bool")
    ] == [
        8,
        4,
        4,
        2,
        1,
        1,
    ]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="packed with 'delta,lzma'"):
        unpacked(packed(bytes(8), 4, DELTA, bytes(8)), 4, "delta,lzma", 8, bytes(8))


@small_chunks()
def test_what_an_earlier_version_packed_is_read() -> None:
    base = np.arange(40, dtype="<u4") * 3_000_001
    end = base + np.where(np.arange(40) % 2, 5, -3).astype("<u4")
    for method, there in GOLDEN.items():
        assert unpacked(bytes.fromhex(there), 4, method, 160, base.tobytes()) == end.tobytes(), (
            method
        )
