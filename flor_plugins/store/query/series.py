"""The values of one run by metric and position.

Where several writers have one, it is decided here which of them counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from flor_plugins.records import Level, Phase, Row, Run
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.row_source import RowSource, SourcedRow

PHASES: tuple[Phase, ...] = ("train", "validation", "test")
# Plain tuples, not Position and a record: a long run has millions of them.
SeriesPlace = tuple[int, int]  # (epoch, step)
SeriesCell = tuple[Any, str, str | None]  # (value, source, verdict)
SeriesKey = tuple[Phase, str]


@dataclass(slots=True)
class MetricSeries:
    """All values of one metric in one phase of one run."""

    epochs: dict[SeriesPlace, SeriesCell] = field(default_factory=dict)
    steps: dict[SeriesPlace, SeriesCell] = field(default_factory=dict)

    def at_steps(self, places: Sequence[SeriesPlace]) -> list[SeriesCell | None]:
        """Its cell at each of the ascending places.

        An epoch-level value holds until the next one, and no longer than its epoch.
        """
        cells: list[SeriesCell | None] = []
        coming = iter(sorted(self.epochs))
        held, following = None, next(coming, None)
        for place in places:
            while following is not None and following <= place:
                held, following = following, next(coming, None)
            repeated = self.epochs[held] if held is not None and held[0] == place[0] else None
            cells.append(self.steps.get(place, repeated))
        return cells

    def at_epochs(self, places: Sequence[SeriesPlace]) -> list[SeriesCell | None]:
        """Return the first cell in the epoch of each place.

        Without one it is the step-level cell at that very place.
        """
        first: dict[int, SeriesCell] = {}
        for place in sorted(self.epochs):
            first.setdefault(place[0], self.epochs[place])
        return [first.get(place[0]) or self.steps.get(place) for place in places]


@dataclass(slots=True)
class RunSeries:
    """What was read of a run.

    steps and ends: what was recorded, whether or not a name was asked for it.

    ends: epoch to the first step recorded in it, which is where the epoch before it ended.
    """

    run: Run
    tracks: dict[SeriesKey, MetricSeries] = field(default_factory=dict)
    steps: set[SeriesPlace] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)

    def places(self, tracks: Collection[MetricSeries], level: Level) -> list[SeriesPlace]:
        """The ascending rows of a frame that shows these tracks at this level."""
        epochs = {place for track in tracks for place in track.epochs}
        if level == "step":
            return sorted(epochs.union(*(track.steps for track in tracks)))
        first: dict[int, int] = {}
        for epoch, step in sorted(epochs):
            first.setdefault(epoch, step)
        return sorted(first.items())


def collect(
    run: Run, names: Collection[str] | None = None, rows: Iterable[SourcedRow] | None = None
) -> RunSeries:
    """Read a run; rows: its journals, writer by writer, if they were read already.

    What was recorded counts before what was replayed, a newer replay before an older one.
    """
    found = RunSeries(run)
    read = read_run(run.path, names) if rows is None else rows
    by_source = [
        (source, [row for _, row in sourced]) for source, sourced in groupby(read, itemgetter(0))
    ]
    # The last one that writes a place counts.
    for source, written in sorted(by_source, key=_precedence):
        origin = str(source)
        for row in written:
            place = (row.position.epoch, row.position.step)
            if not source.is_replay:
                found.ends[place[0]] = min(place[1], found.ends.get(place[0], place[1]))
                if row.level == "step":
                    found.steps.add(place)
            for name, value in row.values.items():
                key = (row.phase, name)
                track = found.tracks.get(key)
                if track is None:
                    track = found.tracks[key] = MetricSeries()
                cells = track.steps if row.level == "step" else track.epochs
                cells[place] = (value, origin, row.verdict)
    return found


def _precedence(sourced: tuple[RowSource, list[Row]]) -> tuple[int, int, str]:
    source = sourced[0]
    if source.is_replay:
        return 0, 0, source.writer
    return 1, -1 if source.worker is None else -source.worker, source.writer
