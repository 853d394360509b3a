"""What an object of the user's own keeps while a training runs: counters, generators, models."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from flor_plugins.state import module as module_state
from flor_plugins.state import rng

T = TypeVar("T")

# Callbacks of these packages save what they need themselves, or need nothing.
_FRAMEWORKS = ("lightning", "pytorch_lightning", "transformers", "accelerate", "flor_plugins")


def is_users(owner: object) -> bool:
    """Tell whether the class of this object was written by the user, and not by a framework."""
    return type(owner).__module__.partition(".")[0] not in _FRAMEWORKS


def numbered(owners: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Yield each object under its class and number.

    In a replay, which has others beside them, it has the same name.
    """
    counts: dict[str, int] = {}
    for owner in owners:
        name = type(owner).__qualname__
        counts[name] = counts.get(name, 0) + 1
        yield f"{name}.{counts[name]}", owner


def parts(model: nn.Module) -> set[int]:
    """Return what tells that something belongs to a model.

    These are ids of its modules, and addresses of its tensors' memory.
    """
    modules = list(model.modules())
    tensors = [
        one
        for part in modules
        for kind in (part._parameters, part._buffers)
        for one in kind.values()
    ]
    return {id(part) for part in modules} | {
        _address(one) for one in tensors if one is not None
    } - {0}


def capture(owner: object, known: Collection[int] = ()) -> dict[str, Any]:
    """Return plain attributes, generators and modules that the object holds.

    What else it holds belongs to the script.

    known: `parts` of the model that is being trained: they are saved elsewhere.
    """
    return {
        "attributes": {
            name: value for name, value in vars(owner).items() if is_state(value, known)
        },
        "generators": rng.capture_generators(_generators(owner)),
        "modules": {
            name: {"weights": part.state_dict(), "rest": module_state.capture(part)}
            for name, part in _modules(owner)
            if id(part) not in known
        },
    }


def restore(owner: object, state: dict[str, Any]) -> None:
    """Put `capture`'s result back; modules in place."""
    # not setattr, which frozen classes refuse
    vars(owner).update(copy.deepcopy(state["attributes"]))
    rng.restore_generators(_generators(owner), state["generators"])
    for name, part in _modules(owner):
        if name in state["modules"]:
            part.load_state_dict(state["modules"][name]["weights"])
            module_state.restore(part, state["modules"][name]["rest"])


def is_state(value: object, known: Collection[int] = ()) -> bool:
    """Tell whether it is plain data that a State can give back.

    known: `parts` of the model, of which nothing is plain data.
    """
    if isinstance(value, str) and os.sep in value:
        return False  # a path is another one in the sandbox of a replay
    # A view of a weight (`p.data`) has to stay one.
    return module_state.is_plain(value) and not any(
        _address(one) in known for one in _tensors(value)
    )


def _address(tensor: torch.Tensor | np.ndarray) -> int:
    """Of the memory; of an array where its elements begin."""
    try:
        if isinstance(tensor, np.ndarray):
            return tensor.ctypes.data
        return tensor.untyped_storage().data_ptr()
    except (
        NotImplementedError,
        RuntimeError,
    ):  # sparse tensors and subclasses without memory of their own
        return 0


def _tensors(value: object) -> Iterator[torch.Tensor | np.ndarray]:
    if isinstance(value, torch.Tensor | np.ndarray):
        yield value
    elif isinstance(value, dict):
        yield from (one for inner in value.values() for one in _tensors(inner))
    elif isinstance(value, (list, tuple, set)):
        yield from (one for inner in value for one in _tensors(inner))


def _generators(owner: object) -> dict[str, rng.RandomGenerator]:
    return {
        name: value for name, value in vars(owner).items() if isinstance(value, rng.RandomGenerator)
    }


def _modules(owner: object) -> Iterator[tuple[str, nn.Module]]:
    yield from (
        (name, value) for name, value in vars(owner).items() if isinstance(value, nn.Module)
    )
