from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from flor_plugins.errors import StoreError, UnknownRun, WhereError
from flor_plugins.records import Code, Launch, Position, RecordingProcess, Row, Run
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.query.dataframe import dataframe, positions
from flor_plugins.store.runs import save_run

A, B = "20261123-200501-123-9f3a2c", "20261124-200501-123-aaaaaa"
OLD, NEW = "replay-20261125-000000-000-000000-w0", "replay-20261126-000000-000-000000-w0"
NAN = float("nan")
Logged = tuple[int, int, str, str, dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


def make(store: Store, run_id: str, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "run_id": run_id,
        "name": "bert",
        "project": "p",
        "framework": "hf",
        "status": "finished",
        "started_at": "2026-11-23T20:05:01Z",
        "launch": Launch("script", "train.py"),
        "code": Code("a" * 40, "/r/.git", "/r"),
        "process": RecordingProcess("elsewhere", 1, "2"),
        "path": store.run(run_id),
    }
    run = Run(**{**fields, **changes})
    save_run(run)
    return run


def log(
    run: Run,
    rows: list[Logged],
    writer: str = "record-r0",
    *,
    verdict: Any = None,
    seal: bool = False,
) -> None:
    journal = Journal(run.path / "metrics" / f"{writer}.jsonl", run.path / "media")
    for epoch, step, phase, level, values in rows:
        journal.append(Row(Position(epoch, step), phase, level, values, 1.0, verdict))  # type: ignore[arg-type]
    journal.seal() if seal else journal.close()


# Two epochs of two steps each, as the adapters write them.
STEPS: list[Logged] = [
    (0, 1, "train", "step", {"loss": 4.0, "lr": 1}),
    (1, 2, "train", "step", {"loss": 3.0, "lr": 2}),
    (1, 2, "validation", "epoch", {"val_acc": 0.5}),
    (1, 3, "train", "step", {"loss": 2.0}),
    (2, 4, "train", "step", {"loss": 1.0, "lr": 3}),
    (2, 4, "validation", "epoch", {"val_acc": 0.75}),
]


@pytest.fixture
def two(store: Store) -> Store:
    log(make(store, A, params={"batch": 8, "opt": "adam"}, tags=("x",)), STEPS)
    log(make(store, B, name="gpt", params={"batch": 16}, code=None), STEPS[:3], seal=True)
    return store


def cells(column: pandas.Series) -> list[Any]:
    return [None if cell is pandas.NA or cell != cell else cell for cell in column]


def table(frame: pandas.DataFrame) -> list[tuple[Any, ...]]:
    return list(zip(*(cells(frame[name]) for name in frame.columns), strict=True))


def test_epoch_metrics_give_one_row_per_epoch(two: Store) -> None:
    frame = dataframe(two, "val_acc")
    assert list(frame.columns) == ["run", "name", "epoch", "step", "val_acc"]
    assert table(frame) == [(A, "bert", 1, 2, 0.5), (A, "bert", 2, 4, 0.75), (B, "gpt", 1, 2, 0.5)]
    assert [str(frame[name].dtype) for name in ("epoch", "step", "val_acc")] == [
        "Int64",
        "Int64",
        "float64",
    ]


def test_epoch_values_repeat_on_the_steps_of_their_epoch_and_step_values_do_not(two: Store) -> None:
    frame = dataframe(two, "val_acc", "loss", "lr", runs=[A])
    assert table(frame[["epoch", "step", "val_acc", "loss", "lr"]]) == [
        (0, 1, None, 4.0, 1),
        (1, 2, 0.5, 3.0, 2),
        (1, 3, 0.5, 2.0, None),
        (2, 4, 0.75, 1.0, 3),
    ]
    assert str(frame["lr"].dtype) == "Int64"


def test_an_epoch_value_without_a_step_row_has_a_row(store: Store) -> None:
    log(
        make(store, A),
        [(0, 0, "validation", "epoch", {"acc": 0.1}), (0, 1, "train", "step", {"loss": 1.0})],
    )
    assert table(dataframe(store, "loss", "acc")[["step", "loss", "acc"]]) == [
        (0, None, 0.1),
        (1, 1.0, 0.1),
    ]


def test_a_value_is_not_shown_before_it_was_known(store: Store) -> None:
    mid = [(0, s, "train", "step", {"loss": float(s)}) for s in (1, 2, 3)]
    log(make(store, A), [*mid, (0, 2, "validation", "epoch", {"acc": 0.1})])
    assert cells(dataframe(store, "loss", "acc")["acc"]) == [None, 0.1, 0.1]


def test_level_epoch_shows_step_values_where_the_epoch_ended(two: Store) -> None:
    assert table(
        dataframe(two, "loss", "val_acc", level="epoch", runs=[A])[["epoch", "step", "loss"]]
    ) == [
        (1, 2, 3.0),
        (2, 4, 1.0),
    ]
    assert cells(dataframe(two, "loss", level="epoch")["loss"]) == [3.0, 1.0, 3.0]


def test_level_step_gives_every_recorded_step(two: Store) -> None:
    assert cells(dataframe(two, "val_acc", level="step")["val_acc"]) == [
        None,
        0.5,
        0.5,
        0.75,
        None,
        0.5,
    ]
    with pytest.raises(StoreError, match="level 'day'"):
        dataframe(two, level="day")  # type: ignore[arg-type]


def test_attributes_and_params_alone_give_one_row_per_run(two: Store) -> None:
    frame = dataframe(two, "batch", "params.opt", "vid", "status", "tags", "nothing")
    assert table(frame) == [
        (A, "bert", None, None, 8, "adam", "a" * 40, "finished", ("x",), None),
        (B, "gpt", None, None, 16, None, None, "finished", (), None),
    ]
    assert str(frame["batch"].dtype) == "Int64" and str(frame["epoch"].dtype) == "Int64"


def test_params_repeat_on_every_row_and_a_metric_wins_over_a_param(two: Store) -> None:
    assert cells(dataframe(two, "val_acc", "batch")["batch"]) == [8, 8, 16]
    save = make(two, A, params={"val_acc": 9})
    assert cells(dataframe(two, "val_acc", "params.val_acc", runs=[save])["params.val_acc"]) == [
        9,
        9,
    ]


def test_no_names_means_all_metrics(two: Store) -> None:
    assert list(dataframe(two).columns) == ["run", "name", "epoch", "step", "loss", "lr", "val_acc"]
    assert len(dataframe(two)) == 6


def test_a_metric_that_does_not_exist_is_a_column_of_missing_values(two: Store) -> None:
    frame = dataframe(two, "cm", "val_acc", where="cm.isna() and val_acc > 0.6")
    assert table(frame[["cm", "val_acc"]]) == [(None, 0.75)]


def test_where_may_read_what_is_not_shown_and_sets_the_level(two: Store) -> None:
    frame = dataframe(
        two, "val_acc", where="loss < 3 and batch == 8 and `params.opt` == 'adam' and epoch == 2"
    )
    assert list(frame.columns) == ["run", "name", "epoch", "step", "val_acc"]
    assert table(frame) == [(A, "bert", 2, 4, 0.75)]
    assert list(frame.index) == [0]
    assert len(dataframe(two, "val_acc", where="'x' in tags")) == 2


def test_an_empty_answer_has_the_types_of_a_full_one(two: Store, tmp_path: Path) -> None:
    full, empty = (
        dataframe(two, "loss", "lr", "val_acc", "opt", where=w, source=True)
        for w in (None, "loss > 99")
    )
    assert len(empty) == 0
    assert dict(full.dtypes) == dict(empty.dtypes)
    nothing = dataframe(Store(tmp_path / "none"), "loss", where="loss.isna()")
    assert list(nothing.columns) == ["run", "name", "epoch", "step", "loss"] and len(nothing) == 0
    assert all(
        nothing.dtypes[name] == full.dtypes[name] for name in ("run", "name", "epoch", "step")
    )


def test_recorded_wins_over_replayed_and_the_newest_replay_over_older_ones(store: Store) -> None:
    run = make(store, A)
    log(run, [(1, 2, "train", "epoch", {"m": 1.0})])
    log(
        run,
        [(e, 2 * e, "train", "epoch", {"m": 7.0}) for e in (1, 2)],
        NEW,
        verdict="exact",
        seal=True,
    )
    log(run, [(e, 2 * e, "train", "epoch", {"m": 6.0}) for e in (1, 2, 3)], OLD, verdict="diverged")
    frame = dataframe(store, "m", source=True)
    assert table(frame[["epoch", "m", "m.source", "m.verdict"]]) == [
        (1, 1.0, "record", None),
        (2, 7.0, "replay 20261126-000000-000-000000", "exact"),
        (3, 6.0, "replay 20261125-000000-000-000000", "diverged"),
    ]


def test_rank_0_counts_before_other_ranks(store: Store) -> None:
    run = make(store, A)
    for rank in (10, 0, 2):
        log(run, [(1, 2, "train", "epoch", {"m": rank})], f"record-r{rank}")
    assert cells(dataframe(store, "m")["m"]) == [0]


def test_a_metric_of_several_phases_is_a_column_for_each(store: Store) -> None:
    log(
        make(store, A),
        [(1, 2, phase, "epoch", {"acc": v}) for phase, v in (("validation", 0.5), ("train", 0.9))],
    )
    both = dataframe(store, "acc")
    assert table(both[["train/acc", "validation/acc"]]) == [(0.9, 0.5)]
    assert list(dataframe(store, "validation/acc").columns)[4:] == ["validation/acc"]
    assert list(dataframe(store).columns)[4:] == ["train/acc", "validation/acc"]
    assert len(dataframe(store, where="`train/acc` > 0.8")) == 1
    with pytest.raises(WhereError, match="backticks: `train/acc`"):
        dataframe(store, where="train/acc > 0.8")
    with pytest.raises(WhereError, match="Did you mean `train/acc`"):
        dataframe(store, where="acc > 0.8")


NAMES = [
    "cohen's kappa",
    '"; drop table runs; --',
    "epoch",
    "run",
    "run.json",
    "step",
    "name",
    "a.b",
    "",
    "params.lr",
]


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_metric_is_harmless(store: Store, name: str, seal: bool) -> None:
    log(
        make(store, A, params={"lr": 1}),
        [(1, 2, "train", "epoch", {name: 0.5, "other": 1})],
        seal=seal,
    )
    label = name + ".value" if name in ("epoch", "run", "step", "name") else name
    for frame in (dataframe(store, name), dataframe(store, label)):
        assert list(frame.columns) == ["run", "name", "epoch", "step", label]
        assert table(frame) == [(A, "bert", 1, 2, 0.5)]
    if name:
        assert (
            len(dataframe(store, name, where=f"`{label}` == 0.5 and epoch == 1 and run == '{A}'"))
            == 1
        )
    # `run` and `name` themselves are shown there when they are asked for
    assert list(positions(make(store, A), [label], "epoch").columns)[-3:] == [
        "epoch",
        "step",
        label,
    ]


def test_asking_for_a_column_that_is_always_there_is_fine(two: Store) -> None:
    assert list(dataframe(two, "epoch", "val_acc", "val_acc", "run").columns) == [
        "run",
        "name",
        "epoch",
        "step",
        "val_acc",
    ]


def test_values_have_the_types_that_pandas_users_expect(store: Store) -> None:
    one = {
        "int": 1,
        "float": 1.5,
        "mixed": 1,
        "bool": True,
        "text": "a",
        "cm": [[1, 0], [0, 2]],
        "ragged": [[1], [1, 2]],
        "big": 2**70,
        "dict": {"a": 1},
        "vec": [0.5, NAN],
        "words": ["a", "b"],
        "large": numpy.arange(5000),
    }
    log(
        make(store, A),
        [(1, 2, "train", "epoch", one), (2, 4, "train", "epoch", {"mixed": 0.5, "nan": NAN})],
    )
    for seal in (False, True):
        if seal:
            Journal(store.run(A) / "metrics" / "record-r0.jsonl", store.run(A) / "media").seal()
        frame = dataframe(store)
        kinds = {
            name: str(frame[name].dtype)
            for name in ("int", "float", "mixed", "bool", "cm", "big", "nan")
        }
        assert kinds == {
            "int": "Int64",
            "float": "float64",
            "mixed": "float64",
            "bool": "boolean",
            "cm": "object",
            "big": "object",
            "nan": "float64",
        }
        assert isinstance(frame["cm"][0], numpy.ndarray) and frame["cm"][0].tolist() == [
            [1, 0],
            [0, 2],
        ]
        assert (
            frame["ragged"][0] == [[1], [1, 2]]
            and frame["big"][0] == 2**70
            and frame["dict"][0] == {"a": 1}
        )
        assert frame["vec"][0].dtype == float and frame["words"][0].tolist() == ["a", "b"]
        assert frame["large"][0].load().shape == (5000,)
        assert list(frame["cm"].isna()) == [False, True] == list(frame["text"].isna())


def test_a_running_training_is_visible(store: Store) -> None:
    run = make(store, A, status="running")
    journal = Journal(run.path / "metrics" / "record-r0.jsonl", run.path / "media")
    for step in (1, 2):
        journal.append(Row(Position(0, step), "train", "step", {"loss": 0.5}, 1.0))
        assert len(dataframe(store, "loss")) == step
    journal.close()


def test_runs_are_chosen_by_record_id_or_name(two: Store) -> None:
    for runs in (["gpt"], "gpt", [B], ["gpt", B]):
        assert set(dataframe(two, "val_acc", runs=runs)["run"]) == {B}
    with pytest.raises(UnknownRun):
        dataframe(two, "val_acc", runs=["bret"])


def test_rows_are_sorted_whatever_the_order_of_writing(store: Store) -> None:
    log(
        make(store, B), [(2, 4, "train", "step", {"loss": 2}), (0, 1, "train", "step", {"loss": 1})]
    )
    log(
        make(store, A),
        [(11, 100, "train", "step", {"loss": 2}), (2, 20, "train", "step", {"loss": 1})],
    )
    frame = dataframe(store, "loss", runs=[B, A])
    assert table(frame[["run", "epoch"]]) == [(A, 2), (A, 11), (B, 0), (B, 2)]


def test_positions_holds_every_completed_epoch(two: Store) -> None:
    run = make(two, A, position=Position(4, 8), params={"batch": 8})
    frame = positions(run, ["val_acc", "cm", "batch", "run"], "epoch")
    assert list(frame.columns) == ["run", "epoch", "step", "val_acc", "cm", "batch"]
    assert table(frame) == [
        (A, 1, 2, 0.5, None, 8),
        (A, 2, 4, 0.75, None, 8),
        (A, 3, None, None, None, 8),
        (A, 4, 8, None, None, 8),
    ]


def test_positions_holds_every_recorded_step(two: Store) -> None:
    frame = positions(make(two, A), ["lr", "val_acc", "cm"], "step")
    assert table(frame) == [
        (0, 1, 1, None, None), (1, 2, 2, 0.5, None), (1, 3, None, 0.5, None), (2, 4, 3, 0.75, None),
    ]  # fmt: skip


def test_an_epoch_value_reaches_the_steps_after_it_even_where_no_step_was_recorded(
    store: Store,
) -> None:
    run = make(store, A)
    log(
        run,
        [
            (0, 1, "train", "step", {"n": 1}),
            (1, 2, "validation", "epoch", {"m": 5}),
            (1, 3, "train", "step", {"n": 2}),
        ],
    )
    assert table(positions(run, ["m"], "step")) == [(0, 1, None), (1, 3, 5)]


def test_positions_of_a_run_without_rows_is_empty(store: Store) -> None:
    for level in ("epoch", "step"):
        frame = positions(make(store, A), ["m"], level)  # type: ignore[arg-type]
        assert list(frame.columns) == ["epoch", "step", "m"] and len(frame) == 0
