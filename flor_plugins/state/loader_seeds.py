"""What a pass over a loader draws: nothing, the one seed that torch draws for each, or
something of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from flor_plugins.state import rng


def draw_seed(loader: Any) -> None:
    """As torch does for each pass (torch/utils/data/dataloader.py, `_BaseDataLoaderIter`)."""
    torch.empty((), dtype=torch.int64, device="cpu").random_(generator=loader.generator)


def random_state(own: dict[str, rng.RandomGenerator]) -> dict[str, Any]:
    """Of all global generators and the named ones."""
    return {**rng.capture(), "own": rng.capture_generators(own)}


def is_one_seed(loader: Any, own: dict[str, rng.RandomGenerator], before: Any, after: Any) -> bool:
    """Is what was drawn in between the one seed of a pass? Leaves the generators as they are
    after it.
    """
    rng.restore(before)
    rng.restore_generators(own, before["own"])
    draw_seed(loader)
    drawn = random_state(own)
    rng.restore(after)
    rng.restore_generators(own, after["own"])
    return is_equal(drawn, after)


def is_equal(one: Any, other: Any) -> bool:
    """Of trees of tensors, arrays and plain values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool((one == other).all()) if hasattr(one, "shape") else one == other
