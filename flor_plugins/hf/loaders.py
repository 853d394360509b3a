"""The loaders of an HF training: what they have drawn, and how they are brought to a moment
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import Trainer

from flor_plugins.state import loader_iteration, rng


def sources(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Whatever of a training may own generators, by name: loaders, data sets, the model."""
    handler = trainer.callback_handler
    yield "train", handler.train_dataloader
    held = (
        trainer.eval_dataset
    )  # before its loader, which does not exist before the first evaluation
    for name, dataset in held.items() if isinstance(held, dict) else [("eval", held)]:
        yield f"validation.{name}", dataset
    yield "validation", handler.eval_dataloader
    yield "model", trainer.model


def generators(trainer: Trainer) -> dict[str, rng.RandomGenerator]:
    """Every generator of the training but the global ones, by a stable name."""
    return rng.loader_generators(
        (name, owner) for name, owner in sources(trainer) if owner is not None
    )


# ---- a moment of the training loader


def capture(trainer: Trainer) -> dict[str, Any]:
    """All that the next batches depend on: global RNG, generators, the loader's own counters."""
    return {
        "now": rng.capture(),
        "generators": rng.capture_generators(generators(trainer)),
        "loader": loader_iteration.loader_state(trainer.callback_handler.train_dataloader),
    }


def restore(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Put `capture`'s result back. RNG comes last: the rest may draw."""
    loader_iteration.restore_loader(trainer.callback_handler.train_dataloader, state["loader"])
    rng.restore_generators(generators(trainer), state["generators"])
    rng.restore(state["now"])


def is_exhausted(trainer: Trainer) -> bool:
    """Has the epoch given its last batch? Accelerate fetches one ahead, so it knows without
    a length, too.
    """
    return bool(getattr(trainer.callback_handler.train_dataloader, "end_of_dataloader", False))


# ---- workers that outlive an epoch


def are_persistent(trainer: Trainer) -> bool:
    """Does the random state of the training loader's workers reach from epoch to epoch?"""
    return loader_iteration.has_persistent_workers(trainer.callback_handler.train_dataloader)


def drain(trainer: Trainer, epochs: list[Mapping[str, Any]]) -> None:
    """Bring persistent workers to where they were: draw the data of all earlier epochs again.

    epochs: of each its `capture`d beginning, its number ("epoch") and how many batches it drew
    ("batches")."""
    if not are_persistent(trainer):
        return
    loader: Any = trainer.callback_handler.train_dataloader
    loader_iteration.end_workers(_base(loader))
    for one in epochs:
        restore(trainer, one)
        set_epoch(loader, one["epoch"])
        loader_iteration.skip(iter(loader), one["batches"], 0, None)


def set_epoch(loader: Any, epoch: int) -> None:
    """As `Trainer._run_epoch` says it to the loader and to what is below accelerate's shards."""
    below = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    for part in (loader, below):
        announce = getattr(part, "set_epoch", None)
        if announce is not None:
            announce(epoch)


def evaluated(trainer: Trainer) -> list[str]:
    """The persistent evaluation loaders whose workers run: the first use of a loader draws a
    seed, later ones don't.
    """
    made = getattr(trainer, "_eval_dataloaders", {})
    return [
        name
        for name, loader in made.items()
        if getattr(_base(loader), "_iterator", None) is not None
    ]


def restore_evaluated(trainer: Trainer, names: list[str]) -> None:
    """Start the workers of these evaluation loaders, end those of all others."""
    for name, loader in getattr(trainer, "_eval_dataloaders", {}).items():
        if name not in names:
            loader_iteration.end_workers(_base(loader))
    for name in names:
        loader = _base(trainer.get_eval_dataloader(None if name == "eval" else name))
        if getattr(loader, "_iterator", None) is None:
            iter(loader)


def end_workers(trainer: Trainer) -> None:
    """Stop all persistent workers of a trainer that is no longer needed.

    Found by the garbage collector together with their queues they could not be told, and were
    waited for."""
    for loader in (
        trainer.callback_handler.train_dataloader,
        *getattr(trainer, "_eval_dataloaders", {}).values(),
    ):
        loader_iteration.end_workers(_base(loader))


def _base(loader: Any) -> Any:
    """torch's loader below accelerate's."""
    return getattr(loader, "base_dataloader", loader)
