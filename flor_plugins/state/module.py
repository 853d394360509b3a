"""What a torch module holds besides its state_dict: buffers that are not saved, flags, gradients, attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_OWN = frozenset(vars(nn.Module())) | {"training"}


def capture(module: nn.Module, *, gradients: bool = False) -> dict[str, Any]:
    """Non-persistent buffers, requires_grad and training flags, torchmetrics, plain attributes.

    gradients: also `p.grad` of every parameter (needed where they outlive the moment:
    manual optimization, or in the middle of an accumulation).
    """
    return {
        "buffers": unsaved_buffers(module),
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "evaluating": [name for name, m in module.named_modules() if not m.training],
        "metrics": {name: _metric_state(m) for name, m in _metrics(module)},
        "attributes": _attributes(module),
        "gradients": {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        if gradients
        else {},
    }


def restore(module: nn.Module, state: dict[str, Any]) -> None:
    """Put `capture`'s result back, in place; attributes that could not be saved stay as they are."""
    restore_buffers(module, state["buffers"])
    frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
        gradient = state["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device).clone()
    for name, part in module.named_modules():
        part.training = name not in evaluating
    for name, metric in _metrics(module):
        if name in state["metrics"]:
            _set_metric_state(metric, state["metrics"][name])
    for name, value in state["attributes"].items():
        if _is_plain(value):
            setattr(module, name, value)


def unsaved_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state_dict leaves out."""
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def restore_buffers(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Put `unsaved_buffers`' result back, in place."""
    buffers = dict(module.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            if name in buffers:
                buffers[name].copy_(value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Counters, averages and queues that training code keeps on the module itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OWN and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Data that the state codec stores without loss; anything else belongs to the script."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value) in (type(None), bool, int, float, str)
    if isinstance(value, torch.Tensor):
        return type(value) is torch.Tensor and not value.requires_grad and value.layout is torch.strided
    if depth > 4:
        return False
    if type(value) in (list, tuple, set) or type(value).__name__ == "deque":
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(_is_plain(k, depth + 1) and _is_plain(v, depth + 1) for k, v in value.items())
    return False


def _metrics(module: nn.Module) -> list[tuple[str, Any]]:
    """The torchmetrics inside a module, recognised by what they carry (torchmetrics/metric.py)."""
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(getattr(part, "_defaults", None), dict) and hasattr(part, "_update_count")
    ]


def _metric_state(metric: Any) -> dict[str, Any]:
    return {
        "states": {name: getattr(metric, name) for name in metric._defaults},
        "update_count": metric._update_count,
        "computed": metric._computed,
        "forward_cache": metric._forward_cache,
    }


def _set_metric_state(metric: Any, state: dict[str, Any]) -> None:
    for name, value in state["states"].items():
        setattr(metric, name, value)
    metric._update_count = state["update_count"]
    metric._computed = state["computed"]
    metric._forward_cache = state["forward_cache"]
