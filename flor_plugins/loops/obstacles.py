"""What of a hand-written loop keeps it from being replayed bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from flor_plugins.loops.frame_variables import Frames, FrameVariables, is_of_users, scopes
from flor_plugins.loops.object_graph import foreign_state, is_environment
from flor_plugins.loops.registry import ObjectRegistry, unwrapped
from flor_plugins.loops.state import known_ids, owners_of
from flor_plugins.recorder.replayability import hidden_state, obstacles
from flor_plugins.records import Obstacle
from flor_plugins.state import loader_iteration

OF_MODULE = (
    "register it as buffer or submodule, or write get_extra_state and set_extra_state that hold it"
)
OF_OWNER = (
    "give its class state_dict and load_state_dict that hold it, and flor.checkpoints "
    "an object of it"
)
_NOTHING_REGISTERED = Obstacle(
    "none",
    "flor.checkpoints(...) was not called before the loop: values are recorded, and no State",
    "call flor.checkpoints(net, optimizer) before the main loop",
)
_SHARDED = ("FullyShardedDataParallel", "DeepSpeedEngine")


def of_outgrown(
    registered: ObjectRegistry, variables: FrameVariables, frames: Frames
) -> Iterator[Obstacle]:
    """Yield variables that have grown since the loop began, and whose content no State keeps."""
    known, held = known_ids(registered), dict(scopes(frames))
    for scope, name in variables.outgrown(frames):
        if id(held[scope][name]) not in known:
            yield Obstacle(
                "partial",
                f"{_place(scope)} keeps in `{name}` what grows, and is too large to be kept "
                f"unasked or not plain data",
                f"flor.checkpoints(..., {name}={name}), if the training depends on it",
            )


def obstacles_of(registered: ObjectRegistry, frames: Frames) -> list[Obstacle]:
    """What is known to break exactness of this training. It draws, copies and changes nothing."""
    if not registered.objects:
        return [_NOTHING_REGISTERED]
    parameter = next(registered.model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return [
        *obstacles.of_kernels(device),
        *_of_strategy(registered),
        *(
            found
            for name, one in _loaders(registered, frames).items()
            for found in _of_loader(name, one)
        ),
        *_of_modules(registered),
        *_of_owners(registered),
        *_of_variables(registered, frames),
    ]


def _of_strategy(registered: ObjectRegistry) -> Iterator[Obstacle]:
    for name, one in registered.objects.items():
        kind = next(
            (kind.__name__ for kind in type(one).__mro__ if kind.__name__ in _SHARDED), None
        )
        if kind is not None:
            yield obstacles.of_sharding(f"{kind} ({name})")


def _loaders(registered: ObjectRegistry, frames: Frames) -> dict[str, object]:
    found = dict(registered.loaders())
    if registered.val_dataloader is not None:
        found["val_dataloader"] = registered.val_dataloader
    for _, held in scopes(frames):
        found |= {name: one for name, one in held.items() if isinstance(one, DataLoader)}
    return {name: one for name, one in found.items() if isinstance(one, DataLoader)}


def _of_loader(name: str, loader: object) -> Iterator[Obstacle]:
    role = "validation" if name.lower().startswith(("val", "eval", "test")) else "training"
    yield from obstacles.of_loader(role, loader)
    base = loader_iteration.base(loader)
    if role == "training" and loader_iteration.has_persistent_workers(base):
        yield Obstacle(
            "partial",
            f"`{name}` has persistent_workers=True: random numbers that its workers draw go on "
            f"from epoch to epoch, "
            f"and their state is not recorded",
            "use persistent_workers=False",
        )


def _of_modules(registered: ObjectRegistry) -> Iterator[Obstacle]:
    known = known_ids(registered)
    for one in registered.modules().values():
        yield from hidden_state.of_modules(one, known, OF_MODULE)


def _of_owners(registered: ObjectRegistry) -> Iterator[Obstacle]:
    """State inside registered objects that a State does not hold."""
    owners = owners_of(registered)
    known = known_ids(registered) | {id(one) for one in owners.values()}
    for name, one in owners.items():
        yield from hidden_state.of_owner("the object", one, known, OF_OWNER)
        for key, kind in foreign_state(one):
            yield Obstacle(
                "partial", f"{name} keeps in `{key}` {kind}, which no checkpoint holds", OF_OWNER
            )


def _of_variables(registered: ObjectRegistry, frames: Frames) -> Iterator[Obstacle]:
    """Variables of the loop's functions that hold state which nobody registered."""
    known = known_ids(registered) | {id(one) for one in owners_of(registered).values()}
    for scope, held in scopes(frames):
        for name, one in [found for variable in held.items() for found in _looked_at(*variable)]:
            kind = "" if id(one) in known else _kind(one, known)
            if kind:
                yield Obstacle(
                    "partial",
                    f"{_place(scope)} keeps {kind} in `{name}`, which flor.checkpoints was not "
                    f"given",
                    f"flor.checkpoints(..., {name.rpartition('.')[2]}={name})",
                )


def _looked_at(name: str, one: object) -> Iterator[tuple[str, object]]:
    """A variable; of an object of the user's own the environments, too, in which it acts."""
    yield name, one
    if is_of_users(one):
        yield from (
            (f"{name}.{key}", part) for key, part in vars(one).items() if is_environment(part)
        )


def _place(scope: str) -> str:
    return "the script" if scope.startswith("<") else f"{scope}()"


def _kind(one: object, known: frozenset[int]) -> str:
    if isinstance(one, nn.Module):
        is_trained = (
            any(p.requires_grad for p in one.parameters()) and id(unwrapped(one)) not in known
        )
        return f"a module that is trained ({type(one).__name__})" if is_trained else ""
    if isinstance(one, Optimizer | LRScheduler):
        inner = getattr(one, "optimizer", None) if isinstance(one, Optimizer) else None
        return "" if id(inner) in known else f"{type(one).__name__}"
    if isinstance(one, torch.amp.grad_scaler.GradScaler):
        return type(one).__name__ if one.is_enabled() else ""
    if is_environment(one):
        return f"an environment ({type(one).__name__})"
    if hidden_state.is_iterator(one) and not isinstance(one, type):
        return f"an iterator ({type(one).__name__})"
    return ""
