"""What a State needs of the moments before it, written down as the loops go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.records.sections import LOOP, RNG


@dataclass(slots=True)
class RngHistory:
    """epoch: iterations of the main loop that are done. inner: how many loops have begun in the
    present one.

    batch: items that the present inner one has given. main: `loading.capture` of the main
    loop's beginning, where it draws its items. beginning: that of the present epoch, with the
    `variables` at that time. previous: the RNG at the step before the present one; known only
    where a checkpoint is near."""

    epoch: int = 0
    inner: int = 0
    batch: int = 0
    main: Mapping[str, Any] | None = None
    beginning: Mapping[str, Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    previous: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> RngHistory:
        """The trail that led to a State; a restored training goes on with it."""
        held, moments = sections[LOOP], sections[RNG]
        return cls(
            held["epoch"],
            held["inner"],
            held["batch"],
            moments.get("main"),
            moments.get("epoch"),
            held["beginning"],
        )

    def begin_epoch(
        self, epoch: int, moment: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> None:
        """Nothing of the epoch is drawn, and nothing of its body is run."""
        self.epoch, self.inner, self.batch, self.previous = epoch, 0, 0, None
        self.beginning, self.variables = moment, variables

    def place(self) -> dict[str, Any]:
        """What goes into a State's section "loop"."""
        beginning = self.variables if self.batch else {}
        return {
            "epoch": self.epoch,
            "inner": self.inner,
            "batch": self.batch,
            "beginning": beginning,
        }

    def moments(self) -> dict[str, Any]:
        """What goes into a State's section "rng" beside the present moment."""
        found = {} if self.main is None else {"main": self.main}
        return (
            {**found, "epoch": self.beginning, "previous": self.previous} if self.batch else found
        )
