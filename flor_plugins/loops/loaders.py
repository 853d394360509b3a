"""What a hand-written loop draws from, and the way back to a moment.

Loaders are found where they are registered, and in the variables of the functions whose loops
are followed (also as attributes of the user's own objects there): a loader's own generator is
as much a part of a State as the global ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Sampler

from flor_plugins.loops.frame_variables import Frames, is_of_users, scopes
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.state import loader_iteration, rng
from flor_plugins.state.epoch_rng import Moment

_DRAWING = (DataLoader, Sampler, rng.RandomGenerator)

Sources = dict[str, object]


def sources(registered: ObjectRegistry, frames: Frames) -> Sources:
    """Whatever may own generators, by a stable name; each object once."""
    found: Sources = {}
    for name, one in registered.objects.items():
        if isinstance(one, (*_DRAWING, nn.Module)):
            found[name] = one
    for scope, held in scopes(frames):
        for name, one in list(held.items()):
            if isinstance(one, _DRAWING):
                found[f"{scope}.{name}"] = one
            elif is_of_users(one):
                inner = {key: part for key, part in vars(one).items() if isinstance(part, _DRAWING)}
                found |= {f"{scope}.{name}.{key}": part for key, part in inner.items()}
    seen: set[int] = set()
    return {name: one for name, one in found.items() if not (id(one) in seen or seen.add(id(one)))}


def generators(found: Sources) -> dict[str, rng.RandomGenerator]:
    """Every generator but the global ones."""
    alone = {name: one for name, one in found.items() if isinstance(one, rng.RandomGenerator)}
    known = {id(one) for one in alone.values()}
    owned = rng.loader_generators((name, one) for name, one in found.items() if name not in alone)
    return {**alone, **{name: one for name, one in owned.items() if id(one) not in known}}


def capture(found: Sources) -> dict[str, Any]:
    """Return all that the next batches depend on.

    These are the global RNG, the other generators, and the loaders' own counters.
    """
    has_running = loader_iteration.has_running_workers
    return {
        "now": rng.capture(),
        "generators": rng.capture_generators(generators(found)),
        "loaders": {name: loader_iteration.loader_state(one) for name, one in _counting(found)},
        "running": [name for name, loader in _persistent(found) if has_running(loader)],
    }


def restore(found: Sources, moment: Moment) -> None:
    """Put `capture`'s result back. RNG comes last: the rest may draw."""
    for name, loader in _persistent(found):
        loader_iteration.run_workers(loader, is_running=name in moment["running"])
    for name, loader in _counting(found):
        if name in moment["loaders"]:
            loader_iteration.restore_loader(loader, moment["loaders"][name])
    rng.restore_generators(generators(found), moment["generators"])
    rng.restore(moment["now"])


def end_workers(found: Sources) -> None:
    """Stop persistent workers of loaders that are no longer needed."""
    for _, loader in _persistent(found):
        loader_iteration.end_workers(loader)


def _counting(found: Sources) -> Iterator[tuple[str, Any]]:
    """Yield accelerate's loaders, which count their epochs."""
    for name, source in found.items():
        if isinstance(getattr(source, "iteration", None), int):
            yield name, source


def _persistent(found: Sources) -> Iterator[tuple[str, Any]]:
    """Yield torch's loaders whose workers live on from epoch to epoch."""
    for name, source in found.items():
        loader = loader_iteration.base(source)
        if loader_iteration.has_persistent_workers(loader):
            yield name, loader
