"""The first place at which a predicate holds: the right one, with few evaluations, and
nothing twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

import flor_plugins as flor
from flor_plugins.errors import Diverged, HookError, ReplayError, UnknownRun, WhereError
from flor_plugins.records import Obstacle, Position
from flor_plugins.replayer import requests
from flor_plugins.replayer.searching import search
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from tests import replaying, searching
from tests.replaying import HOOKS, Project
from tests.searching import Workers, record

EPOCHS = 256
NONE = Obstacle("none", "it was lost", "record again")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    path = tmp_path / "hooks.py"
    path.write_text(searching.HOOKS)
    return path


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """acc is a hundredth of the epoch, norm a tenth of the step."""
    made = Workers(lambda name, at: at.epoch / 100 if name == "acc" else at.step / 10)
    monkeypatch.setattr(requests, "execute", made.execute)
    return made


def answers(frame: pandas.DataFrame) -> list[tuple[str, Any, Any, bool]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        (row["name"], row["epoch"], row["step"], row["first"]) for row in plain.to_dict("records")
    ]


# ---- recorded values: nothing is computed


def test_recorded_values_answer_without_a_replay(store: Store, workers: Workers) -> None:
    record(store, 1, 3, logged=lambda at: {"grad_norm": 2.0})
    record(store, 2, 3, logged=lambda at: {"grad_norm": 11.0 if at.step in (7, 9) else 1.0})
    record(store, 3, 3, logged=lambda at: {"grad_norm": 20.0})
    frame = flor.first("grad_norm > 10", store=store.root)
    assert answers(frame) == [
        ("run1", None, None, False),
        ("run2", 1, 7, True),
        ("run3", 0, 1, False),
    ]
    assert list(frame.columns) == [
        "run",
        "name",
        "epoch",
        "step",
        "grad_norm",
        "evaluated",
        "first",
        "detail",
    ]
    assert frame["grad_norm"].tolist()[1:] == [11.0, 20.0]
    assert frame["detail"].tolist() == ["holds nowhere", "", ""]
    assert frame["evaluated"].tolist() == [0, 0, 0] and workers.plans == []


def test_the_answer_has_its_columns_where_it_holds_nowhere(store: Store) -> None:
    record(store, 1, 2)
    frame = flor.first("loss > 10", store=store.root)
    assert answers(frame) == [("run1", None, None, False)]
    assert str(frame["epoch"].dtype) == "Int64" and frame["loss"].isna().all()


def test_parameters_choose_runs(store: Store) -> None:
    record(store, 1, 2, lr=0.1)
    record(store, 2, 2, lr=0.5)
    assert answers(flor.first("lr > 0.2", store=store.root)) == [
        ("run1", None, None, False),
        ("run2", 1, 4, True),
    ]


# ---- computed values


def test_a_first_crossing_over_256_epochs_calls_the_hook_at_most_9_times(
    store: Store, hook: Path, workers: Workers
) -> None:
    run = record(store, 1, EPOCHS)
    for crossing in (2, 137, 300):
        frame = flor.first(
            f"acc >= {crossing / 100}", monotone=True, hooks=[hook], store=store.root
        )
        expected = (crossing, crossing * 4) if crossing <= EPOCHS else (None, None)
        assert answers(frame) == [("run1", *expected, crossing <= EPOCHS)]
        assert len(workers.called) == len(set(workers.called)) == frame["evaluated"][0] <= 9
        workers.called.clear()
        for file in (run.path / "metrics").glob("replay-*"):
            file.unlink()


def test_asked_again_nothing_is_computed_and_a_near_question_is_narrowed_by_what_is_known(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 64)
    flor.first("acc >= 0.2", monotone=True, hooks=[hook], store=store.root)
    before = len(workers.called)
    assert before <= 7
    flor.first("acc >= 0.2", monotone=True, hooks=[hook], store=store.root)
    assert len(workers.called) == before
    frame = flor.first("acc >= 0.21", monotone=True, hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 21, 84, True)]
    assert len(workers.called) - before <= 3 < before


def test_a_scan_is_exact_where_nothing_is_monotone(
    store: Store, hook: Path, workers: Workers
) -> None:
    workers.truth = lambda name, at: float(at.epoch in (9, 40, 41))
    record(store, 1, 64)
    frame = flor.first("acc == 1", hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 9, 36, True)]
    looked = {place.epoch for _, _, place in workers.called}
    assert set(range(1, 10)) <= looked and frame["evaluated"][0] == len(looked) < 64


def test_each_run_has_its_answer_and_the_oldest_with_one_is_first(
    store: Store, hook: Path, workers: Workers
) -> None:
    for number, epochs in enumerate((4, 16, 12), 1):
        record(store, number, epochs)
    frame = flor.first("acc > 0.045", monotone=True, hooks=[hook], store=store.root)
    assert answers(frame) == [
        ("run1", None, None, False),
        ("run2", 5, 20, True),
        ("run3", 5, 20, False),
    ]
    assert frame["evaluated"].tolist()[0] == 1
    assert len(workers.plans) <= 5  # the runs are searched beside each other


def test_runs_and_epochs_can_be_named(store: Store, hook: Path, workers: Workers) -> None:
    for number in (1, 2):
        record(store, number, 8)
    frame = flor.first("acc > 0.02", hooks=[hook], run="run2", epochs="5:8", store=store.root)
    assert answers(frame) == [("run2", 5, 20, True)]
    assert {(run, place.epoch >= 5) for run, _, place in workers.called} == {
        (frame["run"][0], True)
    }


def test_metrics_of_updates_give_an_update(store: Store, hook: Path, workers: Workers) -> None:
    record(store, 1, 16)
    frame = flor.first("norm >= 2.3", monotone=True, hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 5, 23, True)]
    assert frame["evaluated"][0] <= 5
    assert len(workers.called) == 4 * frame["evaluated"][0]


def test_an_epochs_value_stands_beside_the_steps_after_it(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 8)
    frame = flor.first("loss < 0.08 and acc >= 0.03", hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 3, 13, True)]  # loss is 1/step, and acc of epoch 3 is 0.03


def test_where_another_part_of_the_predicate_is_false_nothing_is_computed(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 16, lr=0.1)
    record(store, 2, 16, lr=0.5)
    frame = flor.first("lr > 0.2 and epoch > 12 and acc > 0.13", hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", None, None, False), ("run2", 14, 56, True)]
    assert {(run[-20:], place.epoch > 12) for run, _, place in workers.called} == {
        (frame["run"][1][-20:], True)
    }


def test_epochs_without_a_checkpoint_are_trained_again(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 16, saved=(0, 8))
    frame = flor.first("acc >= 0.11", monotone=True, hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 11, 44, True)]
    assert {one.way for plan in workers.plans for task in plan.tasks for one in task.passes} == {
        "state",
        "train",
    }


def test_epochs_that_nothing_leads_to_are_told_and_others_answer(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 8, saved=(4, 6, 8))
    frame = flor.first("acc >= 0.05", hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", 5, 20, True)]
    assert frame["detail"][0] == "no value in epoch 1, 2, 3: no checkpoint leads there"


def test_a_run_that_cannot_be_replayed_says_why_and_does_not_stop_the_others(
    store: Store, hook: Path, workers: Workers
) -> None:
    record(store, 1, 4, obstacles=(NONE,))
    record(store, 2, 4)
    frame = flor.first("acc >= 0.02", hooks=[hook], store=store.root)
    assert answers(frame) == [("run1", None, None, False), ("run2", 2, 8, True)]
    assert frame["detail"].tolist() == ["it was lost. record again", ""]


def test_a_claim_of_monotony_that_is_wrong_is_told(
    store: Store, hook: Path, workers: Workers
) -> None:
    workers.truth = lambda name, at: float(at.epoch in (8, 16))
    record(store, 1, 16)
    flor.first("acc == 0.5", hooks=[hook], store=store.root)  # every epoch is known now
    frame = flor.first("acc == 1", hooks=[hook], monotone=True, store=store.root)
    assert answers(frame) == [("run1", 8, 32, True)]
    assert (
        frame["detail"][0] == "not monotone: it does not hold in epoch 9, 10, 11, 12, 13 and 2 more"
    )


def test_what_it_may_take_is_known_before(store: Store, hook: Path, workers: Workers) -> None:
    record(store, 1, 16, lr=0.1)
    for is_monotone, most in ((True, 5), (False, 16)):
        begun = search.begin(
            store,
            flor.runs(store=store.root),
            search.SearchQuery("acc > 1", is_monotone, "all", (hook,)),
        )
        count, seconds = begun.estimate()
        assert count == most and seconds == pytest.approx(most / 16 * (1 + 16 * 0.1 * 10), rel=0.5)
    begun.run()
    assert begun.estimate() == (0, 0.0)


# ---- mistakes


def test_a_hook_that_fails_is_told(store: Store, hook: Path, workers: Workers) -> None:
    workers.fails = ("run1",)
    record(store, 1, 4)
    with pytest.raises(HookError, match="run run1: metric 'acc' failed"):
        flor.first("acc > 0.02", hooks=[hook], store=store.root)
    assert len(workers.plans) <= 2


def test_a_replay_that_differs_is_told(store: Store, hook: Path, workers: Workers) -> None:
    workers.diverges = ("run1",)
    record(store, 1, 4)
    with pytest.raises(Diverged, match="run1 diverged"):
        flor.first("acc > 0.02", hooks=[hook], store=store.root)


@pytest.mark.parametrize(
    ("when", "epochs", "error", "said"),
    [
        ("acc >", "all", WhereError, "not an expression"),
        ("losss > 1", "all", WhereError, "did you mean loss"),
        ("loss > 1", "some", ReplayError, "sample:5"),
    ],
)
def test_a_wrong_question_is_told_before_anything_is_run(
    store: Store,
    hook: Path,
    workers: Workers,
    when: str,
    epochs: str,
    error: type[Exception],
    said: str,
) -> None:
    record(store, 1, 4)
    with pytest.raises(error, match=said):
        flor.first(when, epochs=epochs, hooks=[hook], store=store.root)
    assert workers.plans == []


def test_an_unknown_run_is_told(store: Store) -> None:
    record(store, 1, 4)
    with pytest.raises(UnknownRun, match="run1"):
        flor.first("loss > 1", run="run7", store=store.root)


# ---- for real


@pytest.fixture(scope="module", params=[pytest.param("lightning", marks=pytest.mark.slow), "hf"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Project]:
    project = replaying.make(tmp_path_factory.mktemp(request.param) / "project")
    runs = "train(FlorCallback('slow'), epochs=4)\ntrain(FlorCallback('fast'), epochs=4, lr=0.1)\n"
    project.write("train.py", replaying.TRAIN[request.param] + runs)
    project.python("train.py")
    return request.param, project


def test_the_command_finds_what_a_full_replay_finds(recorded: tuple[str, Project]) -> None:
    framework, project = recorded
    args = (
        "--when",
        "update_norm < 0.05 and step > 9",
        "--hook",
        HOOKS[framework],
        "--run",
        "slow",
    )
    told = json.loads(project.flor("first", *args, "--json").stdout)
    for_people = project.flor("first", *args).stdout
    full = flor.replay(
        "update_norm", hooks=[project.root / HOOKS[framework]], run="slow", store=project.store.root
    )
    hits = full[(full["update_norm"] < 0.05) & (full["step"] > 9)]
    (row,) = told
    if hits.empty:
        assert row["step"] is None and "holds nowhere in 1 runs" in for_people
    else:
        assert (row["epoch"], row["step"], row["update_norm"]) == tuple(
            hits.iloc[0][["epoch", "step", "update_norm"]]
        )
        assert (
            f"holds first in run slow ({row['run']}), at epoch {row['epoch']}, step {row['step']}"
            in for_people
        )
    verdicts = {one["verdict"] for one in project.verdicts()}
    assert verdicts == {"exact"}


def test_the_command_says_what_is_wrong_with_the_question(recorded: tuple[str, Project]) -> None:
    done = recorded[1].flor("first", "--when", "loss >", ok=False)
    assert done.returncode == 1 and "not an expression" in done.stderr


def test_a_changed_hook_makes_a_new_value_and_keeps_the_old_one(
    recorded: tuple[str, Project],
) -> None:
    project = recorded[1]
    one = "import flor_plugins as flor\n@flor.metric\ndef one(ctx): return {}\n"
    text = f"{one}@flor.metric\ndef other(ctx): return 5\n"
    for value in (1, 2):
        hook = project.write("changing.py", text.format(value))
        frame = flor.replay(
            ["one", "other"], epochs="last", run="slow", hooks=[hook], store=project.store.root
        )
        assert (frame["one"].tolist(), frame["other"].tolist()) == ([value], [5])
    run = next(run for run in flor.runs(store=project.store.root) if run.name == "slow")
    rows = [row.values for _, row in read_run(run.path, ["one", "other"]) if row.values]
    assert [one for row in rows for one in row.items()] == [("one", 1), ("other", 5), ("one", 2)]


@pytest.mark.slow
def test_a_recorded_run_of_256_epochs_is_evaluated_at_most_9_times(tmp_path: Path) -> None:
    project = replaying.make(tmp_path / "project")
    settings = "epochs=256, per_device_train_batch_size=60, eval_strategy='no', logging_steps=1000"
    project.write("train.py", replaying.TRAIN["hf"] + f"train(FlorCallback('long'), {settings})\n")
    text = "import flor_plugins as flor\n@flor.metric\ndef age(ctx): return float(ctx.epoch)\n"
    hook = project.write("ages.py", text)
    project.python("train.py")
    frame = flor.first("age >= 137", hooks=[hook], monotone=True, store=project.store.root)
    assert answers(frame) == [("long", 137, 137, True)]
    (run,) = flor.runs(store=project.store.root)
    computed = [row.position for source, row in read_run(run.path, ["age"]) if "age" in row.values]
    print(
        f"\na run of 256 epochs, first age >= 137: evaluated at "
        f"{', '.join(str(one.epoch) for one in computed)}"
    )
    assert len(computed) == len(set(computed)) == frame["evaluated"][0] <= 9
    assert Position(256, 256) in computed and Position(137, 137) in computed
