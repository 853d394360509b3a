"""An interrupted run that is resumed: from which State, and what it records once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flor_plugins.records import JsonObject, Level, Phase, Position, Row, Run
from flor_plugins.records.sections import TIMELINE
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.reserved_names import is_measured
from flor_plugins.store.metrics.value_codec import encode_value


@dataclass(slots=True)
class Resumption:
    """An interrupted run and the State from which it is resumed.

    again: rows that were recorded after that State, by step; the resumed run makes them again,
    and they are compared. (By step: what an exception cut short stands at a position whose
    epoch was not known to be over.) damaged: what was wrong with later checkpoints.
    is_restored: the training has come to the State.
    """

    run: Run
    position: Position
    sections: JsonObject
    again: dict[tuple[int, Phase, Level], JsonObject] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    is_restored: bool = False

    def compare(self, row: Row, media: Path) -> str | None:
        """Return what is not as it was recorded before the interruption; None where all is."""
        recorded = self.again.pop((row.position.step, row.phase, row.level), {})
        for name in sorted(recorded.keys() & row.values.keys()):
            value = encode_value(row.values[name], media)
            if value != recorded[name] and not is_measured(name):
                return (
                    f"{name} at {row.position} was {recorded[name]!r} before the interruption "
                    f"and is {value!r} after it"
                )
        return None

    def unfinished(self) -> Iterator[str]:
        """Yield what a resumed run that has finished did not come to."""
        if not self.is_restored:
            yield "the interrupted run was to go on, and this training never came to where it stood"
        elif self.again:
            yield (
                f"recorded before the interruption and not again: values of step "
                f"{min(self.again)[0]} and later ones"
            )

    def take_out(self, journal: Journal, media: Path) -> None:
        """Remove the rows after the State from the journal, so that each value stands there once.

        Also what came after the training (trainer.test, trainer.predict): its end will come again.
        """
        here = self.sections[TIMELINE]["rows_here"]

        def is_after(row: Row) -> bool:
            nonlocal here
            if row.position == self.position:
                here -= 1
                return here < 0  # open when the State was taken: it is made again
            return row.position > self.position

        for row in journal.take_out(is_after):
            values = {name: encode_value(value, media) for name, value in row.values.items()}
            self.again.setdefault((row.position.step, row.phase, row.level), {}).update(values)
        for later in journal.path.parent.glob(f"{journal.path.stem}-*"):
            later.unlink()
