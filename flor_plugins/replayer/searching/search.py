"""The first place at which a predicate holds, run by run, without computing every place.

A search is a few small replays, one after the other: each asks, of every run that is still
open, for the epochs that say most about the rest (`bisection`), and what it has computed is read
back as any other value. So a search goes on where an earlier one stopped, and values that are
there already cost nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import Position, ReplayRequest, Run
from flor_plugins.replayer import requests
from flor_plugins.replayer.planning.planner import refuse_unknown
from flor_plugins.replayer.searching import bisection
from flor_plugins.replayer.searching.predicate_scan import Predicate, PredicateScan, look, values_at
from flor_plugins.store.layout import Store
from flor_plugins.store.query.column_types import typed
from flor_plugins.store.query.dataframe import FIXED
from flor_plugins.store.query.where import WhereExpression

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What was asked.

    is_monotone: within a run, once it holds it goes on to hold. epochs: as `epochs_of` reads.
    hooks: files; none means those of the recipes that the runs were recorded from.
    """

    when: str
    is_monotone: bool
    epochs: str | Sequence[int]
    hooks: tuple[Path, ...]


@dataclass(slots=True)
class SearchState:
    """What a search knows of a run.

    asked: epochs that it asked for. evaluated: how many it looked into with hooks. why: what
    keeps it from looking further, if so.
    """

    run: Run
    look: PredicateScan
    asked: set[int] = field(default_factory=set)
    evaluated: int = 0
    why: str = ""

    @property
    def at(self) -> Position | None:
        """The first place where it holds, as far as is known."""
        place = bisection.first_true([unit.truth for unit in self.look.units])
        return None if place is None else self.look.units[place].at

    def next_units(self, query: SearchQuery, count: int) -> tuple[int, ...]:
        """Which of its units to look into next; none where it is decided, or can't be."""
        if self.why:
            return ()
        known = [unit.truth for unit in self.look.units]
        return bisection.next_places(known, is_monotone=query.is_monotone, count=count)

    def detail(self, query: SearchQuery) -> str:
        """What is to be known beside the answer."""
        if self.why:
            return self.why
        units = self.look.units
        hit = bisection.first_true([unit.truth for unit in units])
        notes = []
        if lacking := [unit.epoch for unit in units[:hit] if unit.lacking]:
            notes.append(f"no value in epoch {_listed(lacking)}: no checkpoint leads there")
        if hit is None:
            return "; ".join([*notes, "holds nowhere"])
        not_since = [unit.epoch for unit in units[hit:] if unit.truth is False]
        if query.is_monotone and not_since:
            notes.append(f"not monotone: it does not hold in epoch {_listed(not_since)}")
        return "; ".join(notes)


