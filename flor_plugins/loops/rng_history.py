"""What a State needs of the moments before it, written down as the loops go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.records.sections import LOOP, RNG, Sections
from flor_plugins.state.epoch_rng import EpochRng, Moment


@dataclass(slots=True)
class RngHistory(EpochRng):
    """The moments that a State of a loop needs, and how far the training has come.

    epoch: iterations of the main loop that are done. inner: how many loops have begun in the
    present one. batch: items that the present inner one has given. main: `loaders.capture` of
    the main loop's beginning, where it draws its items. variables: those of the present epoch's
    beginning.
    """

    epoch: int = 0
    inner: int = 0
    batch: int = 0
    main: Moment | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def resume(self, sections: Sections, step: int) -> None:
        """Go on with what led to a State. Its epoch begins again: no loop inside has begun."""
        held, moments = sections[LOOP], sections[RNG]
        self.go_on(step, moments.get("epoch"), ())
        self.main, self.epoch, self.variables = (
            moments.get("main"),
            held["epoch"],
            held["beginning"],
        )

    def begin_epoch(self, epoch: int, moment: Moment, variables: Mapping[str, Any]) -> None:
        """Nothing of the epoch is drawn, and nothing of its body is run."""
        self.epoch, self.inner, self.batch, self.variables = epoch, 0, 0, variables
        self.begin(moment)

    def place(self) -> dict[str, Any]:
        """Return what goes into a State's section of the loop."""
        beginning = self.variables if self.batch else {}
        place = {"epoch": self.epoch, "inner": self.inner, "batch": self.batch}
        return {**place, "beginning": beginning}

    def moments(self, batch: int) -> dict[str, Any]:
        """Return what goes into a State's section of the RNG beside the present moment."""
        found = {} if self.main is None else {"main": self.main}
        return {**found, **EpochRng.moments(self, batch)}
