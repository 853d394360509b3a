"""RUN@epoch=3 and RUN@step=1200: a place of a run, as people write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from flor_plugins.errors import NoCheckpoint, UnknownRun
from flor_plugins.records import Checkpoint, Run


@dataclass(frozen=True, slots=True)
class RunReference:
    """A run, or one place of it. run: its name, its id or the beginning of its id."""

    run: str
    epoch: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        place = f"epoch={self.epoch}" if self.epoch is not None else f"step={self.step}"
        return self.run if self.epoch is None and self.step is None else f"{self.run}@{place}"


def parse_reference(text: str) -> RunReference:
    """The inverse of `str`.

    Raises UnknownRun when what follows the last @ looks like a place and is none.
    """
    run, at, place = text.rpartition("@")
    if not at or not re.match(r"\s*(epoch|step)|.*=", place):  # a name may hold an @, too
        return RunReference(text)
    found = re.fullmatch(r"(epoch|step)=(\d+)", place.strip())
    if found is None or not run:
        raise UnknownRun(
            f"{text!r} was given, and {place!r} is no place of a run. Write RUN@epoch=3 or "
            f"RUN@step=1200."
        )
    number = int(found[2])
    return (
        RunReference(run, epoch=number) if found[1] == "epoch" else RunReference(run, step=number)
    )


def checkpoint_at(run: Run, known: Sequence[Checkpoint], reference: RunReference) -> Checkpoint:
    """The checkpoint at that place, of those known; without a place the last one.

    Raises NoCheckpoint, which names those nearby and says how the place is reached.
    """
    fitting = [
        one
        for one in known
        if reference.epoch in (None, one.position.epoch)
        and reference.step in (None, one.position.step)
    ]
    if reference.epoch is not None:  # the end of that epoch, not a step after it
        fitting = [min(fitting, key=attrgetter("position"))] if fitting else []
    if fitting:
        return fitting[-1]
    there = "; ".join(str(one.position) for one in known) or "none"
    raise NoCheckpoint(
        f"run {run.name} ({run.run_id}) has no checkpoint at "
        f"{str(reference).rpartition('@')[2]}; it has {there}. "
        "Ask for one of those, or replay a metric there: a replay reaches every step from the "
        "checkpoint before it."
    )
