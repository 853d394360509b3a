"""The public functions behind `import flor_plugins as flor`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.records import JsonObject, Level, ReplayRequest, Run, Task
from flor_plugins.records.sections import MODEL
from flor_plugins.store.layout import Store, find_store, store_in
from flor_plugins.store.remote.mirror import open_any
from flor_plugins.store.runs import find_run, list_runs

if TYPE_CHECKING:
    import pandas as pd

    from flor_plugins.hooks.metric import Metric
    from flor_plugins.replayer.requests import RangeRow


def runs(*, store: str | Path | None = None) -> list[Run]:
    """All recorded runs, oldest first; running ones, too."""
    return list_runs(open_any(store))


def dataframe(
    *names: str,
    where: str | None = None,
    source: bool = False,
    level: Level | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Metrics, params and run attributes of all runs, one row per position.

    The rows are at the finest level that the names need (run, epoch or step); values of a coarser
    level are repeated on finer rows. where: a boolean expression over the columns, as in pandas
    (`lr < 0.01 and cf_matrix.isna()`), parsed, never evaluated as code; WhereError if it is wrong.
    source: adds `<name>.source` and `<name>.verdict`. level: "epoch" or "step". A name that nobody
    logged is a column of missing values.
    """
    from flor_plugins.store.query import dataframe

    return dataframe.dataframe(open_any(store), *names, where=where, source=source, level=level)


def query(query: str, *, store: str | Path | None = None) -> pd.DataFrame:
    """`sql`, by the name that it has in FlorDB.

    The tables are ours: runs, metrics, checkpoints and replays.
    """
    return sql(query, store=store)


def sql(query: str, *, store: str | Path | None = None) -> pd.DataFrame:
    """DuckDB over the tables runs, metrics, checkpoints and replays. StoreError if it refuses."""
    from flor_plugins.store.query import sql as tables

    return tables.sql(open_any(store), query)


def replay(
    metrics: Sequence[str] | str = (),
    where: str | None = None,
    *,
    epochs: str | Sequence[int] = "all",
    hooks: Sequence[str | Path | Metric] = (),
    run: str | Sequence[str] | None = None,
    patch: Mapping[str, str | Path] | None = None,
    workers: int = 1,
    engine: str = "local",
    store: str | Path | None = None,
    progress: Callable[[Task, JsonObject], None] | None = None,
) -> pd.DataFrame:
    """Compute metrics for past runs where they are missing, and return them in a dataframe.

    metrics: names of hooks. where: only positions at which it holds. epochs: "all", "last",
    "1:3" or numbers. hooks: hook files or @flor.metric functions; default: those of the calling
    script, else those of the recipes that the runs were recorded from. run: names or ids, or one
    place of a run: "bert@epoch=3", "bert@step=1200". patch: methods of the runs' own code to be
    replaced: {"module:Class.method": "file.py:function"}; what the functions log are metrics,
    too. workers: runs at a time.
    engine: "local", processes of this machine, or "ray", those of a Ray cluster.

    A metric that no hook computes may be logged by a statement that was added to the training
    code in the working tree: it is carried to each run's own version. Raises EditRefused where
    that edit would change the training.

    Raises HookError for a hook that does not exist or raised (what other positions gave is kept),
    ReplayError when a run could not be replayed, Diverged when what was recomputed differs
    from the recording: the values are stored, marked as diverged.
    """
    from flor_plugins.replayer import requests
    from flor_plugins.store.query import dataframe

    home = open_any(store)
    request = ReplayRequest(
        _texts(metrics),
        where,
        epochs,
        None if run is None else _texts(run),
        requests.hook_files(hooks, _main_script()),
        {method: str(function) for method, function in (patch or {}).items()},
    )
    result = requests.replay(home, request, workers=workers, engine=engine, progress=progress)
    requests.raise_failures(result)
    requests.raise_diverged(result)
    return dataframe.dataframe(home, *result.plan.metrics, runs=result.runs)


