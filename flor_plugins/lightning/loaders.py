"""The loaders of a Lightning fit: what they have drawn, and the way back to a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from flor_plugins.state import loader_iteration, rng


def sources(trainer: pl.Trainer) -> Iterator[tuple[str, object]]:
    """Yield the loaders of a fit, by name."""
    loops = {"train": trainer.fit_loop, "validation": trainer.fit_loop.epoch_loop.val_loop}
    for name, loop in loops.items():
        combined = loop._combined_loader
        for index, loader in enumerate(combined.flattened if combined is not None else []):
            yield f"{name}.{index}", loader


def generators(trainer: pl.Trainer) -> dict[str, rng.RandomGenerator]:
    """Return the generators that belong to the loaders, to the module or to the data module."""
    module, data = trainer.lightning_module, cast(Any, trainer).datamodule
    return rng.loader_generators([*sources(trainer), ("module", module), ("data", data)])


def capture(trainer: pl.Trainer) -> dict[str, Any]:
    """Return all that the next batches depend on: the global RNG and the other generators."""
    return {"now": rng.capture(), "generators": rng.capture_generators(generators(trainer))}


def restore(trainer: pl.Trainer, moment: Mapping[str, Any]) -> None:
    """Put `capture`'s result back. RNG comes last."""
    rng.restore_generators(generators(trainer), moment["generators"])
    rng.restore(moment["now"])


# ---- the training loaders


def training_loaders(trainer: pl.Trainer) -> list[Any]:
    """Return the loaders of the training, in their order."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def are_persistent(trainer: pl.Trainer) -> bool:
    """Tell whether workers of a training loader live on from epoch to epoch."""
    return any(map(loader_iteration.has_persistent_workers, training_loaders(trainer)))


def fetches_ahead(trainer: pl.Trainer) -> bool:
    """Tell whether the next batch is drawn already.

    Lightning draws ahead where it can't know otherwise which batch is the last.
    """
    fetcher = trainer.fit_loop._data_fetcher
    return isinstance(fetcher, _PrefetchDataFetcher) and fetcher.length is None


def begins_again(trainer: pl.Trainer, batch: int) -> bool:
    """Tell whether a loader that is shorter than others is at its end.

    It is begun again then, and draws the order of its data.
    """
    combined = trainer.fit_loop._combined_loader
    is_cycle = combined is not None and combined._mode == "max_size_cycle"
    loaders = training_loaders(trainer) if batch and is_cycle else []
    lengths = [sized_len(loader) for loader in loaders] if len(loaders) > 1 else []
    return any(length is not None and batch % length == 0 for length in lengths)


# ---- those of validation


def validation_loaders(trainer: pl.Trainer) -> Iterator[tuple[str, object]]:
    """Yield those of the `sources` that are no training loaders."""
    return ((name, loader) for name, loader in sources(trainer) if name.startswith("validation."))


def evaluated(trainer: pl.Trainer) -> list[str]:
    """Return the names of the validation loaders whose persistent workers run."""
    has_running = loader_iteration.has_running_workers
    return [name for name, loader in validation_loaders(trainer) if has_running(loader)]


def restore_evaluated(trainer: pl.Trainer, names: Iterable[str]) -> None:
    """Start the persistent workers of these validation loaders, end those of all others.

    A loader draws a seed when it starts them, and never again.
    """
    for name, loader in validation_loaders(trainer):
        if loader_iteration.has_persistent_workers(loader):
            loader_iteration.run_workers(loader, is_running=name in names)


def val_dataloader(trainer: pl.Trainer) -> object:
    """Return the validation loader of a fit (a list where there are several), or None.

    Where several processes train it has all of the data, not this one's share: as in a replay
    by one process.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader
    if combined is None:
        return None
    if trainer.world_size > 1:
        combined = CombinedLoader(loop._data_source.dataloader(), "sequential")
    loaders = combined.flattened
    return loaders[0] if len(loaders) == 1 else loaders