@dataclass(frozen=True, slots=True)
class Search:
    """A search: begun by reading what is there, done by `run`."""

    store: Store
    query: SearchQuery
    sought: Predicate
    findings: tuple[SearchState, ...]
    results: list[requests.ReplayResult] = field(default_factory=list)

    def run(
        self, *, workers: int = 1, engine: str = "local", progress: requests.Progress | None = None
    ) -> None:
        """Ask and ask again, until every run is decided or can't be. The rounds of a scan double.

        workers, engine: as in `requests.replay`; raises its errors.
        """
        count = 2
        while only := self._next(count):
            result = requests.replay(
                self.store, self._request(only), workers=workers, engine=engine, progress=progress
            )
            self.results.append(result)
            self._take(only, result)
            count *= 2

    def estimate(self) -> tuple[int, float | None]:
        """Return how many epochs it looks into at most, and the seconds; None where unknown."""
        count, seconds = 0, 0.0
        every = {one.run.run_id: _missing(one, range(len(one.look.units))) for one in self.findings}
        only = {run_id: epochs for run_id, epochs in every.items() if epochs}
        if not only:
            return 0, 0.0
        for task in requests.plan(self.store, self._request(only)).tasks:
            units = next(one.look.units for one in self.findings if one.run.run_id == task.run_id)
            unknown = sum(unit.truth is None for unit in units)
            most = bisection.at_most(unknown, is_monotone=self.query.is_monotone)
            count += most
            parts = [one.seconds for one in task.passes]
            seconds += (
                float("nan")
                if None in parts
                else sum(s or 0.0 for s in parts) * most / max(1, unknown)
            )
        return count, None if seconds != seconds else seconds

    def frame(self) -> pandas.DataFrame:
        """Return one row per run, the oldest first.

        Its columns: run, name, epoch, step, the predicate's names, evaluated, first, detail.
        epoch and step are missing where it holds nowhere, or where that can't be said. first:
        True for the first run in which it holds.
        """
        import pandas

        findings, places = self.findings, [finding.at for finding in self.findings]
        values = [
            {} if at is None else values_at(finding.run, self.sought, finding.look.level, at)
            for finding, at in zip(findings, places, strict=True)
        ]
        hit = next((number for number, at in enumerate(places) if at is not None), None)
        columns = {
            "run": typed([finding.run.run_id for finding in findings], str),
            "name": typed([finding.run.name for finding in findings], str),
            "epoch": pandas.Series([at and at.epoch for at in places], dtype="Int64"),
            "step": pandas.Series([at and at.step for at in places], dtype="Int64"),
        }
        for name in self.sought.when.names:
            if name not in FIXED:
                columns[name] = typed([_plain(row.get(name)) for row in values])
        evaluated = [finding.evaluated for finding in findings]
        columns["evaluated"] = pandas.Series(evaluated, dtype="Int64")
        is_first = [number == hit for number in range(len(places))]
        columns["first"] = pandas.Series(is_first, dtype=bool)
        columns["detail"] = typed([finding.detail(self.query) for finding in findings], str)
        return pandas.DataFrame(columns)

    # ---- inside

    def _next(self, count: int) -> dict[str, set[int]]:
        """run_id to the epochs that are to be computed now."""
        found = {
            one.run.run_id: _missing(one, one.next_units(self.query, count))
            for one in self.findings
        }
        return {run_id: epochs for run_id, epochs in found.items() if epochs}

    def _request(self, only: Mapping[str, Collection[int]]) -> ReplayRequest:
        hooks = self.query.hooks
        return ReplayRequest(self.sought.metrics, runs=tuple(only), hooks=hooks, only=only)

    def _take(self, only: dict[str, set[int]], result: requests.ReplayResult) -> None:
        """Read again what was asked for. What was asked and did not come is not asked again."""
        tasks = {task.run_id for task in result.plan.tasks}
        failed = {outcome.task.run_id: outcome.failure for outcome in result.outcomes}
        for one in self.findings:
            run_id = one.run.run_id
            if run_id not in only:
                continue
            if run_id in tasks:
                one.evaluated += sum(
                    unit.missing <= only[run_id] and unit.truth is None for unit in one.look.units
                )
            one.asked |= only[run_id]
            one.why = result.plan.skipped.get(run_id) or failed.get(run_id) or ""
            one.look = look(one.run, self.sought, self.query.epochs, one.asked)


def begin(store: Store, runs: Sequence[Run], query: SearchQuery) -> Search:
    """Read what is known of the predicate. Nothing is run and nothing is written.

    Raises WhereError for a wrong predicate, HookError for a hook file that can't be read,
    ReplayError for epochs that can't be understood.
    """
    query = replace(query, hooks=query.hooks or requests.recipe_hooks(runs))
    when = WhereExpression.parse(query.when)
    hooks = [found for path in query.hooks for found in scan(path)]
    sought = Predicate.of(when, hooks)
    refuse_unknown(when, runs, sought.metrics)
    by_id = {run.run_id: run for run in runs}
    ordered = [by_id[run_id] for run_id in sorted(by_id)]
    findings = tuple(SearchState(run, look(run, sought, query.epochs)) for run in ordered)
    return Search(store, query, sought, findings)


def _missing(one: SearchState, places: Sequence[int]) -> set[int]:
    return {epoch for place in places for epoch in one.look.units[place].missing}


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, epochs[:5])) + (
        f" and {len(epochs) - 5} more" if len(epochs) > 5 else ""
    )


def _plain(value: Any) -> object:
    """A cell of a frame as the Python value that it was made of; None where it is missing."""
    import pandas

    value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value
    return None if pandas.api.types.is_scalar(value) and pandas.isna(value) else value
