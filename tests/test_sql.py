from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest

from flor_plugins.errors import StoreError
from flor_plugins.records import Code, Launch, Position, RecordingProcess, Row, Run
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.query.sql import TABLES, sql
from flor_plugins.store.runs import save_run

RUN = "20261123-200501-123-9f3a2c"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / ".flor").make()
    run = Run(
        run_id=RUN,
        name="bert",
        project="p",
        framework="hf",
        status="finished",
        started_at="2026-11-23T20:05:01Z",
        launch=Launch("script", "train.py"),
        code=Code("a" * 40, "/r/.git", "/r"),
        process=RecordingProcess("elsewhere", 1, "2"),
        path=store.run(RUN),
        position=Position(2, 4),
        params={"lr": 0.5, "model.name": "x", "inf": math.inf},
        tags=("a",),
    )
    save_run(run)
    for writer, value in (("record-r0", 0.5), ("replay-20261125-000000-000-000000-w0", 0.25)):
        journal = Journal(run.path / "metrics" / f"{writer}.jsonl", run.path / "media")
        verdict = None if writer == "record-r0" else "exact"
        journal.append(Row(Position(1, 2), "validation", "epoch", {"acc": value}, 1.0, verdict))  # type: ignore[arg-type]
        journal.close()
    values = {
        "cm": [[1, 0], [0, 2]],
        "t": "x",
        "ok": True,
        "n": 3,
        "nan": math.nan,
        "big": 2**60 + 1,
        "huge": 10**400,
    }
    journal = Journal(run.path / "metrics" / "record-r1.jsonl", run.path / "media")
    journal.append(
        Row(Position(0, 1), "train", "step", {**values, "media": numpy.arange(5000)}, 1.0)
    )
    journal.append(
        Row(
            Position(0, 2),
            "train",
            "step",
            {"cohen's kappa": 1.0, '"; drop table runs; --': 2.0},
            1.0,
        )
    )
    journal.close()
    return store


def test_runs_and_metrics_can_be_joined(store: Store) -> None:
    frame = sql(
        store,
        "SELECT r.name, m.value, m.source, m.verdict FROM metrics m JOIN runs r USING (run) "
        "WHERE m.name = ? ORDER BY value",
        ["acc"],
    )
    assert frame.values.tolist()[0] == ["bert", 0.25, "replay 20261125-000000-000-000000", "exact"]
    assert frame["source"].tolist()[1] == "record" and frame["verdict"].isna().tolist() == [
        False,
        True,
    ]


def test_params_are_json(store: Store) -> None:
    frame = sql(
        store,
        "SELECT params->>'lr' AS lr, params->>'$.\"model.name\"' AS model, epoch, vid FROM runs",
    )
    assert frame.iloc[0].tolist() == ["0.5", "x", 2, "a" * 40]


def test_numbers_are_values_and_the_rest_is_json(store: Store) -> None:
    frame = sql(store, "SELECT name, value, text FROM metrics WHERE step = 1").set_index("name")
    assert json.loads(frame.loc["cm", "text"]) == [[1, 0], [0, 2]]
    assert json.loads(frame.loc["t", "text"]) == "x"
    assert (frame.loc["ok", "value"], frame.loc["ok", "text"]) == (1.0, "true")
    assert frame.loc["n", "value"] == 3.0
    assert frame.loc["big", "text"] == str(2**60 + 1) and frame.loc["huge", "text"] == str(10**400)
    assert json.loads(frame.loc["media", "text"])["kind"] == "array"
    assert sql(store, "SELECT count(*) AS n FROM metrics WHERE isnan(value)")["n"][0] == 1


def test_a_metric_with_a_hostile_name_is_harmless(store: Store) -> None:
    for name in ("cohen's kappa", '"; drop table runs; --'):
        assert len(sql(store, "SELECT value FROM metrics WHERE name = ?", [name])) == 1
    assert len(sql(store, "SELECT * FROM runs")) == 1


def test_replays_are_read_as_json(store: Store) -> None:
    folder = store.replay("20261125-000000-000-000000")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text('{"metrics": ["acc"]}')
    frame = sql(store, "SELECT replay, plan->'metrics'->>0 AS metric, request FROM replays")
    assert (
        frame.iloc[0].tolist()[:2] == ["20261125-000000-000-000000", "acc"]
        and frame["request"].isna()[0]
    )


def test_checkpoints_are_listed(store: Store) -> None:
    assert list(sql(store, "SELECT * FROM checkpoints").columns) == list(TABLES["checkpoints"])


def test_an_empty_store_has_the_same_columns(tmp_path: Path, store: Store) -> None:
    for table, columns in TABLES.items():
        empty = sql(Store(tmp_path / "none"), f"SELECT * FROM {table}")
        assert list(empty.columns) == list(columns) and len(empty) == 0
    assert len(sql(store, "SHOW TABLES")) == len(TABLES)


@pytest.mark.parametrize(
    "query", ["SELEC 1", "SELECT * FROM nothing", "SELECT nothing FROM runs", "", "SELECT ?"]
)
def test_a_wrong_query_is_a_store_error_with_the_tables(store: Store, query: str) -> None:
    with pytest.raises(StoreError, match=r"failed: (.|\n)*The tables are: runs"):
        sql(store, query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('{file}')", "SELECT * FROM '{file}'", "COPY runs TO '{file}.out'",
        "COPY (SELECT 1) TO '{file}.out' (FORMAT csv)", "ATTACH '{file}.db'",
        "EXPORT DATABASE '{file}.dir'",
        "SET enable_external_access = true", "INSTALL httpfs", "SELECT * FROM glob('{file}*')",
        "SELECT * FROM secret",
        "CREATE TABLE x AS SELECT * FROM read_csv('{file}')", "SELECT 1; COPY runs TO '{file}.out'",
        "RESET enable_external_access; SELECT * FROM read_text('{file}')",
    ],
)  # fmt: skip
def test_a_query_can_not_read_or_write_files(store: Store, tmp_path: Path, query: str) -> None:
    import pandas

    # DuckDB finds frames in the callers' variables, unless told not to
    secret = pandas.DataFrame({"a": [1]})
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError):
        sql(store, query.format(file=file))
    assert sorted(tmp_path.iterdir()) == before and len(secret) == 1
