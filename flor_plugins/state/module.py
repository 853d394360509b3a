"""What a torch module holds besides its state_dict: buffers that are not saved, flags, gradients, attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

LARGEST_ARRAY = 2**26  # bytes: what is larger is a data set, or has to be given to whoever saves it by name
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
        "parts": {name: found for name, part in _parts(module) if (found := _attributes(part))},
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
    _set_attributes(module, state["attributes"])
    for name, part in _parts(module):
        _set_attributes(part, state.get("parts", {}).get(name, {}))


def parameter_names(module: nn.Module) -> set[str]:
    """The names in its state_dict that are parameters; the others are buffers."""
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


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
    """Counters, averages and queues that training code keeps on a module; callbacks change those of torch's, too."""
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _OWN and not name.startswith("_") and is_plain(value)
    }


def _set_attributes(module: nn.Module, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if is_plain(value):
            present = getattr(module, name, None)
            setattr(module, name, _on(value, present.device) if isinstance(present, torch.Tensor) else value)


def _on(value: Any, device: torch.device) -> Any:
    """A tensor, or a list of them, on a device."""
    if isinstance(value, list):
        return [_on(one, device) for one in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules inside a module that are no metrics."""
    metrics = {id(part) for _, part in _metrics(module)}
    return [(name, part) for name, part in module.named_modules() if name and id(part) not in metrics]


def is_plain(value: Any, depth: int = 0) -> bool:
    """Data that the state codec stores without loss; anything else belongs to the script."""
    if isinstance(value, np.ndarray | np.generic):  # before float and str, which numpy's scalars may also be
        return _is_plain_numpy(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value) in (type(None), bool, int, float, str)
    if isinstance(value, torch.Tensor):
        return type(value) is torch.Tensor and not value.requires_grad and value.layout is torch.strided
    if depth > 4:
        return False
    if type(value) in (list, tuple, set) or type(value).__name__ == "deque":
        return all(is_plain(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(is_plain(k, depth + 1) and is_plain(v, depth + 1) for k, v in value.items())
    return False


def _is_plain_numpy(value: np.ndarray | np.generic) -> bool:
    """Numbers, bools, texts and dates, in an array that is no subclass and no data set."""
    if value.nbytes > LARGEST_ARRAY:
        return False
    kind = value.dtype
    is_plain_kind = not kind.hasobject and kind.names is None and np.dtype(kind.str) == kind
    return is_plain_kind and (type(value) is np.ndarray or isinstance(value, np.generic))


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
        setattr(metric, name, _on(value, metric.device))
    metric._update_count = state["update_count"]
    metric._computed = state["computed"]
    metric._forward_cache = state["forward_cache"]
