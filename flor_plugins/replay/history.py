"""What a run has recorded, as a replay compares with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.records import Level, Phase, Position, Row, Run
from flor_plugins.store.journal import read_run
from flor_plugins.store.values import encode_value

Key = tuple[Position, Phase, Level]


@dataclass(slots=True)
class History:
    """values: recorded ones by place, encoded. present: (metric, position) that any writer has already."""

    values: dict[Key, dict[str, Any]] = field(default_factory=dict)
    present: set[tuple[str, Position]] = field(default_factory=set)

    def at(self, row: Row) -> Mapping[str, Any]:
        """What was recorded there. An evaluation every n steps is the epoch's, too, where it ends one."""
        found = self.values.get((row.position, row.phase, row.level))
        if found is None and row.phase == "validation":
            found = self.values.get((row.position, row.phase, "step"))
        return found or {}


def history_of(run: Run) -> History:
    """Read all journals of a run."""
    history = History()
    for writer, row in read_run(run.path):
        history.present.update((name, row.position) for name in row.values)
        if writer.startswith("record"):
            values = {name: encode_value(value, run.path / "media") for name, value in row.values.items()}
            history.values.setdefault((row.position, row.phase, row.level), {}).update(values)
    return history
