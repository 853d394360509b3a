"""Which objects inside those that `flor.checkpoints` was given belong to a State, and under
which names.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

import gymnasium
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flor_plugins.loops import loaders, state
from flor_plugins.loops.object_graph import inside, is_environment
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.loops.rng_history import RngHistory
from flor_plugins.store import codec


class Part:
    def __init__(self, number: int = 0) -> None:
        self.number = number


class Fixed(Part):
    """Refuses to be changed from outside."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise AttributeError(name)
        vars(self)[name] = value


class Colour(enum.Enum):
    RED = 1


class Owner:
    def __init__(self) -> None:
        self.first, self.others, self.named = (
            Part(1),
            deque([Part(2), (Part(3),)]),
            {"four": Part(4)},
        )
        self.me, self.again, self.net, self.optimizer = self, self.first, nn.Linear(1, 1), None
        self.data, self.colour, self.kind, self.fixed = (
            TensorDataset(torch.ones(2, 1)),
            Colour.RED,
            Part,
            Fixed(5),
        )


def test_objects_of_the_user_are_found_once_by_the_way_that_leads_there() -> None:
    owner = Owner()
    known = {id(owner.named["four"])}  # registered by itself
    names = ["owner", "owner.first", "owner.others.0", "owner.others.1.0", "owner.fixed"]
    assert [*inside({"owner": owner}, known)] == names


def test_environments_are_told_by_the_class_from_which_they_are_derived() -> None:
    poles = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    assert (
        is_environment(poles)
        and is_environment(poles.envs[0])
        and not is_environment(gymnasium.Env)
    )
    assert not is_environment(poles.action_space) and not is_environment(Owner())
    found = inside({"poles": poles}, ())
    assert {"poles.envs.1.env", "poles.envs.0.env.env.env", "poles.action_space"} <= found.keys()
    assert not any(isinstance(one, enum.Enum) for one in found.values())


@pytest.mark.parametrize("as_recorded_before", [False, True])
def test_what_is_inside_is_put_back_and_a_state_of_before_is_read_without_it(
    as_recorded_before: bool,
) -> None:
    registered = ObjectRegistry()
    registered.add((), {"owner": Owner()})
    owner = registered.objects["owner"]
    sections = state.capture(registered, {}, RngHistory(), {}, {})
    sections["rng"] = loaders.capture({})
    assert not codec.encode({"loop": sections["loop"]}).lost
    if as_recorded_before:
        sections["loop"]["owners"] = {"owner": sections["loop"]["owners"]["owner"]}
    for one in (owner.first, owner.others[1][0]):
        one.number = 99
    vars(owner.fixed)["number"] = 99
    state.restore(registered, {}, sections)
    numbers = [owner.first.number, owner.others[1][0].number, owner.fixed.number]
    assert numbers == ([99, 99, 99] if as_recorded_before else [1, 3, 5])
