"""What a run has recorded, as a replay compares with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flor_plugins.records import Level, Phase, Position, Row, Run
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.metrics.row_source import SourcedRow
from flor_plugins.store.metrics.value_codec import encode_value

RowPlace = tuple[Position, Phase, Level]
# metric to the digests that its hook of today is known by; None among them: values without one
# count, too
HookDigests = Mapping[str, Collection[str | None]]


@dataclass(slots=True)
class RecordedValues:
    """The values that a run has.

    values: recorded ones by place, encoded. present: (metric, position) that has a value
    already, by the recording or by the hook of today; rows: (metric, place) that has.
    """

    values: dict[RowPlace, dict[str, Any]] = field(default_factory=dict)
    present: set[tuple[str, Position]] = field(default_factory=set)
    rows: set[tuple[str, RowPlace]] = field(default_factory=set)

    def note(self, row: Row, names: Iterable[str]) -> None:
        """These have a value in that row."""
        self.present.update((name, row.position) for name in names)
        self.rows.update((name, (row.position, row.phase, row.level)) for name in names)

    def at(self, row: Row) -> Mapping[str, Any]:
        """What was recorded there.

        An evaluation every n steps is the epoch's, too, where it ends one.
        """
        found = self.values.get((row.position, row.phase, row.level))
        if found is None and row.phase == "validation":
            found = self.values.get((row.position, row.phase, "step"))
        return found or {}


def history_of(
    run: Run, hooks: HookDigests | None = None, rows: Iterable[SourcedRow] | None = None
) -> RecordedValues:
    """What all journals of a run say.

    hooks: as in `of_today`. rows: those journals, if they were read already.
    """
    history, media = RecordedValues(), run.path / "media"
    for source, row in of_today(read_run(run.path) if rows is None else rows, hooks or {}):
        history.note(row, row.values)
        if not source.is_replay:
            values = {name: encode_value(value, media) for name, value in row.values.items()}
            history.values.setdefault((row.position, row.phase, row.level), {}).update(values)
    return history


def looked_for(rows: Iterable[SourcedRow], hooks: HookDigests) -> set[tuple[str, Position]]:
    """Return (metric, position) at which a replay with the sources of today has run the code.

    Whether it logged the metric there or not.
    """
    return {
        (name, row.position)
        for _, row in rows
        for name in row.values.get(ASKED, ())
        if row.hook in hooks.get(name, ())
    }


def of_today(rows: Iterable[SourcedRow], hooks: HookDigests) -> list[SourcedRow]:
    """Leave out the values that an earlier source of a hook gave in a replay.

    A value is known by run (and so by its code), position, metric and the source of its hook.
    What the run itself logged is never taken out: it was there when it trained, and is not
    computed again. A value that a diverged replay gave stays, too, as long as its hook is the
    same: once more would give it once more. A metric without an entry in `hooks` keeps all its
    values. Rows stay, with less in them: they also say where the run has been.
    """
    kept = []
    for source, row in rows:
        if source.is_replay:
            values = {
                name: one
                for name, one in row.values.items()
                if row.hook in hooks.get(name, (row.hook,))
            }
            row = row if len(values) == len(row.values) else replace(row, values=values)
        kept.append((source, row))
    return kept
