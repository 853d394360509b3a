"""The loaders of an HF training: what they have drawn, and the way back to a moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import prepare_data_loader
from transformers import Trainer

from flor_plugins.state import loader_iteration, rng
from flor_plugins.state.epoch_rng import Moment
from flor_plugins.state.method_wrapper import Method, MethodWrapper


def sources(trainer: Trainer) -> Iterator[tuple[str, object]]:
    """Yield whatever of a training may own generators, by name: loaders, data sets, the model."""
    handler = trainer.callback_handler
    yield "train", handler.train_dataloader
    # before its loader, which does not exist before the first evaluation
    held: Any = trainer.eval_dataset
    for name, dataset in held.items() if isinstance(held, dict) else [("eval", held)]:
        yield f"validation.{name}", dataset
    yield "validation", handler.eval_dataloader
    yield "model", trainer.model


def generators(trainer: Trainer) -> dict[str, rng.RandomGenerator]:
    """Return every generator of the training but the global ones, by a stable name."""
    return rng.loader_generators(sources(trainer))


# ---- a moment of the training loader


def capture(trainer: Trainer) -> dict[str, Any]:
    """Return all that the next batches depend on.

    These are the global RNG, the other generators, and the loader's own counters.
    """
    return {
        "now": rng.capture(),
        "generators": rng.capture_generators(generators(trainer)),
        "loader": loader_iteration.loader_state(trainer.callback_handler.train_dataloader),
    }


def restore(trainer: Trainer, moment: Moment) -> None:
    """Put `capture`'s result back. RNG comes last: the rest may draw."""
    loader_iteration.restore_loader(trainer.callback_handler.train_dataloader, moment["loader"])
    rng.restore_generators(generators(trainer), moment["generators"])
    rng.restore(moment["now"])


def is_exhausted(trainer: Trainer) -> bool:
    """Tell whether the epoch has given its last batch.

    Accelerate fetches one ahead, so it knows without a length, too.
    """
    return bool(getattr(trainer.callback_handler.train_dataloader, "end_of_dataloader", False))


# ---- workers that outlive an epoch


def are_persistent(trainer: Trainer) -> bool:
    """Tell whether the random state of the training workers reaches from epoch to epoch."""
    return loader_iteration.has_persistent_workers(trainer.callback_handler.train_dataloader)


def drain(trainer: Trainer, epochs: list[Moment]) -> None:
    """Bring persistent workers to where they were: draw the data of all earlier epochs again.

    epochs: of each its `capture`d beginning, its number ("epoch") and how many batches it drew
    ("batches").
    """
    if not are_persistent(trainer):
        return
    loader: Any = trainer.callback_handler.train_dataloader
    loader_iteration.end_workers(loader_iteration.base(loader))
    for epoch in epochs:
        restore(trainer, epoch)
        set_epoch(loader, epoch["epoch"])
        loader_iteration.skip(iter(loader), epoch["batches"], 0, None)


def set_epoch(loader: Any, epoch: int) -> None:
    """As `Trainer._run_epoch` says it to the loader and to what is below accelerate's shards."""
    below = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    for part in (loader, below):
        announce = getattr(part, "set_epoch", None)
        if announce is not None:
            announce(epoch)


# ---- those of evaluation


def evaluated(trainer: Trainer) -> list[str]:
    """Return the names of the persistent evaluation loaders whose workers run."""
    has_running = loader_iteration.has_running_workers
    return [name for name, loader in _kept(trainer).items() if has_running(loader)]


def restore_evaluated(trainer: Trainer, names: list[str]) -> None:
    """Start the workers of these evaluation loaders, end those of all others.

    The first use of a loader draws a seed, later ones don't.
    """
    for name, loader in _kept(trainer).items():
        if name not in names:
            loader_iteration.end_workers(loader)
    for name in names:
        loader = trainer.get_eval_dataloader(None if name == "eval" else name)
        loader_iteration.run_workers(loader_iteration.base(loader), is_running=True)


def val_dataloader(trainer: Trainer) -> object:
    """Make an evaluation loader for hooks.

    Not the one that the trainer keeps where workers persist: its first use draws a seed, a
    later one doesn't. Where several processes train it has all of the data, not this one's
    share: as in a replay by one process.
    """
    kept, wrapped = getattr(trainer, "_eval_dataloaders", {}), MethodWrapper()
    device = trainer.accelerator.device

    def prepare(original: Method, loader: Any, *args: Any, **kwargs: Any) -> object:
        """As accelerate does in a process that is alone."""
        return prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True
        )

    trainer._eval_dataloaders = {}
    if trainer.args.world_size > 1:
        wrapped.around(trainer.accelerator, "prepare", prepare)
    try:
        return trainer.get_eval_dataloader()
    finally:
        wrapped.undo()
        trainer._eval_dataloaders = kept


def end_workers(trainer: Trainer) -> None:
    """Stop all persistent workers of a trainer that is no longer needed.

    Found by the garbage collector together with their queues they could not be told, and were
    waited for.
    """
    training = loader_iteration.base(trainer.callback_handler.train_dataloader)
    for loader in (training, *_kept(trainer).values()):
        loader_iteration.end_workers(loader)


def _kept(trainer: Trainer) -> dict[str, Any]:
    """Return the evaluation loaders that the trainer keeps, below accelerate's."""
    kept = getattr(trainer, "_eval_dataloaders", {})
    return {name: loader_iteration.base(loader) for name, loader in kept.items()}
