"""What a State needs of the moments before it, written down as the training goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher, _PrefetchDataFetcher

from flor_plugins.lightning import state
from flor_plugins.records.sections import RNG
from flor_plugins.state import rng
from flor_plugins.state.loader_iteration import has_persistent_workers

RngState = Mapping[str, Any]


@dataclass(slots=True)
class RngHistory:
    """setup: the RNG before the loaders were made. iterator: the moment before their first
    iterator, which an epoch after the first has only if its loaders are new. beginning: of the
    present epoch. earlier: the beginnings of all epochs before, where workers persist. turns:
    the RNG at the batches of this epoch at which the shorter ones of several loaders began
    again. previous: the RNG one batch ago; known only where a checkpoint is near. validation:
    the moment before the last validation."""

    setup: RngState | None = None
    iterator: RngState | None = None
    beginning: RngState | None = None
    earlier: list[RngState] = field(default_factory=list)
    turns: dict[int, Any] = field(default_factory=dict)
    previous: RngState | None = None
    validation: RngState | None = None

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> RngHistory:
        """The trail that led to a State; a restored training goes on with it."""
        held, beginning = sections[RNG], state.beginning_of(sections)
        inside = "epoch" in held  # where this epoch is begun already
        return cls(
            setup=held.get("setup"),
            iterator=None if inside else beginning["iterator"],
            beginning={**beginning, "turns": dict(beginning["turns"])} if inside else None,
            turns={} if inside else dict(beginning.get("turns", {})),
            earlier=list(held.get("epochs", ())),
            validation=held.get("validation_moment"),
        )

    def set_up(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop.setup_data`: it asks for the loaders if there are none, or if
        new ones are due.
        """
        loop = trainer.fit_loop
        if loop._combined_loader is None or loop._should_reload_train_dl:
            self.setup = rng.capture()

    def make_iterator(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop._load_combined_loader_states`: loaders are made, their first
        iterator comes next.
        """
        self.iterator, self.earlier = state.moment(trainer), []
        self.beginning = None

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop.advance`; the batch progress is still that of the epoch before."""
        loop = trainer.fit_loop
        if self.beginning is not None and has_persistent(trainer):
            self.earlier.append(
                {**self.beginning, "batches": loop.epoch_loop.batch_progress.current.ready}
            )
        epoch = trainer.current_epoch
        self.beginning = {
            "epoch": epoch,
            "iterator": self.iterator,
            "turns": self.turns,
            **state.moment(trainer),
        }
        self.iterator, self.previous, self.turns = None, None, {}

    def step(self, trainer: pl.Trainer, *, is_near: bool) -> None:
        """Entry of `_TrainingEpochLoop.advance`; is_near: a checkpoint may be due at the
        next one.
        """
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.beginning is not None and begins_again(trainer, batch):
            self.beginning["turns"][batch] = rng.capture()
        self.previous = rng.capture() if is_near and fetches_ahead(trainer) else None

    def is_complete(self, trainer: pl.Trainer) -> bool:
        """Is everything known that a State inside an epoch needs?"""
        fetcher = trainer.fit_loop._data_fetcher
        if self.beginning is None or isinstance(fetcher, _DataLoaderIterDataFetcher):
            return False  # the module draws its batches itself, nobody knows how many
        return self.previous is not None or not fetches_ahead(trainer)

    def section(self, batch: int) -> dict[str, Any]:
        """What goes into a State's section "rng" beside the present moment.

        batch: micro-batches done in this epoch.
        """
        found: dict[str, Any] = {"setup": self.setup}
        if self.validation is not None:
            found.update(validation=self.validation["now"], validation_moment=self.validation)
        if self.earlier:
            found["epochs"] = list(self.earlier)
        if batch:
            found.update(epoch=self.beginning, previous=self.previous)
        elif self.beginning is not None and self.beginning["iterator"] is not None:
            found["iterator"] = self.beginning["iterator"]
        return found


def begins_again(trainer: pl.Trainer, batch: int) -> bool:
    """Is a loader that is shorter than others at its end? It is begun again then, and draws
    the order of its data.
    """
    combined = trainer.fit_loop._combined_loader
    if (
        not batch
        or combined is None
        or combined._mode != "max_size_cycle"
        or len(combined.flattened) < 2
    ):
        return False
    lengths = [sized_len(loader) for loader in combined.flattened]
    return any(length is not None and batch % length == 0 for length in lengths)


def has_persistent(trainer: pl.Trainer) -> bool:
    """Do workers of a training loader live on from epoch to epoch?"""
    combined = trainer.fit_loop._combined_loader
    return combined is not None and any(
        has_persistent_workers(loader) for loader in combined.flattened
    )


def fetches_ahead(trainer: pl.Trainer) -> bool:
    """Is the next batch drawn already? Lightning does so where it can't know otherwise which
    one is the last.
    """
    fetcher = trainer.fit_loop._data_fetcher
    return isinstance(fetcher, _PrefetchDataFetcher) and fetcher.length is None
