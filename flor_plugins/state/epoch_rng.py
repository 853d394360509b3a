"""What a State needs of the random numbers of the moments before it, in every framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.state import rng

Moment = Mapping[str, Any]  # the state of all generators at one time, and of the loaders that draw


@dataclass(slots=True)
class EpochRng:
    """The moments of the present epoch, and of those before it.

    beginning: of the present epoch; None where nobody can come to it again. earlier: the
    beginnings of all epochs before, where workers persist. previous: the RNG at the step before
    the present one; known only where a checkpoint is near. step: optimizer updates at the last
    boundary.
    """

    beginning: Moment | None = None
    earlier: list[Moment] = field(default_factory=list)
    previous: Moment | None = None
    step: int = 0

    def begin(self, moment: Moment | None) -> None:
        """An epoch begins at a moment, or at none that anybody can come to again."""
        self.beginning, self.previous = moment, None

    def go_on(self, step: int, beginning: Moment | None, earlier: Iterable[Moment]) -> None:
        """Stand where a State was taken."""
        self.begin(beginning)
        self.step, self.earlier = step, list(earlier)

    def enter_step(self, *, is_near: bool) -> None:
        """Note the RNG at the entry of a step; is_near: a checkpoint may be due at the next one."""
        self.previous = rng.capture() if is_near else None

    def has_moved(self, step: int) -> bool:
        """Were updates made since the last boundary? This one is the last from here on."""
        before, self.step = self.step, step
        return step != before

    @property
    def is_complete(self) -> bool:
        """Tell whether everything is known that a State inside an epoch needs."""
        return self.beginning is not None and self.previous is not None

    def moments(self, batch: int) -> dict[str, Any]:
        """Return what goes into a State's section of the RNG beside the present moment.

        batch: micro-batches of the epoch that are drawn.
        """
        found: dict[str, Any] = {"epochs": list(self.earlier)} if self.earlier else {}
        return {**found, "epoch": self.beginning, "previous": self.previous} if batch else found
