"""What a State needs of the moments before it, written down as the training goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer

from flor_plugins.hf import loaders
from flor_plugins.records.sections import RNG, TRAINER
from flor_plugins.state import rng


@dataclass(slots=True)
class RngHistory:
    """epoch: completed ones. batch: micro-batches of the present epoch that are drawn.

    beginning: `loading.capture` of this epoch's start. earlier: those of all epochs before,
    where workers persist. previous: the RNG at the update before the present one; known only
    where a checkpoint is near. validation, validation_generators: the global RNG and the other
    generators before the last evaluation."""

    epoch: int = 0
    batch: int = 0
    beginning: Mapping[str, Any] | None = None
    earlier: list[Mapping[str, Any]] = field(default_factory=list)
    previous: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None
    validation_generators: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> RngHistory:
        """The trail that led to a State; a restored training goes on with it."""
        held = sections[RNG]
        return cls(
            epoch=sections[TRAINER].get("epoch", 0),
            batch=sections[TRAINER].get("batch", 0),
            beginning=held.get("epoch"),
            earlier=list(held.get("epochs", ())),
            validation=held.get("validation"),
            validation_generators=held.get("validation_generators", {}),
        )

    def begin_epoch(self, trainer: Trainer, epoch: int) -> None:
        """Entry of `Trainer._run_epoch`: nothing of the epoch is drawn."""
        self.epoch, self.batch, self.previous = epoch, 0, None
        self.beginning = loaders.capture(trainer)

    def end_epoch(self, trainer: Trainer) -> None:
        """The epoch is over; what it drew is needed again only to bring persistent workers
        to this moment.
        """
        if self.beginning is not None and loaders.are_persistent(trainer):
            self.earlier.append({**self.beginning, "epoch": self.epoch, "batches": self.batch})
        self.epoch, self.batch, self.beginning, self.previous = self.epoch + 1, 0, None, None

    def step(self, *, is_near: bool) -> None:
        """Entry of `get_batch_samples`; is_near: a checkpoint is due at the next one."""
        self.previous = rng.capture() if is_near else None

    def evaluate(self, trainer: Trainer) -> None:
        """Entry of `Trainer.evaluate`."""
        self.validation = rng.capture()
        self.validation_generators = rng.capture_generators(loaders.generators(trainer))

    @property
    def is_complete(self) -> bool:
        """Is everything known that a State inside an epoch needs?"""
        return self.beginning is not None and self.previous is not None

    def section(self) -> dict[str, Any]:
        """What goes into a State's section "rng" beside the present moment."""
        found: dict[str, Any] = {}
        if self.validation is not None:
            found.update(
                validation=self.validation, validation_generators=self.validation_generators
            )
        if self.earlier:
            found["epochs"] = list(self.earlier)
        if self.batch:
            found.update(epoch=self.beginning, previous=self.previous)
        return found
