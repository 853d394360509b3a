"""Optimizers: torch's own below its wrappers, and their state without casts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim import Optimizer


def unwrapped(optimizer: Any) -> Any:
    """Return torch's own optimizer below wrappers that keep it as `optimizer`.

    accelerate's and Fabric's do. What is no wrapper is returned as it is.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) or hasattr(inner, "optimizer"):
        return unwrapped(inner)
    return optimizer


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state_dict and undo what is done to its values.

    `Optimizer.load_state_dict` casts floating state to the parameter's dtype
    (torch/optim/optimizer.py, `_process_value_according_to_param_policy`): float32 moments of
    bfloat16 parameters would lose their low bits, and the replay would diverge. Queues are made
    anew there without their length.
    """
    optimizer.load_state_dict(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for key, value in state["state"].get(index, {}).items():
            held = optimizer.state[parameter]
            if not isinstance(value, torch.Tensor):
                held[key] = copy.deepcopy(value)
            elif held[key].dtype != value.dtype:
                held[key] = value.to(parameter.device).clone()
