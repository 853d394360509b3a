"""What a State needs of the moments before it, written down as the training goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher

from flor_plugins.lightning import loaders
from flor_plugins.records.sections import RNG, Sections
from flor_plugins.state import rng
from flor_plugins.state.epoch_rng import EpochRng, Moment


@dataclass(slots=True)
class RngHistory(EpochRng):
    """The moments that a State of Lightning needs besides those of every framework.

    setup: the RNG before the loaders were made. iterator: the moment before their first
    iterator, which an epoch after the first has only if its loaders are new. turns: the RNG at
    the batches of this epoch at which the shorter ones of several loaders began again.
    validation: the moment before the last validation.
    """

    setup: Moment | None = None
    iterator: Moment | None = None
    turns: dict[int, Moment] = field(default_factory=dict)
    validation: Moment | None = None

    def resume(self, sections: Sections, step: int) -> None:
        """Go on with what led to a State."""
        held, beginning = sections[RNG], beginning_of(sections)
        turns, is_begun = dict(beginning.get("turns", {})), "epoch" in held
        begun = {**beginning, "turns": turns} if is_begun else None
        self.go_on(step, begun, held.get("epochs", ()))
        self.setup, self.validation = held.get("setup"), held.get("validation_moment")
        self.iterator = None if is_begun else beginning["iterator"]
        self.turns = {} if is_begun else turns

    def set_up(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop.setup_data`: it may make loaders."""
        loop = trainer.fit_loop
        if loop._combined_loader is None or loop._should_reload_train_dl:
            self.setup = rng.capture()

    def make_iterator(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop._load_combined_loader_states`: the first iterator comes next."""
        self.iterator = loaders.capture(trainer)
        self.earlier.clear()
        self.begin(None)

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """Entry of `FitLoop.advance`; the batch progress is still that of the epoch before."""
        if self.beginning is not None and loaders.are_persistent(trainer):
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self.earlier.append({**self.beginning, "batches": batches})
        place = {"epoch": trainer.current_epoch, "iterator": self.iterator, "turns": self.turns}
        self.begin({**place, **loaders.capture(trainer)})
        self.iterator, self.turns = None, {}

    def begin_batch(self, trainer: pl.Trainer, *, is_near: bool) -> None:
        """Entry of `_TrainingEpochLoop.advance`.

        is_near: a checkpoint may be due at the next one.
        """
        batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.beginning is not None and loaders.begins_again(trainer, batch):
            self.beginning["turns"][batch] = rng.capture()
        self.enter_step(is_near=is_near and loaders.fetches_ahead(trainer))

    def begin_validation(self, trainer: pl.Trainer) -> None:
        """Entry of the validation loop."""
        self.validation = loaders.capture(trainer)

    def is_complete_for(self, trainer: pl.Trainer) -> bool:
        """Tell whether everything is known that a State inside an epoch needs."""
        fetcher = trainer.fit_loop._data_fetcher
        if self.beginning is None or isinstance(fetcher, _DataLoaderIterDataFetcher):
            return False  # the module draws its batches itself, nobody knows how many
        return self.previous is not None or not loaders.fetches_ahead(trainer)

    def moments(self, batch: int) -> dict[str, Any]:
        """Return what goes into a State's section of the RNG beside the present moment.

        batch: micro-batches done in this epoch.
        """
        found = {"setup": self.setup, **EpochRng.moments(self, batch)}
        if self.validation is not None:
            found.update(validation=self.validation["now"], validation_moment=self.validation)
        if not batch and self.beginning is not None and self.beginning["iterator"] is not None:
            found["iterator"] = self.beginning["iterator"]
        return found


def beginning_of(sections: Sections) -> Moment:
    """Return the moment at which the epoch of a State began.

    It holds that of the loaders' first iterator, too, if they were new.
    """
    held = sections[RNG]
    return held.get("epoch") or {name: held.get(name) for name in ("iterator", "now", "generators")}
