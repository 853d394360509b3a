"""A hook must not disturb the training it looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from flor_plugins.errors import HookError
from flor_plugins.hooks.metric import Metric
from flor_plugins.records import Position
from flor_plugins.state import rng


@contextmanager
def undisturbed(
    model: nn.Module,
    hook: Metric,
    position: Position,
    generators: Mapping[str, rng.RandomGenerator] | None = None,
) -> Iterator[None]:
    """Undo what the block does to RNG, modes, buffers, requires_grad and gradients.

    generators: those that loaders and samplers own; a hook that iterates over data draws from
    them, too.

    The global generators are seeded from the hook's name and position, so that a hook that
    draws gets the same numbers live and in hindsight. Raises HookError when the block changed
    a weight: that can't be undone without a copy of the model.
    """
    modes = [(part, part.training) for part in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    parameters = [(p, p.requires_grad, p._version, p.grad) for p in model.parameters()]
    copies = [None if g is None else g.clone() for *_, g in parameters] if hook.grad else None
    if hook.at == "epoch":
        model.eval()
    own = dict(generators or {})
    states = rng.capture_generators(own)
    with rng.kept(), torch.set_grad_enabled(hook.grad):
        rng.seed(_seed(hook.name, position))
        try:
            yield
        finally:
            rng.restore_generators(own, states)
            _put_back(modes, buffers)
            changed = [
                i
                for i, (p, _, version, grad) in enumerate(parameters)
                if p._version != version or (copies is None and p.grad is not grad)
            ]
            for i, (p, requires_grad, _, grad) in enumerate(parameters):
                p.requires_grad_(requires_grad)
                p.grad = grad if copies is None else copies[i]
    if changed:
        raise HookError(
            f"{hook.place}: metric {hook.name!r} changed weights or gradients at {position} "
            f"({len(changed)} parameters). Work on a copy (copy.deepcopy(ctx.model)), "
            f"or say @flor.metric(grad=True) if it only needs gradients of its own."
        )


def _put_back(
    modes: list[tuple[nn.Module, bool]], buffers: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    for part, training in modes:
        part.training = training
    with torch.no_grad():
        for buffer, copy in buffers:
            buffer.copy_(copy)


def _seed(name: str, position: Position) -> int:
    digest = hashlib.sha256(f"{name}@{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
