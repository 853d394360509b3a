"""Weights that are copied straight into a module are there as `load_state_dict` would have
put them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flor_plugins.state.fast_load import copy_into


class Net(nn.Module):
    """Batch norm, tied weights, a bfloat16 part, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
        self.body[2].weight = self.body[0].weight
        self.shared = self.body[1]
        self.low = nn.Linear(4, 2, dtype=torch.bfloat16)
        self.register_buffer("mean", torch.rand(3))
        self.register_buffer("cache", torch.rand(3), persistent=False)
        self.register_parameter("absent", None)


def bits(module: nn.Module) -> dict[str, list[Any]]:
    return {name: one.detach().clone().tolist() for name, one in module.state_dict().items()}


def test_it_does_what_load_state_dict_does() -> None:
    wanted, fast, slow = Net(), Net(), Net()
    state = wanted.state_dict()
    places = {name: one.data_ptr() for name, one in fast.state_dict().items()}
    cache = fast.cache.clone()
    assert copy_into(fast, state)
    slow.load_state_dict(state)
    assert bits(fast) == bits(slow) == bits(wanted)
    assert {name: one.data_ptr() for name, one in fast.state_dict().items()} == places
    assert torch.equal(fast.cache, cache)
    assert all(one.requires_grad and one.grad_fn is None for one in fast.parameters())


def test_another_dtype_is_cast_as_load_state_dict_casts_it() -> None:
    state = {name: one.double() for name, one in Net().state_dict().items()}
    fast, slow = Net(), Net()
    assert copy_into(fast, state)
    slow.load_state_dict(state)
    assert bits(fast) == bits(slow)


class Keeping(nn.Linear):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.kept = state_dict[f"{prefix}weight"]


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return None

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Loading(Net):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(*args, **kwargs)


def hooked(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        getattr(net.low, f"register_load_state_dict_{kind}_hook")(lambda *args: None)
        return net

    return make


def overridden() -> nn.Module:
    net = Net()
    vars(net)["load_state_dict"] = lambda *args, **kwargs: None
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Keeping(2, 2)),
        lambda: nn.Sequential(Extra(2, 2)),
        lambda: nn.Sequential(nn.LazyLinear(2)),
        lambda: nn.Linear(2, 2, device="meta"),
        Loading,
        overridden,
        hooked("pre"),
        hooked("post"),
    ],
)
def test_a_module_with_its_own_way_to_load_is_left_to_it(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert not copy_into(module, module.state_dict())


def changed(**changes: Any) -> dict[str, Any]:
    return {**Net().state_dict(), **changes}


@pytest.mark.parametrize(
    "state",
    [
        changed(odd=torch.ones(1)),
        {name: one for name, one in changed().items() if name != "mean"},
        changed(mean=torch.ones(1)),  # of a shape that a copy would spread
        changed(mean=[1.0, 2.0, 3.0]),
        changed(mean=torch.ones(3, device="meta")),
    ],
)
def test_what_does_not_fit_changes_nothing(state: dict[str, Any]) -> None:
    net = Net()
    before = bits(net)
    assert not copy_into(net, state)
    assert bits(net) == before
