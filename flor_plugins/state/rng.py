"""Random number generators: the global ones, and those that loaders, samplers and datasets own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Generator = torch.Generator | np.random.Generator | random.Random


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
    """Seed all global generators with one number (64 bits)."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number % 2**63)


@contextmanager
def kept() -> Iterator[None]:
    """Whatever the block draws, the global generators are afterwards as before."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


def loader_generators(loaders: Iterable[tuple[str, Any]]) -> dict[str, Generator]:
    """Every generator object found on loaders, their samplers and datasets, by a stable name."""
    found: dict[str, Generator] = {}
    for name, loader in loaders:
        parts = {"loader": loader, "dataset": getattr(loader, "dataset", None)}
        for part in ("sampler", "batch_sampler"):
            parts[part] = getattr(loader, part, None)
            parts[f"{part}.sampler"] = getattr(parts[part], "sampler", None)
        for part, owner in parts.items():
            for key, value in getattr(owner, "__dict__", {}).items():
                if isinstance(value, Generator):
                    found[f"{name}.{part}.{key}"] = value
    return found


def capture_generators(generators: dict[str, Generator]) -> dict[str, Any]:
    """The state of each named generator."""
    return {name: _get(generator) for name, generator in generators.items()}


def restore_generators(generators: dict[str, Generator], states: dict[str, Any]) -> None:
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


def _get(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate()
