from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from codec_cases import ARRAYS, VALUES, Counts, same, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.store.codec import Encoded, decode, encode


def there_and_back(value: Any) -> Any:
    encoded = encode({"s": value})
    assert encoded.lost == ()
    tree = json.loads(json.dumps(encoded.tree, allow_nan=False))
    return decode(tree, {key: one.clone() for key, one in encoded.tensors.items()})["s"]


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_every_value_comes_back_to_the_last_bit(value: Any) -> None:
    assert same(value, there_and_back(value))


@settings(max_examples=100, deadline=None)
@given(st.one_of(tensors(), ARRAYS))
def test_encoding_takes_a_copy(value: Any) -> None:
    encoded = encode({"s": value})
    (stored,) = encoded.tensors.values()
    assert stored.is_contiguous() and stored.device.type == "cpu" and not stored.requires_grad
    before = stored.clone().reshape(-1).view(torch.uint8)
    raw = value.reshape(-1) if isinstance(value, np.ndarray) else value
    if isinstance(raw, np.ndarray):
        value[...] = np.zeros((), value.dtype)
    elif value.numel():
        value.untyped_storage().fill_(0)
    assert torch.equal(stored.reshape(-1).view(torch.uint8), before)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_the_same_state_gives_the_same_file(value: Any) -> None:
    one, two = encode({"s": value}), encode({"s": value})
    assert one.tree == two.tree and list(one.tensors) == list(two.tensors)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        -0.0,
        5e-324,
        2**200,
        -(10**5000),
        2**63,
        -(2**63),
        True,
        Counter("abba"),
        defaultdict(list, {1: [2]}),
        defaultdict(None, {}),
        np.float32(0.1),
        np.float64(-0.0),
        np.str_("é"),
        np.str_(""),
        np.datetime64("2026-01-01", "s"),
        np.bool_(True),
        np.longdouble(1) / 3,
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(6)[::-2],
        np.arange(3).astype(">i4"),
        dt.datetime(2026, 1, 1, fold=1),
        random.Random(3),
        np.random.RandomState(3),
        np.random.RandomState(np.random.PCG64(1)),
        torch.Generator().manual_seed(7),
        *(
            np.random.Generator(getattr(np.random, one)(5))
            for one in ("PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM")
        ),
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 1, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(6).reshape(2, 3).T,
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        torch.ones(3, requires_grad=True),
        torch.ones(2, dtype=torch.complex128),
        random.getstate(),
        "\ud800",
        {"\ud800": torch.ones(1)},
        {"__metadata__": torch.ones(1)},
        torch.finfo(torch.float32).min,
    ],
    ids=lambda one: type(one).__name__,
)
def test_hard_values_come_back(value: Any) -> None:
    assert same(value, there_and_back(value))


def test_complex32_comes_back() -> None:
    value = torch.view_as_complex(torch.ones(3, 2, dtype=torch.float16))
    back = there_and_back(value)
    assert back.dtype is torch.complex32 and torch.equal(
        torch.view_as_real(back), torch.view_as_real(value)
    )


def test_generators_go_on_with_the_same_numbers() -> None:
    made = [random.Random(1), np.random.default_rng(1), torch.Generator().manual_seed(1)]
    back = there_and_back(made)
    assert [one.random() for one in made[:2]] == [one.random() for one in back[:2]]
    assert torch.equal(torch.rand(3, generator=made[2]), torch.rand(3, generator=back[2]))


def test_conjugate_and_negative_views_keep_their_values() -> None:
    base = torch.tensor([1 + 2j, 3 - 4j])
    value = [base, base.conj(), base.conj().imag]
    back = there_and_back(value)
    assert all(torch.equal(a, b) for a, b in zip(value, back, strict=True))


def test_expanded_and_sliced_tensors_keep_their_values_and_not_their_neighbours() -> None:
    big = torch.arange(10_000.0).reshape(100, 100)
    value = [torch.ones(1, 3).expand(4, 3), big[:, 7]]
    encoded = encode({"s": value})
    assert sum(one.numel() for one in encoded.tensors.values()) == 112
    back = decode(encoded.tree, encoded.tensors)["s"]
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in zip(value, back, strict=True))


def test_a_dataclass_is_built_without_its_init_and_keeps_what_was_added() -> None:
    value = object.__new__(Counts)
    vars(value).update(n=3, tensor=torch.ones(2), extra={1: (2,)})
    back = there_and_back(value)
    assert same(value, back) and not hasattr(back, "later")


def test_model_tensors_are_named_like_the_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = model.state_dict()
    encoded = encode({"model": state})
    assert list(encoded.tensors) == [f"model/{name}" for name in state]
    back = decode(encoded.tree, encoded.tensors)["model"]
    assert same(state, back) and back._metadata == state._metadata


def test_tied_tensors_are_stored_once_under_the_model_and_tied_again() -> None:
    weight = torch.nn.Parameter(torch.rand(3, 2))
    encoded = encode({"loops": [weight.data], "model": {"wte": weight, "head": weight}})
    assert list(encoded.tensors) == ["model/wte"] and list(encoded.tree) == ["loops", "model"]
    back = decode(encoded.tree, encoded.tensors)
    assert back["model"]["wte"] is back["model"]["head"]
    assert back["loops"][0].data_ptr() == back["model"]["wte"].data_ptr()
    assert type(back["loops"][0]) is torch.Tensor


def test_tensors_made_and_freed_while_encoding_are_not_taken_for_one() -> None:
    class Fresh(dict):
        pass

    # get_state makes a new tensor each
    generators = [torch.Generator().manual_seed(i) for i in range(20)]
    assert same(generators, there_and_back(generators))


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS, torch.optim.Adagrad]
)
def test_an_optimizer_goes_on_bit_for_bit(kind: Any) -> None:
    def steps(model: torch.nn.Module, optimizer: Any) -> torch.Tensor:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.linspace(-1, 1, 6).reshape(2, 3)).square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return model.weight.detach().clone()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = kind(model.parameters(), lr=0.01)
    steps(model, optimizer)
    encoded = encode({"model": model.state_dict(), "optimizer": [optimizer.state_dict()]})
    expected = steps(model, optimizer)
    state = decode(json.loads(json.dumps(encoded.tree)), encoded.tensors)
    other = torch.nn.Linear(3, 3)
    again = kind(other.parameters(), lr=0.5)
    other.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"][0])
    assert torch.equal(steps(other, again), expected)


def test_buffers_that_fit_are_used_again() -> None:
    first = encode({"model": {"a": torch.zeros(3), "b": torch.zeros(2)}})
    second = encode({"model": {"a": torch.ones(3), "b": torch.ones(5)}}, reuse=first.tensors)
    assert second.tensors["model/a"].data_ptr() == first.tensors["model/a"].data_ptr()
    assert torch.equal(second.tensors["model/a"], torch.ones(3))
    assert second.tensors["model/b"].shape == (5,)


def test_encoding_neither_draws_random_numbers_nor_minds_the_default_device() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with torch.device("meta"):
        encoded = encode({"s": [torch.Generator("cpu"), torch.zeros(2, 2, device="cpu").T]})
        assert encoded.lost == () and isinstance(encoded, Encoded)
        decode(encoded.tree, encoded.tensors)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert same(list(before), list(after))
