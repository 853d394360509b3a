"""What a hand-written loop draws from: its loaders and generators, and how they are brought to
a moment again.

Loaders are found where they are registered, and in the variables of the functions whose loops
are followed (also as attributes of the user's own objects there): a loader's own generator is
as much a part of a State as the global ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Sampler

from flor_plugins.loops.frame_variables import Frames, is_of_users, scopes
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.state import loader_iteration, rng

_DRAWING = (DataLoader, Sampler, rng.RandomGenerator)

Sources = dict[str, Any]


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
    """A moment: all that the next batches depend on."""
    return {
        "now": rng.capture(),
        "generators": rng.capture_generators(generators(found)),
        "loaders": {name: loader_iteration.loader_state(one) for name, one in _counting(found)},
        "running": [
            name
            for name, one in _persistent(found)
            if loader_iteration.has_running_workers(_base(one))
        ],
    }


def restore(found: Sources, moment: Mapping[str, Any]) -> None:
    """Put `capture`'s result back. RNG comes last: the rest may draw."""
    for name, one in _persistent(found):
        # Their first iterator draws a seed, later ones don't.
        if name not in moment["running"]:
            loader_iteration.end_workers(_base(one))
        elif not loader_iteration.has_running_workers(_base(one)):
            iter(_base(one))
    for name, one in _counting(found):
        if name in moment["loaders"]:
            loader_iteration.restore_loader(one, moment["loaders"][name])
    rng.restore_generators(generators(found), moment["generators"])
    rng.restore(moment["now"])


def end_workers(found: Sources) -> None:
    """Stop persistent workers of loaders that are no longer needed."""
    for _, one in _persistent(found):
        loader_iteration.end_workers(_base(one))


def _counting(found: Sources) -> Iterator[tuple[str, Any]]:
    """accelerate's loaders, which count their epochs."""
    yield from (
        (name, one)
        for name, one in found.items()
        if isinstance(getattr(one, "iteration", None), int)
    )


def _persistent(found: Sources) -> Iterator[tuple[str, Any]]:
    yield from (
        (name, one)
        for name, one in found.items()
        if loader_iteration.has_persistent_workers(_base(one))
    )


def _base(loader: Any) -> Any:
    """torch's loader below accelerate's."""
    return getattr(loader, "base_dataloader", loader)
