"""`first`: find the first place at which a predicate holds; exit status 0 also if nowhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flor_plugins.cli import tables
from flor_plugins.cli.replay import plain_progress
from flor_plugins.errors import FlorError
from flor_plugins.store.remote.mirror import open_any
from flor_plugins.store.runs import find_run, list_runs

if TYPE_CHECKING:
    import pandas

_ASK_ABOVE_S = 60.0


@dataclass(frozen=True, slots=True)
class FirstOptions:
    """The words of the command line."""

    when: str
    is_monotone: bool
    epochs: str
    hooks: tuple[Path, ...]
    runs: tuple[str, ...]
    workers: int = 1
    engine: str = "local"


def first(options: FirstOptions, yes: bool, as_json: bool, as_csv: bool) -> int:
    """Exit status 0, 1 when a hook or a run failed or a person said no, 3 if one diverged."""
    from flor_plugins.replayer.searching import search

    store = open_any()
    found = [find_run(store, name) for name in options.runs] if options.runs else list_runs(store)
    if not found:
        raise FlorError(
            f"there is no recorded run in {store.root}. Train with FlorCallback() on the trainer."
        )
    query = search.SearchQuery(options.when, options.is_monotone, options.epochs, options.hooks)
    begun = search.begin(store, found, query)
    human = not (as_json or as_csv)
    if human and not _agreed(*begun.estimate(), yes):
        return 1
    progress = plain_progress if human else None
    begun.run(workers=options.workers, engine=options.engine, progress=progress)
    frame = begun.frame()
    tables.frame(frame, as_json=as_json, as_csv=as_csv)
    if human:
        print(_answer(options.when, frame))
    failures = [line for result in begun.results for line in result.failures]
    diverged = [row for result in begun.results for row in result.diverged]
    for line in failures:
        print(f"flor: {line}", file=sys.stderr)
    for row in diverged:
        print(f"flor: run {row['name']} diverged ({row['way']}): {row['detail']}", file=sys.stderr)
    return 1 if failures else 3 if diverged else 0


def _agreed(count: int, seconds: float | None, yes: bool) -> bool:
    """Say what it may take; a person is asked when that is above a minute."""
    if not count:
        return True
    takes = "nobody knows how long" if seconds is None else f"about {tables.duration(seconds)}"
    print(f"at most {count} epochs are to be evaluated, which takes {takes}", file=sys.stderr)
    if yes or (seconds or 0.0) <= _ASK_ABOVE_S or not sys.stdin.isatty():
        return True
    return typer.confirm("Go on?")


def _answer(when: str, frame: pandas.DataFrame) -> str:
    hits = frame[frame["first"]]
    if hits.empty:
        return f"{when!r} holds nowhere in {len(frame)} runs, as far as they could be looked into"
    row = hits.iloc[0]
    return (
        f"{when!r} holds first in run {row['name']} ({row['run']}), at epoch "
        f"{row['epoch']}, step {row['step']}"
    )
