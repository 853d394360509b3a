"""Random number generators: the global ones, and those that loaders, samplers and datasets own."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomGenerator = torch.Generator | np.random.Generator | random.Random
# of a tuple isinstance is faster than of a union
_KINDS = (
    torch.Generator,
    np.random.Generator,
    random.Random,
)
# most that a module has
_NO_GENERATORS = frozenset((bool, int, float, str, dict, OrderedDict, set, type(None)))


def capture() -> dict[str, Any]:
    """The state of python's, numpy's (legacy) and torch's global generators, every device."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """Put `capture`'s result back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed(number: int) -> None:
    """Seed all global generators with one number (64 bits), but for those of unused GPUs.

    torch.manual_seed would keep the seed for them in place of the user's own, and a stack
    trace: half a millisecond.
    """
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number % 2**63)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number % 2**63)


@contextmanager
def kept() -> Iterator[None]:
    """Whatever the block draws, the global generators are afterwards as before."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


# Where loaders, samplers and datasets keep what they are made of.
_PARTS = ("sampler", "batch_sampler", "dataset", "datasets", "base_dataloader", "base_loader")
_PART_NAMES = frozenset((*_PARTS, *(f"_{part}" for part in _PARTS)))


def loader_generators(loaders: Iterable[tuple[str, object]]) -> dict[str, RandomGenerator]:
    """Return every generator found on loaders and modules, and on their parts, by a stable name."""
    found: dict[str, RandomGenerator] = {}
    seen: set[int] = set()
    for name, loader in loaders:
        _find(name, loader, found, seen)
    return found


def _find(name: str, owner: object, found: dict[str, RandomGenerator], seen: set[int]) -> None:
    if owner is None or id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, (list, tuple)):
        for index, one in enumerate(owner):
            _find(f"{name}.{index}", one, found, seen)
        return
    attributes = getattr(owner, "__dict__", {})
    for key, value in attributes.items():
        if (
            type(value) not in _NO_GENERATORS
            and isinstance(value, _KINDS)
            and id(value) not in seen
        ):
            seen.add(id(value))
            found[f"{name}.{key}"] = value
    # a model has hundreds of modules, and this is asked three times an epoch: no names are made
    # for nothing
    for part in () if _PART_NAMES.isdisjoint(attributes) else _PARTS:
        inner = attributes.get(part, attributes.get(f"_{part}"))
        if inner is not None and (hasattr(inner, "__dict__") or isinstance(inner, (list, tuple))):
            _find(f"{name}.{part}", inner, found, seen)
    if isinstance(owner, torch.nn.Module):
        for key, inner in owner._modules.items():
            _find(f"{name}.{key}", inner, found, seen)


def capture_generators(generators: dict[str, RandomGenerator]) -> dict[str, Any]:
    """The state of each named generator."""
    return {name: _get(generator) for name, generator in generators.items()}


def restore_generators(generators: dict[str, RandomGenerator], states: dict[str, Any]) -> None:
    """Put `capture_generators`' result back into generators of the same names."""
    for name, generator in generators.items():
        if name not in states:
            continue
        if isinstance(generator, torch.Generator):
            generator.set_state(states[name])
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = states[name]
        else:
            generator.setstate(states[name])


def _get(generator: RandomGenerator) -> object:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()
