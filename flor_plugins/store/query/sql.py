"""The store as SQL tables, in memory: a query reads runs and nothing else, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flor_plugins.errors import StoreError
from flor_plugins.records import Run
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.value_codec import encode_value
from flor_plugins.store.runs import list_runs, plain

if TYPE_CHECKING:
    import pandas

TEXT, COUNT, NUMBER, FLAG = "VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN"
PLACE = {"run": TEXT, "epoch": COUNT, "step": COUNT}
RUN = ("run", "name", "project", "framework", "status", "vid", "started_at", "finished_at")
REPLAY = ("request", "plan", "progress", "verdicts")
TABLES: Mapping[str, Mapping[str, str]] = {
    "runs": {
        **dict.fromkeys(RUN, TEXT),
        "epoch": COUNT,
        "step": COUNT,
        **dict.fromkeys(("error", "tags", "params", "path"), TEXT),
    },
    "metrics": {
        **PLACE,
        "phase": TEXT,
        "level": TEXT,
        "name": TEXT,
        "value": NUMBER,
        "text": TEXT,
        "source": TEXT,
        "verdict": TEXT,
    },
    "checkpoints": {**PLACE, "is_full": FLAG, "nbytes": COUNT, "lost": TEXT, "path": TEXT},
    "replays": dict.fromkeys(("replay", *REPLAY), TEXT),
}
ARROW = {TEXT: "string", COUNT: "int64", NUMBER: "float64", FLAG: "bool"}
EXACT = 2**53


def sql(store: Store, query: str, params: Sequence[Any] = ()) -> pandas.DataFrame:
    """Run one DuckDB query over tables runs, metrics, checkpoints and replays; `?` takes a param.

    metrics: one row per value and source, recorded and replayed; numbers and bools in `value`,
    all that is no number, and ints that a double can't say, as JSON in `text`. tags, params
    and what a replay wrote are JSON texts: `params->>'lr'`. A query can't read or write files.
    StoreError with DuckDB's message if it fails.
    """
    import duckdb

    with duckdb.connect(":memory:") as connection:
        for table, columns in TABLES.items():
            listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
            connection.execute(f"CREATE TABLE {table} ({listed})")
            if table in query.lower():  # a table that is not named is not read from disk
                _fill(connection, store, table)
        try:
            connection.execute("SET enable_external_access = false")
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET lock_configuration = true")
            answer = connection.execute(query, list(params))
            if answer is None:
                raise ValueError("there is no statement in it")
            return answer.df()
        except (duckdb.Error, ValueError) as error:
            tables = "; ".join(
                f"{table} ({', '.join(columns)})" for table, columns in TABLES.items()
            )
            raise StoreError(
                f"the query {query!r} over {store.root} failed: {error}\nThe tables are: {tables}."
            ) from error


def _fill(connection: Any, store: Store, table: str) -> None:
    import pyarrow

    columns = TABLES[table]
    rows = list(_ROWS[table](store))
    arrays = {
        name: pyarrow.array(
            [row[place] for row in rows], pyarrow.type_for_alias(ARROW[kind]), from_pandas=False
        )
        for place, (name, kind) in enumerate(columns.items())
    }
    connection.register("incoming", pyarrow.table(arrays))
    connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")
    connection.unregister("incoming")


def _runs(store: Store) -> Iterator[tuple[Any, ...]]:
    for run in list_runs(store):
        reached = (run.position.epoch, run.position.step) if run.position else (None, None)
        identity = (run.run_id, run.name, run.project, run.framework, run.status)
        vid = run.code.vid if run.code else None
        texts = (json.dumps(run.tags), json.dumps(plain(run.params)), str(run.path))
        yield (*identity, vid, run.started_at, run.finished_at, *reached, run.error, *texts)


def _metrics(store: Store) -> Iterator[tuple[Any, ...]]:
    for run in list_runs(store):
        for source, row in read_run(run.path):
            place = (run.run_id, row.position.epoch, row.position.step, row.phase, row.level)
            for name, value in row.values.items():
                yield (*place, name, *_number_and_text(value, run), str(source), row.verdict)


def _number_and_text(value: Any, run: Run) -> tuple[float | None, str | None]:
    if isinstance(value, float) or (type(value) is int and abs(value) <= EXACT):
        return float(value), None
    text = json.dumps(encode_value(value, run.path / "media"))
    try:
        return (float(value) if isinstance(value, int) else None), text
    except OverflowError:
        return None, text


def _checkpoints(store: Store) -> Iterator[tuple[Any, ...]]:
    from flor_plugins.store.checkpoints import list_checkpoints

    for run in list_runs(store):
        for checkpoint in list_checkpoints(run.path):
            place = (checkpoint.position.epoch, checkpoint.position.step)
            yield (
                run.run_id,
                *place,
                checkpoint.is_full,
                checkpoint.nbytes,
                json.dumps(checkpoint.lost),
                str(checkpoint.path),
            )


def _replays(store: Store) -> Iterator[tuple[Any, ...]]:
    if not store.replays.is_dir():
        return
    for folder in sorted(store.replays.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            parts = ((folder / f"{part}.json") for part in REPLAY)
            yield (folder.name, *(path.read_text() if path.is_file() else None for path in parts))


_ROWS = {"runs": _runs, "metrics": _metrics, "checkpoints": _checkpoints, "replays": _replays}
