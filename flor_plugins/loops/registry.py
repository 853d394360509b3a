"""What `flor.checkpoints` was given: the objects that a State holds, each under a name."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from flor_plugins.errors import FlorError
from flor_plugins.state import optimizer as optimizer_state
from flor_plugins.state import rng, user_objects

MAIN_NAMES = ("model", "net")
_CONTENTS = (list, dict, set, deque, bytearray, np.ndarray, torch.Tensor)
_KINDS = (nn.Module, Optimizer, DataLoader, rng.RandomGenerator)


@dataclass(slots=True)
class ObjectRegistry:
    """objects: by name. val_dataloader: what hooks get as `ctx.val_dataloader`.

    options: as `options_of` takes them. is_used: has a main loop begun since?
    """

    objects: dict[str, Any] = field(default_factory=dict)
    val_dataloader: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    is_used: bool = False

    def add(self, positional: tuple[object, ...], named: Mapping[str, object]) -> None:
        """Take more objects; those without a name are called by class and number.

        Raises FlorError if it can't.
        """
        for name, given in [*user_objects.numbered(positional), *named.items()]:
            if given is None:
                continue
            if not _is_kept(given):
                raise FlorError(
                    f"flor.checkpoints was given {name}={_shown(given)}, of which no State can "
                    f"be taken. It takes what has state_dict and load_state_dict, random "
                    f"generators, data loaders, lists, dicts, sets, arrays, tensors, and objects "
                    f"whose attributes are such"
                )
            self.objects[name] = given

    def modules(self) -> dict[str, nn.Module]:
        """The modules below their wrappers (DDP, torch.compile)."""
        return {
            name: unwrapped(one) for name, one in self.objects.items() if isinstance(one, nn.Module)
        }

    @property
    def main(self) -> tuple[str, nn.Module] | None:
        """The module that is meant by "the model": called `model` or `net`, else the first one."""
        modules = self.modules()
        name = next((name for name in MAIN_NAMES if name in modules), next(iter(modules), None))
        return None if name is None else (name, modules[name])

    @property
    def model(self) -> nn.Module:
        """The main module; an empty one where none was given."""
        return nn.Module() if self.main is None else self.main[1]

    def distributed(self) -> list[DistributedDataParallel]:
        """The modules that average their gradients over processes."""
        return [one for one in self.objects.values() if isinstance(one, DistributedDataParallel)]

    def optimizers(self) -> dict[str, Optimizer]:
        """Torch's own, below accelerate's wrappers."""
        return {
            name: optimizer_state.unwrapped(one)
            for name, one in self.objects.items()
            if isinstance(one, Optimizer)
        }

    def loaders(self) -> dict[str, Any]:
        """Data loaders; what they draw is drawn again, whatever state_dict they have."""
        return {name: one for name, one in self.objects.items() if isinstance(one, DataLoader)}

    def stateful(self) -> dict[str, Any]:
        """Schedulers, scalers, averages, samplers: what says itself what it saves."""
        return {name: one for name, one in self._others().items() if _is_stateful(one)}

    def contents(self) -> dict[str, Any]:
        """Containers, arrays and tensors, of which the content is kept."""
        return {name: one for name, one in self._others().items() if isinstance(one, _CONTENTS)}

    def owners(self) -> dict[str, Any]:
        """Objects of the user's own, of which plain attributes, generators and modules are kept."""
        known = self.stateful().keys() | self.contents().keys()
        return {name: one for name, one in self._others().items() if name not in known}

    def _others(self) -> dict[str, Any]:
        return {name: one for name, one in self.objects.items() if not isinstance(one, _KINDS)}


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's module below DistributedDataParallel and torch.compile."""
    while isinstance(module, DistributedDataParallel) or hasattr(module, "_orig_mod"):
        inner: Any = (
            module.module if isinstance(module, DistributedDataParallel) else module._orig_mod
        )
        module = inner
    return module


def set_content(held: Any, value: Any) -> None:
    """Fill a container, array or tensor in place: whoever else holds it sees it, too."""
    if isinstance(held, torch.Tensor):
        with torch.no_grad():
            held.copy_(value)
    elif isinstance(held, np.ndarray):
        held[...] = value
    elif isinstance(held, list | bytearray):
        held[:] = value
    else:
        held.clear()
        held.extend(value) if isinstance(held, deque) else held.update(value)


def _is_stateful(one: object) -> bool:
    return callable(getattr(one, "state_dict", None)) and callable(
        getattr(one, "load_state_dict", None)
    )


def _is_kept(one: object) -> bool:
    return not isinstance(one, type) and (
        isinstance(one, (*_KINDS, *_CONTENTS)) or _is_stateful(one) or hasattr(one, "__dict__")
    )


def _shown(one: object) -> str:
    text = repr(one)
    return text if len(text) <= 60 else f"{text[:57]}..."
