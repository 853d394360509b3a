"""Stores that FlorDB 3.4.10 and 4.0.1 made (tests/golden/flordb) are read whole, and left as
they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flor_plugins as flor
from flor_plugins.errors import ReplayError, StoreError
from flor_plugins.recorder.importers import flordb
from flor_plugins.recorder.importers.flordb.typed_values import value_of
from flor_plugins.records import Position, Run
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from tests.importing import Bomb
from tests.replaying import Project

GOLDEN = Path(__file__).parent / "golden/flordb"
V4 = (
    "CREATE TABLE logs (projid TEXT, tstamp TEXT, filename TEXT, ctx TEXT, value_name TEXT, "
    "value TEXT, " + ("value_type INTEGER, source TEXT NOT NULL DEFAULT 'forward')")
)


def restore(version: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / f"{version}.sql").read_text())
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FlorDB 3 keeps its databases at home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "ours")


@pytest.fixture(params=["3.4", "4"])
def project(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Project:
    """A project of FlorDB, with its commits, which say the arguments from version 4 on."""
    name = f"proj{request.param[0]}"
    file = restore(
        request.param, (home if name == "proj3" else tmp_path / name) / ".flor" / f"{name}.db"
    )
    made = Project(tmp_path / name)
    made.root.mkdir(exist_ok=True)
    made.write(".gitignore", ".flor/\n")
    made.git("init", "-q", "-b", "flor.branch")
    made.git("add", "-A")
    args = "\n\nlr=0.01\nepochs=3\noptimizer=adam" if name == "proj4" else ""
    with closing(sqlite3.connect(file)) as connection:
        (tstamp,) = connection.execute("SELECT min(tstamp) FROM logs").fetchone()
    made.git("commit", "-q", "-m", f"FLOR::Auto-commit::{tstamp}{args}")
    return made


def database(path: Path, rows: Sequence[tuple[Sequence[tuple[str, int]], str, Any]]) -> Path:
    """A database of version 4: the loops around each value, its name, and the value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(V4)
        for loops, name, value in rows:
            ctx = (
                json.dumps([{"name": loop, "iteration": at, "value": None} for loop, at in loops])
                if loops
                else None
            )
            row = ("p", "2026-05-01T10:00:00.5", "fit.py", ctx, name, str(value), 1, "forward")
            connection.execute("INSERT INTO logs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.commit()
    return path


def other(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (a)")


def values(run: Run) -> dict[tuple[str, int, int], Any]:
    return {(name, row.position.epoch, row.position.step): value
            for _, row in read_run(run.path) for name, value in row.values.items()}  # fmt: skip


def files(folder: Path) -> dict[str, str]:
    return {
        str(one): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in folder.rglob("*")
        if one.is_file()
    }


def test_a_store_of_flordb_becomes_runs_with_values_positions_params_and_code(
    project: Project, store: Store
) -> None:
    train, flat = flor.import_flordb(project.root, store=store.root)
    assert (train.name, train.project, train.framework) == ("train", project.root.name, "flordb")
    assert train.params == {"lr": 0.01, "epochs": 3, "optimizer": "adam", "device": "cpu"}
    assert train.position == Position(3, 12) and train.code is not None
    assert train.code.vid == project.git("rev-parse", "HEAD").strip()
    found = values(train)
    loss = 2.0
    for step in range(1, 13):
        loss *= 1 - 0.01
        assert found["loss", step // 4, step] == loss
    norms = {at[1:]: value for at, value in found.items() if at[0] == "grad_norm"}
    assert norms == {
        (0, 1): 1.0,
        (0, 3): 3.0,
        (1, 5): 11.0,
        (1, 7): 13.0,
        (2, 9): 21.0,
        (2, 11): 23.0,
    }
    for epoch in (1, 2, 3):
        assert found["val_acc", epoch, epoch * 4] == 0.5 + (epoch - 1) / 10
        assert found["confusion", epoch, epoch * 4] == [[3, 1], [0, epoch - 1]]
        assert found["good", epoch, epoch * 4] is (epoch == 3)
        assert found["recall", epoch, epoch * 4] == [0.25, 0.75]
    assert found["best", 3, 12] == {"epoch": 2, "acc": 0.7}
    assert math.isnan(found["worst", 3, 12]) and found["when", 3, 12] == "2024-05-01"
    assert "nothing" not in {name for name, *_ in found}
    assert values(flat) == {("documents", 0, 0): 12, ("title", 0, 0): "a b"}
    assert "its commit was not found" in flat.gaps[-1]


def test_the_values_answer_queries_as_recorded_ones_do(project: Project, store: Store) -> None:
    train, _ = flor.import_flordb(project.root, store=store.root)
    frame = flor.dataframe("loss", "lr", "val_acc", where="name == 'train'", store=store.root)
    assert len(frame) == 12 and set(frame["lr"]) == {0.01}
    assert (
        flor.query("select count(*) n from metrics where name = 'loss'", store=store.root)["n"][0]
        == 12
    )
    first = flor.first("grad_norm > 10", run="train", store=store.root)
    assert (first["epoch"][0], first["step"][0]) == (1, 5)
    with pytest.raises(ReplayError, match="imported from FlorDB"):
        flor.replay("acc", run=train.run_id, hooks=[_hook(store)], store=store.root)


def _hook(store: Store) -> Path:
    path = store.root.parent / "hooks.py"
    path.write_text("import flor_plugins as flor\n@flor.metric\ndef acc(ctx): return 1.0\n")
    return path


def test_nothing_of_flordb_is_written_and_a_second_import_changes_nothing(
    project: Project, home: Path, store: Store
) -> None:
    (project.root / ".flor").mkdir(exist_ok=True)
    before = {**files(project.root), **files(home)}
    first = flor.import_flordb(project.root, store=store.root)
    ours = files(store.root)
    assert flor.import_flordb(project.root, store=store.root) == first
    assert files(store.root) == ours
    assert {**files(project.root), **files(home)} == before


def test_an_import_works_while_flordb_holds_its_lock_and_sees_what_is_committed(
    tmp_path: Path, store: Store
) -> None:
    file = database(tmp_path / "p/.flor/p.db", [([("epoch", 0)], "loss", 1.5)])
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE logs SET value = '9'")
        (run,) = flor.import_flordb(file, store=store.root)
    assert values(run) == {("loss", 1, 1): 1.5}


def test_what_flordb_learns_later_is_taken_too_and_is_not_called_recorded(
    tmp_path: Path, store: Store
) -> None:
    file = restore("4", tmp_path / "proj4/.flor/proj4.db")
    flordb.import_flordb(file, store=store)
    ctx = '[{"name": "epoch", "iteration": 1, "value": "1"}]'
    with closing(sqlite3.connect(file)) as connection:
        row = connection.execute("SELECT projid, tstamp, filename FROM logs LIMIT 1").fetchone()
        connection.execute(
            "INSERT INTO logs VALUES (?, ?, ?, ?, 'late', '0.25', 1, 'replay')", (*row, ctx)
        )
        connection.commit()
    made = flordb.import_flordb(file, store=store)
    assert [one.done for one in made] == ["changed", "known"]
    frame = flor.dataframe("late", source=True, store=store.root)
    assert frame[["epoch", "step", "late", "late.verdict"]].values.tolist() == [
        [2, 8, 0.25, "unverified"]
    ]
    assert frame["late.source"][0] == "replay flordb"
    assert len(flor.runs(store=store.root)) == 2


def test_the_lines_of_version_4_are_enough_and_have_the_types_of_json(
    tmp_path: Path, store: Store
) -> None:
    folder = tmp_path / "p/.flor/runs"
    folder.mkdir(parents=True)
    base = {"projid": "p", "tstamp": "2026-05-01T10:00:00.5", "filename": "fit.py", "type": 1}
    epoch = [{"name": "epoch", "iteration": 0, "value": "0"}]
    lines = [{**base, "ctx": epoch, "name": "table", "value": {"a": [1, None]}},
             {**base, "ctx": epoch, "name": "nothing", "value": None},
             {**base, "ctx": None, "name": "end", "value": True}]  # fmt: skip
    (folder / "2026.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (run,) = flor.import_flordb(tmp_path / "p", store=store.root)
    assert values(run) == {("table", 1, 1): {"a": [1, "None"]}, ("end", 1, 1): True}
    (folder / "2026.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match=r"2026\.jsonl:1 is no line of FlorDB"):
        flor.import_flordb(tmp_path / "p", store=store.root)


def test_each_iteration_of_a_loop_around_the_epochs_is_a_run(tmp_path: Path, store: Store) -> None:
    rows = [([], "lr", 0.1)]
    for fold in range(2):
        rows += [
            ([("fold", fold), ("epoch", epoch)], "acc", fold + epoch / 10) for epoch in range(2)
        ]
        rows += [([("fold", fold)], "best", fold)]
    made = flor.import_flordb(database(tmp_path / "p.db", rows), store=store.root)
    assert [(run.name, run.params) for run in made] == [
        ("fit[fold=0]", {"fold": 0, "lr": 0.1}),
        ("fit[fold=1]", {"fold": 1, "lr": 0.1}),
    ]
    assert values(made[1]) == {("acc", 1, 1): 1.0, ("acc", 2, 2): 1.1, ("best", 2, 2): 1}


def test_loops_of_other_names_count_from_the_outside_unless_they_are_named(
    tmp_path: Path, store: Store
) -> None:
    rows = [
        ([("document", one), ("page", page)], "words", 10 * one + page)
        for one in (0, 1)
        for page in (0, 1)
    ]
    (run,) = flor.import_flordb(database(tmp_path / "p.db", rows), store=store.root)
    assert values(run) == {
        ("words", 0, 1): 0,
        ("words", 1, 2): 1,
        ("words", 1, 3): 10,
        ("words", 2, 4): 11,
    }
    other = Store(tmp_path / "other")
    made = flor.import_flordb(tmp_path / "p.db", epoch="page", store=other.root)
    assert [run.name for run in made] == ["fit[document=0]", "fit[document=1]"]


def test_steps_that_logged_nothing_are_counted_as_in_the_longest_epoch(
    tmp_path: Path, store: Store
) -> None:
    rows = [([("epoch", 0), ("batch", at)], "loss", at) for at in range(5)]
    rows += [([("epoch", 1)], "acc", 0.5), ([("epoch", 2), ("batch", 4)], "loss", 7)]
    (run,) = flor.import_flordb(database(tmp_path / "p.db", rows), store=store.root)
    found = values(run)
    assert found["acc", 2, 10] == 0.5 and found["loss", 3, 15] == 7


def test_what_was_pickled_is_not_opened(tmp_path: Path, store: Store) -> None:
    import pickle

    shelf = restore("4", tmp_path / "p/.flor/proj4.db").parent / "obj_store/2026"
    shelf.mkdir(parents=True)
    (shelf / "model_epoch_0.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "went-off")))
    flor.import_flordb(tmp_path / "p", store=store.root)
    assert not (tmp_path / "went-off").exists()


def test_it_may_share_its_folder_with_our_store(tmp_path: Path) -> None:
    restore("4", tmp_path / "proj4/.flor/proj4.db")
    store = Store(tmp_path / "proj4/.flor")
    assert len(flor.import_flordb(tmp_path / "proj4", store=store.root)) == 2
    assert (
        len(flor.import_flordb(tmp_path / "proj4", store=store.root))
        == len(flor.runs(store=store.root))
        == 2
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: path.mkdir(), "no store of FlorDB is there"),
        (
            lambda path: path.write_text("no database " * 99),
            "can't be read as a database of FlorDB",
        ),
        (lambda path: other(path, "logs"), "its table logs has a"),
        (lambda path: other(path, "x"), "its table logs has no"),
        (lambda path: database(path, []), "nothing was logged to it"),
    ],
)
def test_what_is_no_store_of_flordb_is_told(
    tmp_path: Path, store: Store, made: Any, said: str
) -> None:
    made(tmp_path / "it")
    with pytest.raises(StoreError, match=said):
        flor.import_flordb(tmp_path / "it", store=store.root)
    assert flor.runs(store=store.root) == []


def test_the_command_says_what_it_made(tmp_path: Path, home: Path) -> None:
    restore("4", tmp_path / "proj4/.flor/proj4.db")
    project, env = (
        Project(tmp_path / "proj4"),
        {"HOME": str(home), "FLOR_DIR": str(tmp_path / "ours")},
    )
    told = project.flor("import-flordb", ".", **env).stdout
    assert (
        "imported train: run " in told
        and "the loop 'epoch' counts the epochs, 'step' the steps" in told
    )
    done = project.flor("import-flordb", "nowhere", ok=False, **env)
    assert done.returncode == 1 and "no store of FlorDB is there" in done.stderr


SIMPLE = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False))


@given(
    st.recursive(
        SIMPLE, lambda one: st.lists(one) | st.dictionaries(st.text(max_size=5), one), max_leaves=8
    )
)
def test_what_str_has_made_of_a_value_is_that_value_again(value: Any) -> None:
    found = value_of(str(value))
    assert found == value and type(found) is type(value)


@given(st.text())
def test_any_text_is_a_value(text: str) -> None:
    value_of(text)


NO_LITERALS = [
    "2024-05-01",
    "12:30",
    "007",
    "1_000",
    "true",
    "1,5",
    "[1, x]",
    "{'a': open}",
    "tensor(0.5)",
    "",
    "0x10",
]


@pytest.mark.parametrize("text", NO_LITERALS)
def test_what_is_no_literal_stays_text(text: str) -> None:
    assert value_of(text) == text
