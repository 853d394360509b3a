"""What a State needs of the moments before it, written down as the training goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer

from flor_plugins.hf import loaders
from flor_plugins.records.sections import RNG, TRAINER, Sections
from flor_plugins.state import rng
from flor_plugins.state.epoch_rng import EpochRng, Moment


@dataclass(slots=True)
class RngHistory(EpochRng):
    """The moments that a State of the HF Trainer needs, and how far the training has come.

    epoch: completed ones. batch: micro-batches of the present epoch that are drawn.
    validation, validation_generators: the global RNG and the other generators before the last
    evaluation.
    """

    epoch: int = 0
    batch: int = 0
    validation: Moment | None = None
    validation_generators: Mapping[str, Any] = field(default_factory=dict)

    def resume(self, sections: Sections, step: int) -> None:
        """Go on with what led to a State."""
        held, place = sections[RNG], sections[TRAINER]
        self.go_on(step, held.get("epoch"), held.get("epochs", ()))
        self.epoch, self.batch = place.get("epoch", 0), place.get("batch", 0)
        self.validation = held.get("validation")
        self.validation_generators = held.get("validation_generators", {})

    def begin_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Entry of `Trainer._run_epoch`: nothing of the epoch is drawn."""
        self.epoch, self.batch = epoch, 0
        self.begin(loaders.capture(trainer))

    def end_epoch(self, trainer: Trainer) -> None:
        """Note that the epoch is over.

        What it drew is needed again only to bring persistent workers to this moment.
        """
        if self.beginning is not None and loaders.are_persistent(trainer):
            self.earlier.append({**self.beginning, "epoch": self.epoch, "batches": self.batch})
        self.epoch, self.batch = self.epoch + 1, 0
        self.begin(None)

    def begin_validation(self, trainer: Trainer) -> None:
        """Entry of `Trainer.evaluate`."""
        self.validation = rng.capture()
        self.validation_generators = rng.capture_generators(loaders.generators(trainer))

    def moments(self, batch: int) -> dict[str, Any]:
        """Return what goes into a State's section of the RNG beside the present moment."""
        found = EpochRng.moments(self, batch)
        if self.validation is not None:
            found.update(
                validation=self.validation, validation_generators=self.validation_generators
            )
        return found