def first(
    when: str,
    *,
    run: str | Sequence[str] | None = None,
    hooks: Sequence[str | Path | Metric] = (),
    monotone: bool = False,
    epochs: str | Sequence[int] = "all",
    workers: int = 1,
    engine: str = "local",
    store: str | Path | None = None,
    progress: Callable[[Task, JsonObject], None] | None = None,
) -> pd.DataFrame:
    """Find the first place of each run at which a predicate holds, with few evaluations.

    when: an expression as `where` in `dataframe`; its metrics are recorded ones, or those of
    hooks, which are found as in `replay`. monotone: you say that within a run, once it holds it
    goes on to hold: bisection, of n epochs at most 1 + log2(n) are evaluated. Else all epochs
    before the first hit are, and some spread over the rest.
    epochs, workers, engine: as in `replay`.

    One row per run, the oldest first: run, name, epoch, step, the names in `when`, evaluated
    (epochs that hooks were called for), first (True in the first run where it holds), detail.
    epoch and step are missing where it holds nowhere (or where detail says what can't be
    computed). With metrics of updates a place is an update, else an epoch's end. Raises
    WhereError for a wrong expression; HookError, ReplayError and Diverged as `replay`.
    """
    from flor_plugins.replayer import requests
    from flor_plugins.replayer.searching import search

    home = open_any(store)
    query = search.SearchQuery(when, monotone, epochs, requests.hook_files(hooks, _main_script()))
    begun = search.begin(home, _runs(home, run), query)
    begun.run(workers=workers, engine=engine, progress=progress)
    requests.raise_failures(*begun.results)
    requests.raise_diverged(*begun.results)
    return begun.frame()


def verify(
    run: str,
    epochs: str | Sequence[int] = "all",
    *,
    workers: int = 1,
    engine: str = "local",
    store: str | Path | None = None,
    progress: Callable[[Task, JsonObject], None] | None = None,
) -> list[RangeRow]:
    """Train a run again, from checkpoint to checkpoint, and compare all bit for bit.

    run: a name or id, or a place of it: "bert@step=1200" trains up to there. epochs, workers,
    engine: as in `replay`.
    Returns one mapping per stretch: start, end (Position), verdict, compared (count), first
    (the first differing Position or None), detail (both values there), causes (likely ones,
    most likely first). Raises UnknownRun, and ReplayError when the run can't be trained again.
    """
    from flor_plugins.replayer import requests

    request = ReplayRequest(epochs=epochs, runs=(run,), is_verification=True)
    result = requests.replay(
        open_any(store), request, workers=workers, engine=engine, progress=progress
    )
    requests.raise_failures(result)
    return result.stretches


def checkpoint(
    run: str, epoch: int | None = None, *, store: str | Path | None = None
) -> dict[str, Any]:
    """The model's weights of a run: {name: tensor}, on the CPU, verified.

    run: a name or id, or a place: "bert@epoch=3", "bert@step=1200". epoch: the same in a number;
    default the last checkpoint. Raises UnknownRun, NoCheckpoint (says which exist) or
    DamagedCheckpoint.
    """
    from flor_plugins.replayer.execution.remote_sync import fetch_weights
    from flor_plugins.store import checkpoints
    from flor_plugins.store.query.references import RunReference, checkpoint_at, parse_reference

    asked = parse_reference(run) if epoch is None else RunReference(run, epoch=epoch)
    home = open_any(store)
    found = find_run(home, asked.run)
    known = checkpoints.list_checkpoints(found.path)
    position = checkpoint_at(found, known, asked).position
    fetch_weights(home, found, position)
    return checkpoints.load_checkpoint(found.path, position, [MODEL])[MODEL]


def import_flordb(
    path: str | Path,
    *,
    epoch: str | None = None,
    step: str | None = None,
    store: str | Path | None = None,
) -> list[Run]:
    """Make runs of what FlorDB (3.4 or 4) has logged.

    path: its project, a `.flor` folder or a `.db` file. What is taken: values, with their
    types; loops as epochs and steps (epoch, step: names of those loops, where they are not
    clear); arguments as params; the commit, where FlorDB's repository is found. FlorDB's files
    are only read, and imported once: again, only what is new is taken. Returns the runs, the
    oldest first. StoreError if there is nothing.
    """
    from flor_plugins.recorder.importers import flordb

    home = _local_store(store)
    return [one.run for one in flordb.import_flordb(Path(path), epoch=epoch, step=step, store=home)]


def upload(
    url: str, run: str | Sequence[str] | None = None, *, store: str | Path | None = None
) -> list[str]:
    """Put recorded runs, their checkpoints and their code into an object store.

    Returns the paths in it that are new. url: as s3://bucket/flor; from then on it can be the
    `store` of all that reads and replays.
    run: names or ids; default all. Again, it adds what is missing. Raises UnknownRun,
    SnapshotError where the code of a run can't be found, StoreError where the object store
    refuses, MissingDependency without the package for that kind of url.
    """
    from flor_plugins.replayer.execution.remote_sync import upload as put

    home = _local_store(store)
    return put(home, url, _runs(home, run))


def _runs(home: Store, run: str | Sequence[str] | None) -> list[Run]:
    return list_runs(home) if run is None else [find_run(home, name) for name in _texts(run)]


def _texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _main_script() -> str | None:
    return getattr(sys.modules.get("__main__"), "__file__", None)


def _local_store(store: str | Path | None) -> Store:
    return find_store() if store is None else store_in(store)
