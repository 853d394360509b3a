"""What `flor.checkpoints` was given: the objects that a State holds, each under a name."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from flor_plugins.errors import FlorError
from flor_plugins.state import rng, user_objects

MAIN_NAMES = ("model", "net")
_CONTENTS = (list, dict, set, deque, bytearray, np.ndarray, torch.Tensor)


@dataclass(slots=True)
class ObjectRegistry:
    """objects: by name. val_dataloader: what hooks get as `ctx.val_dataloader`."""

    objects: dict[str, Any] = field(default_factory=dict)
    val_dataloader: Any = None

    def add(self, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Take more objects; those without a name are called by class and number.

        Raises FlorError if it can't.
        """
        numbered = {name: one for name, one in user_objects.numbered(positional) if one is not None}
        for name, one in {**numbered, **{n: o for n, o in named.items() if o is not None}}.items():
            if not _is_kept(one):
                raise FlorError(
                    f"flor.checkpoints was given {name}={_shown(one)}, of which no State can "
                    f"be taken. It takes what "
                    f"has state_dict and load_state_dict, random generators, data loaders, "
                    f"lists, dicts, sets, arrays, "
                    f"tensors, and objects whose attributes are such"
                )
            self.objects[name] = one

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
        """torch's own, below accelerate's wrappers."""
        return {name: _raw(one) for name, one in self.objects.items() if isinstance(one, Optimizer)}

    def loaders(self) -> Iterator[tuple[str, Any]]:
        """Data loaders; what they draw is drawn again, whatever state_dict they have."""
        yield from (
            (name, one) for name, one in self.objects.items() if isinstance(one, DataLoader)
        )

    def generators(self) -> dict[str, rng.RandomGenerator]:
        return {
            name: one for name, one in self.objects.items() if isinstance(one, rng.RandomGenerator)
        }

    def stateful(self) -> dict[str, Any]:
        """Schedulers, scalers, averages, samplers: what says itself what it saves."""
        return {name: one for name, one in self._others() if _is_stateful(one)}

    def contents(self) -> dict[str, Any]:
        """Containers, arrays and tensors, of which the content is kept."""
        return {name: one for name, one in self._others() if isinstance(one, _CONTENTS)}

    def owners(self) -> dict[str, Any]:
        """Objects of the user's own, of which plain attributes, generators and modules are kept."""
        return {
            n: o for n, o in self._others() if not _is_stateful(o) and not isinstance(o, _CONTENTS)
        }

    def _others(self) -> Iterator[tuple[str, Any]]:
        kinds = (nn.Module, Optimizer, DataLoader, rng.RandomGenerator)
        yield from ((name, one) for name, one in self.objects.items() if not isinstance(one, kinds))


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


def _raw(optimizer: Any) -> Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _is_stateful(one: Any) -> bool:
    return callable(getattr(one, "state_dict", None)) and callable(
        getattr(one, "load_state_dict", None)
    )


def _is_kept(one: Any) -> bool:
    kinds = (nn.Module, Optimizer, DataLoader, rng.RandomGenerator, *_CONTENTS)
    return not isinstance(one, type) and (
        isinstance(one, kinds) or _is_stateful(one) or hasattr(one, "__dict__")
    )


def _shown(one: Any) -> str:
    text = repr(one)
    return text if len(text) <= 60 else f"{text[:57]}..."
