"""What a torch module holds besides its state_dict: buffers, flags, gradients, attributes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

# bytes: what is larger is a data set, or has to be given to whoever saves it by name
LARGEST_ARRAY = 2**26
_OWN = frozenset(vars(nn.Module())) | {"training"}
_Modules = list[tuple[str, nn.Module]]


def capture(
    module: nn.Module, *, saved: Collection[str] | None = None, gradients: bool = False
) -> dict[str, Any]:
    """Non-persistent buffers, requires_grad and training flags, torchmetrics, plain attributes.

    saved: the names in the module's state_dict, if it was made already. gradients: also
    `p.grad` of every parameter (needed where they outlive the moment: manual optimization, or
    in the middle of an accumulation).
    """
    modules = list(module.named_modules())  # once: the training waits for each walk through a model
    metrics = _metrics(modules)
    parameters = list(_named(modules, "_parameters"))
    return {
        "buffers": _unsaved(module, modules, saved),
        "frozen": [name for name, p in parameters if not p.requires_grad],
        "evaluating": [name for name, m in modules if not m.training],
        "metrics": {name: _metric_state(m) for name, m in metrics},
        "attributes": _attributes(module),
        "parts": {
            name: found for name, part in _parts(modules, metrics) if (found := _attributes(part))
        },
        "gradients": {name: p.grad for name, p in parameters if p.grad is not None}
        if gradients
        else {},
    }


def restore(module: nn.Module, state: dict[str, Any]) -> None:
    """Put `capture`'s result back, in place; attributes that were not saved stay as they are."""
    restore_buffers(module, state["buffers"])
    frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
        gradient = state["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device).clone()
    for name, part in module.named_modules():
        part.training = name not in evaluating
    modules = list(module.named_modules())
    metrics = _metrics(modules)
    for name, metric in metrics:
        if name in state["metrics"]:
            _set_metric_state(metric, state["metrics"][name])
    _set_attributes(module, state["attributes"])
    for name, part in _parts(modules, metrics):
        _set_attributes(part, state.get("parts", {}).get(name, {}))


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return `capture`'s result with copies of what `restore` gives away.

    A State may be restored twice.
    """
    given_away = ("attributes", "parts", "metrics")
    return {**state, **{name: copy.deepcopy(state[name]) for name in given_away if name in state}}


def parameter_names(module: nn.Module) -> set[str]:
    """The names in its state_dict that are parameters; the others are buffers."""
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def unsaved_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a state_dict leaves out."""
    return _unsaved(module, list(module.named_modules()), None)


def _unsaved(
    module: nn.Module, modules: _Modules, saved: Collection[str] | None
) -> dict[str, torch.Tensor]:
    names = module.state_dict().keys() if saved is None else saved
    return {name: buffer for name, buffer in _named(modules, "_buffers") if name not in names}


def _named(modules: _Modules, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield parameters or buffers as `named_parameters` gives them.

    modules: those that were walked through already.
    """
    seen: set[Any] = set()
    for prefix, part in modules:
        held: Mapping[str, Any] = getattr(part, kind)
        for name, tensor in held.items():
            if tensor is not None and tensor not in seen:
                seen.add(tensor)
                yield f"{prefix}.{name}" if prefix else name, tensor


def restore_buffers(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Put `unsaved_buffers`' result back, in place."""
    buffers = dict(module.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            if name in buffers:
                buffers[name].copy_(value)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return counters, averages and queues that training code keeps on a module.

    Callbacks change those of torch's, too.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if name[:1] != "_" and name not in _OWN and is_plain(value)
    }


def _set_attributes(module: nn.Module, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if is_plain(value):
            present = getattr(module, name, None)
            setattr(
                module,
                name,
                _on(value, present.device) if isinstance(present, torch.Tensor) else value,
            )


def _on(value: object, device: torch.device) -> object:
    """A tensor, or a list of them, on a device."""
    if isinstance(value, list):
        return [_on(one, device) for one in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _parts(modules: _Modules, metrics: _Modules) -> list[tuple[str, nn.Module]]:
    """The modules inside a module that are no metrics."""
    known = {id(part) for _, part in metrics}
    return [(name, part) for name, part in modules if name and id(part) not in known]


def is_plain(value: Any, depth: int = 0) -> bool:
    """Data that the state codec stores without loss; anything else belongs to the script."""
    if isinstance(
        value, np.ndarray | np.generic
    ):  # before float and str, which numpy's scalars may also be
        return _is_plain_numpy(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value) in (type(None), bool, int, float, str)
    if isinstance(value, torch.Tensor):
        return (
            type(value) is torch.Tensor
            and not value.requires_grad
            and value.layout is torch.strided
        )
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


def _metrics(modules: _Modules) -> list[tuple[str, Any]]:
    """The torchmetrics among modules, recognised by what they carry (torchmetrics/metric.py)."""
    # vars, and not getattr: a module looks for what it has not in all its parts, and says so
    # with an exception
    return [
        (name, part)
        for name, part in modules
        if isinstance(vars(part).get("_defaults"), dict) and hasattr(part, "_update_count")
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
