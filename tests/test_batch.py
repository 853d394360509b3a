"""Fingerprints of batches: any changed bit is seen, and nothing is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.state import batch_fingerprint

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float16,
]


@dataclass
class Sample:
    x: torch.Tensor
    label: int


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3), st.integers(0, 2**31))
def test_a_batch_has_one_fingerprint_wherever_it_lies(
    dtype: torch.dtype, shape: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) * 100).to(dtype)
    wider = torch.stack([x, x])[1]  # the same values at another place of another storage
    assert (
        int(batch_fingerprint.checksum(x))
        == int(batch_fingerprint.checksum(wider))
        == int(batch_fingerprint.checksum({"a": wider}))
    )
    assert batch_fingerprint.sha256([x]) == batch_fingerprint.sha256([wider.clone()])


@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_checksum_is_the_sum_of_the_words_in_memory(
    dtype: torch.dtype, shape: list[int], turned: bool, seed: int
):
    """What recorded runs hold must be what is computed from now on."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) * 100).to(dtype)
    x = x.transpose(0, -1) if turned and shape else x
    memory = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    size = x.element_size() // (1 + dtype.is_complex)
    narrow = {1: "<u1", 2: "<i2", 4: "<i4", 8: "<i8"}[size]
    words = np.frombuffer(memory, "<i8" if len(memory) % 8 == 0 else narrow)
    expected = int(words.sum(dtype=np.int64))
    assert int(batch_fingerprint.checksum(x)) == expected
    with np.errstate(over="ignore"):
        twice = np.int64(expected) + np.int64(2) * np.int64(expected)
    assert int(batch_fingerprint.checksum([x, x.clone()])) == int(twice)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9), st.data())
def test_a_changed_number_changes_both_fingerprints(
    numbers: list[int], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    other = list(numbers)
    other[place] = data.draw(
        st.integers(-(2**31), 2**31 - 1).filter(lambda one: one != numbers[place])
    )
    one, two = (torch.tensor(found, dtype=torch.int32) for found in (numbers, other))
    assert int(batch_fingerprint.checksum(one)) != int(batch_fingerprint.checksum(two))
    assert batch_fingerprint.sha256(one) != batch_fingerprint.sha256(two)


def test_the_order_of_tensors_counts_and_other_leaves_are_hashed() -> None:
    a, b = torch.arange(4), torch.arange(5)
    assert int(batch_fingerprint.checksum([a, b])) != int(batch_fingerprint.checksum([b, a]))
    assert batch_fingerprint.sha256({"x": a, "name": "one"}) != batch_fingerprint.sha256(
        {"x": a, "name": "two"}
    )
    assert batch_fingerprint.sha256(Sample(a, 1)) != batch_fingerprint.sha256(Sample(a, 2))
    assert int(batch_fingerprint.checksum(Sample(a, 1))) == int(
        batch_fingerprint.checksum(Sample(a, 2))
    )


@pytest.mark.parametrize(
    "value", [None, "text", 3, [], {}, object(), torch.empty(0), torch.eye(2).to_sparse()]
)
def test_what_holds_no_words_has_a_fingerprint_too(value: Any) -> None:
    assert int(batch_fingerprint.checksum(value)) == 0
    assert len(batch_fingerprint.sha256(value)) == 64


def test_a_batch_that_holds_itself_comes_to_an_end() -> None:
    endless: list[Any] = [torch.arange(3)]
    endless.append(endless)
    assert int(batch_fingerprint.checksum(endless)) != 0
