"""Values of a training that goes on, kept as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def still(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the training can't change any more: tensors are copied where they are,
    without a sync.
    """
    return {name: _still(value) for name, value in values.items()}


def _still(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return [_still(one) for one in value]
    if type(value) is dict:
        return {key: _still(one) for key, one in value.items()}
    return value
