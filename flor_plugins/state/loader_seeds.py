"""What a pass over a loader draws: nothing, the one seed of each pass, or something else."""

from __future__ import annotations

from typing import Any

import torch

from flor_plugins.state import rng
from flor_plugins.state.tensor_trees import is_same


def draw_seed(loader: Any) -> None:
    """As torch does for each pass (torch/utils/data/dataloader.py, `_BaseDataLoaderIter`)."""
    torch.empty((), dtype=torch.int64, device="cpu").random_(generator=loader.generator)


def random_state(own: dict[str, rng.RandomGenerator]) -> dict[str, Any]:
    """Of all global generators and the named ones."""
    return {**rng.capture(), "own": rng.capture_generators(own)}


def is_one_seed(
    loader: Any, own: dict[str, rng.RandomGenerator], before: dict[str, Any], after: dict[str, Any]
) -> bool:
    """Tell whether what was drawn in between is the one seed of a pass.

    Leaves the generators as they are after it.
    """
    rng.restore(before)
    rng.restore_generators(own, before["own"])
    draw_seed(loader)
    drawn = random_state(own)
    rng.restore(after)
    rng.restore_generators(own, after["own"])
    return is_same(drawn, after)
