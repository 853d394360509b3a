"""Data loaders at the beginning and in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from flor_plugins.state import rng


def has_persistent_workers(loader: object) -> bool:
    """Tell whether the workers of this loader live on from epoch to epoch.

    They have random state that nobody else sees.

    A worker is seeded when it starts; one that persists never again
    (torch/utils/data/_utils/worker.py, `_ResumeIteration`).
    """
    return bool(getattr(loader, "persistent_workers", False) and getattr(loader, "num_workers", 0))


def has_running_workers(loader: object) -> bool:
    """Tell whether the persistent workers of this loader have been started."""
    return getattr(loader, "_iterator", None) is not None


def end_workers(loader: Any) -> None:
    """Stop persistent workers: the next iterator of the loader starts new ones, seeded anew."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


def run_workers(loader: Any, *, is_running: bool) -> None:
    """Start persistent workers, or end them.

    The first iterator of a loader draws a seed, later ones don't.
    """
    if not is_running:
        end_workers(loader)
    elif not has_running_workers(loader):
        iter(loader)


def skip(
    iterator: Iterator[object], batches: int, ahead: int, previous: Mapping[str, Any] | None
) -> None:
    """Draw `batches` batches and throw them away; nothing is computed with them.

    Drawing is the only way that leaves workers and generators as they were, random transforms
    included.
    ahead: the last so many are drawn under `previous`, the RNG state at the entry of the step
    before: a loader that fetches ahead had drawn them from there.
    """
    for number in range(batches):
        if number == batches - ahead and previous is not None:
            rng.restore(dict(previous))
        next(iterator)


def once(act: Callable[[], object]) -> Callable[[], None]:
    """`act` at the first call only."""
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            act()

    return run


# ---- accelerate's loaders


def base(loader: Any) -> Any:
    """Return torch's loader below accelerate's."""
    return getattr(loader, "base_dataloader", loader)


def loader_state(loader: object) -> dict[str, Any]:
    """Return the counters of accelerate's loader and sampler.

    See `SeedableRandomSampler` in accelerate/data_loader.py.
    """
    sampler = _sampler(loader)
    generator = getattr(sampler, "generator", None)
    return {
        "iteration": getattr(loader, "iteration", None),
        "epoch": getattr(sampler, "epoch", None),
        "initial_seed": getattr(sampler, "initial_seed", None),
        "generator": None if generator is None else generator.get_state(),
    }


def restore_loader(loader: Any, state: Mapping[str, Any]) -> None:
    """Put `loader_state`'s result back."""
    sampler = _sampler(loader)
    if state["iteration"] is not None:
        loader.iteration = state["iteration"]
    if state["initial_seed"] is not None:
        sampler.initial_seed, sampler.epoch = state["initial_seed"], state["epoch"]
    if state["generator"] is not None:
        if sampler.generator is None:
            sampler.generator = torch.Generator()
        sampler.generator.set_state(state["generator"])


def _sampler(loader: object) -> Any:
    """The sampler below accelerate's shards (accelerate/data_loader.py, `BatchSamplerShard`)."""
    batches = getattr(loader, "batch_sampler", None)
    while batches is not None and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)
