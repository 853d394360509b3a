"""A plan asks for what is missing, in the cheapest way, and says what can't be done.

Nothing is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flor_plugins.cli.show_plan import COLUMNS, rows_of
from flor_plugins.errors import FlorError, HookError, ReplayError, WhereError
from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import (
    Code,
    Launch,
    Plan,
    Position,
    RecordingProcess,
    ReplayRequest,
    Row,
    Run,
    Timing,
    TrainingRange,
    Verdict,
)
from flor_plugins.records.events import PassResult
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.planning import planner
from flor_plugins.replayer.requests import ReplayResult, hook_files, recipe_hooks
from flor_plugins.store.checkpoints import save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.files import write_json
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.runs import save_run

STEPS = 4
HOOKS = """
import flor_plugins as flor

@flor.metric
def accuracy(ctx): ...

@flor.metric(at="validation")
def wrong(ctx): ...

@flor.metric(at="step")
def norm(ctx):
    yield

def helper(): ...
"""


def boundary(epoch: int) -> Position:
    return Position(epoch, epoch * STEPS)


def log(
    run: Run,
    writer: str,
    rows: Mapping[Position, Mapping[str, Any]],
    level: Any = "step",
    hook: str | None = None,
) -> None:
    journal = Journal(run.path / "metrics" / f"{writer}.jsonl", run.path / "media")
    for position, values in rows.items():
        journal.append(Row(position, "train", level, values, 0.0, hook=hook))
    journal.close()


def record(
    store: Store, number: int = 1, saved: Collection[int] = (0, 1, 2, 3), **changes: Any
) -> Run:
    """A run of three epochs of four steps, as a recording leaves it."""
    run_id = f"20261123-20050{number}-123-9f3a2c"
    fields: dict[str, Any] = {
        "run_id": run_id,
        "name": f"run{number}",
        "project": "p",
        "framework": "hf",
        "status": "finished",
        "started_at": "2026-11-23T20:05:01Z",
        "launch": Launch("script", "/r/train.py"),
        "code": Code("a" * 40, "/r/.git", "/r"),
        "process": RecordingProcess("elsewhere", 1, "2"),
        "path": store.run(run_id),
        "timing": Timing(1.0, 10.0, 2.0),
        "params": {"lr": 0.1 * number},
    }
    run = Run(**{**fields, **changes})
    run.path.mkdir(parents=True)
    (run.path / "metrics").mkdir()
    save_run(run)
    for epoch in saved:
        state = {"model": {"w": torch.full((2,), float(epoch))}, "optimizer": [], "trainer": {}}
        save_checkpoint(run.path, boundary(epoch), encode(state))
    steps = {Position(step // STEPS, step): {"loss": 1 / step} for step in range(1, 3 * STEPS + 1)}
    log(run, "record-r0", steps)
    log(run, "record-r1", {boundary(epoch): {"val": float(epoch)} for epoch in (1, 2, 3)}, "epoch")
    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    path = tmp_path / "hooks.py"
    path.write_text(HOOKS)
    return path


def ask(
    runs: list[Run], hooks: Path, *metrics: str, where: str | None = None, epochs: Any = "all"
) -> Plan:
    store = Store(runs[0].path.parents[1])
    return planner.make(store, runs, ReplayRequest(metrics, where, epochs, hooks=(hooks,)))


def ways(made: Plan) -> dict[str, tuple[int, ...]]:
    return {one.way: one.epochs for task in made.tasks for one in task.passes}


def test_each_metric_goes_the_cheapest_way(store: Store, hooks: Path) -> None:
    made = ask([record(store)], hooks)
    assert made.metrics == ("accuracy", "wrong", "norm")
    assert ways(made) == {"state": (1, 2, 3), "validate": (1, 2, 3), "train": (1, 2, 3)}
    bases = {one.way: one.checkpoints for one in made.tasks[0].passes}
    # the ends first
    assert bases["state"] == (
        "epoch=1,step=4",
        "epoch=3,step=12",
        "epoch=2,step=8",
    )
    assert bases["train"] == ("epoch=0,step=0", "epoch=2,step=8", "epoch=1,step=4")


def test_the_estimate_comes_from_the_recorded_timing(store: Store, hooks: Path) -> None:
    run = record(store)
    assert ask([run], hooks, "norm").seconds == 31.0
    assert ask([run], hooks, "wrong").seconds == 7.0
    unknown = record(store, 2, timing=Timing())
    assert ask([unknown], hooks, "norm").seconds is None


def replayed(store: Store, number: int, made: Plan, seconds: Mapping[str, float]) -> None:
    """What a replay leaves beside its values: the plan, and seconds by way."""
    folder = store.replay(f"2026112{number}-000000-000-000000")
    write_json(folder / "plan.json", made.to_json())
    rows = [
        {"run": task.run_id, "way": way, "seconds": its}
        for task in made.tasks
        for way, its in seconds.items()
    ]
    write_json(folder / "verdicts.json", {"format": 1, "passes": rows})


def test_what_the_newest_replay_of_a_way_took_is_the_estimate(store: Store, hooks: Path) -> None:
    run = record(store)
    made = ask([run], hooks)
    replayed(store, 4, made, {"state": 6.0, "train": 24.0})
    replayed(store, 5, made, {"state": 3.0})
    unread = store.replay("20261126-000000-000-000000")
    write_json(unread / "verdicts.json", {"passes": [{}]})
    assert ask([run], hooks, "accuracy").seconds == 1.0 + 3 * 1.0
    assert ask([run], hooks, "norm", epochs=[1]).seconds == 1.0 + 4 * 2.0
    assert ask([run], hooks, "wrong").seconds == 7.0, "no replay has validated"
    assert ask([record(store, 2)], hooks, "accuracy").seconds == 4.0, (
        "another run goes by its own times"
    )


def test_after_a_replay_the_estimate_stands_beside_what_it_took(store: Store, hooks: Path) -> None:
    made = ask([record(store)], hooks)
    task = made.tasks[0]
    passed = [
        PassResult(one.way, one.epochs, 0.126, Verdict("exact", compared=1)) for one in task.passes
    ]
    rows = ReplayResult(made, (), (Outcome(task, passed=passed),)).rows
    assert [(row["estimated"], row["seconds"]) for row in rows] == [
        (one.seconds, 0.13) for one in task.passes
    ]


def test_the_table_of_a_plan_says_all_of_each_pass(store: Store, hooks: Path) -> None:
    made = ask([record(store)], hooks, "accuracy")
    row = rows_of(made, is_whole=False)[0]
    shown = {name: row[name] for name in COLUMNS}
    assert shown == {
        "run": made.tasks[0].run_id,
        "name": "run1",
        "vid": "a" * 12,
        "epochs": "1,2,3",
        "way": "state",
        "checkpoints": ("epoch=1,step=4 epoch=3,step=12 epoch=2,step=8"),
        "seconds": "~4.0",
        "bytes": "24 B",
        "metrics": "accuracy",
    }
    assert rows_of(made, is_whole=True)[0]["bytes"] == 24


def test_the_trainer_is_built_once_for_all_passes_of_a_run(store: Store, hooks: Path) -> None:
    assert ask([record(store)], hooks).seconds == 1.0 + 3 * 1.0 + 3 * 2.0 + 3 * 10.0


def test_the_bytes_that_are_read_are_those_of_the_sections_that_are_restored(
    store: Store, hooks: Path
) -> None:
    run = record(store, saved=())
    known: dict[Any, Any] = {}  # so that what is frozen is a reference to the first
    for epoch in (0, 1, 2, 3):
        model = {"w": torch.full((2,), float(epoch)), "frozen": torch.ones(8)}
        state = {"model": model, "optimizer": [torch.full((4,), float(epoch))], "trainer": {}}
        save_checkpoint(run.path, boundary(epoch), encode(state), known)
    read = {one.way: one.nbytes for one in ask([run], hooks).tasks[0].passes}
    assert read == {"state": 3 * 40, "validate": 3 * 56, "train": 3 * 56}


def test_what_is_there_is_not_asked_again(store: Store, hooks: Path) -> None:
    run = record(store)
    source = scan(hooks)[0].digest
    log(
        run,
        "replay-x-w0",
        {boundary(epoch): {"accuracy": 0.5} for epoch in (1, 3)},
        "epoch",
        source,
    )
    assert ways(ask([run], hooks, "accuracy")) == {"state": (2,)}
    log(run, "replay-y-w0", {boundary(2): {"accuracy": 0.5}}, "epoch", source)
    assert ask([run], hooks, "accuracy").tasks == ()


@pytest.mark.parametrize(
    ("where", "epochs", "steps"),
    [
        ("step == 5", (2,), (5,)),
        ("step == 4", (1,), (4,)),
        ("step >= 4 and step < 6", (1, 2), (4, 5)),
        ("loss < 0.1", (3,), (11, 12)),
        ("norm.isna()", (1, 2, 3), tuple(range(1, 13))),
        ("step > 100", (), ()),
    ],
)
def test_where_chooses_steps_and_the_epochs_that_make_them(
    store: Store, hooks: Path, where: str, epochs: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    made = ask([record(store)], hooks, "norm", where=where)
    assert ways(made) == ({"train": epochs} if epochs else {})
    if epochs:
        assert made.tasks[0].passes[0].steps == steps


def test_where_chooses_epochs_and_runs(store: Store, hooks: Path) -> None:
    runs = [record(store), record(store, 2)]
    assert ways(ask(runs[:1], hooks, "accuracy", where="val >= 2")) == {"state": (2, 3)}
    made = ask(runs, hooks, "accuracy", where="lr > 0.15")
    assert [task.name for task in made.tasks] == ["run2"]


@pytest.mark.parametrize(
    "where", ["epoch >", "print(epoch)", "__import__('os')", "epochs > 1", "epoch = 1", "x.y.z > 1"]
)
def test_a_wrong_where_is_told_before_anything_is_run(
    store: Store, hooks: Path, where: str
) -> None:
    with pytest.raises(WhereError) as caught:
        ask([record(store)], hooks, "accuracy", where=where)
    assert where.split("(")[0].split(" ")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "found"),
    [
        ("all", (1, 2, 3)),
        ("last", (3,)),
        ("2", (2,)),
        ("1,3", (1, 3)),
        ("2:3", (2, 3)),
        ("2:", (2, 3)),
        ("sample:2", (1, 3)),
        ("sample:9", (1, 2, 3)),
        ([3, 1], (1, 3)),
    ],
)
def test_epochs_are_named_in_words_or_numbers(
    store: Store, hooks: Path, epochs: Any, found: tuple[int, ...]
) -> None:
    assert ways(ask([record(store)], hooks, "accuracy", epochs=epochs)) == {"state": found}


def test_the_weights_before_the_first_batch_can_be_asked(store: Store, hooks: Path) -> None:
    made = ask([record(store)], hooks, "accuracy", epochs=[0])
    assert ways(made) == {"state": (0,)}


@pytest.mark.parametrize("epochs", ["7", [7], "2,7"])
def test_an_unknown_epoch_is_told_with_those_that_exist(
    store: Store, hooks: Path, epochs: Any
) -> None:
    with pytest.raises(FlorError, match=r"run1 .* asked for epoch 7; it completed 0, 1, 2, 3"):
        ask([record(store)], hooks, "accuracy", epochs=epochs)


@pytest.mark.parametrize("epochs", ["first", "1:x", "1-2", "", "sample:0", "sample:x", "sample:"])
def test_epochs_that_mean_nothing_are_told(store: Store, hooks: Path, epochs: str) -> None:
    with pytest.raises(ReplayError, match="use all, last"):
        ask([record(store)], hooks, "accuracy", epochs=epochs)


def test_an_unknown_metric_is_told_with_the_hooks_and_their_file(store: Store, hooks: Path) -> None:
    with pytest.raises(HookError, match=r"'acuracy'.*accuracy, wrong, norm.*hooks\.py"):
        ask([record(store)], hooks, "acuracy")
    with pytest.raises(HookError, match="which metrics"):
        planner.make(store, [], ReplayRequest())


def test_a_run_that_cannot_be_replayed_is_skipped_with_its_reason(
    store: Store, hooks: Path
) -> None:
    runs = [
        record(store, 1, code=None), record(store, 2, launch=Launch("interactive", "")),
        record(store, 3, saved=()), record(store, 4),
    ]  # fmt: skip
    made = ask(runs, hooks, "accuracy")
    assert [task.name for task in made.tasks] == ["run4"]
    assert [reason for _, reason in sorted(made.skipped.items())] == [
        "its code was not recorded", "it was started from a prompt or a "
                                     "notebook", "it has no whole checkpoint"
    ]  # fmt: skip


def test_epochs_without_a_checkpoint_before_them_are_run_up_to(store: Store, hooks: Path) -> None:
    run = record(store, saved=(0, 2, 3))
    made = ask([run], hooks, "accuracy")
    assert ways(made) == {"state": (2, 3), "train": (1,)}
    assert made.tasks[0].passes[1].stretches == (TrainingRange(boundary(0), boundary(1), (1,)),)
    assert made.tasks[0].passes[1].positions == (boundary(1),)
    made = ask([run], hooks, "norm", epochs=[2])
    assert ways(made) == {"train": (1, 2)}
    assert made.tasks[0].passes[0].checkpoints == ("epoch=0,step=0",)


def test_values_of_a_callback_cost_its_way(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "callbacks.py"
    path.write_text(
        "class Hook(TrainerCallback):\n    def on_evaluate(self, *args, **kwargs): ...\n"
    )
    assert ways(ask([record(store)], path, "anything")) == {"validate": (1, 2, 3)}
    path.write_text(
        "class Hook(TrainerCallback):\n    def on_step_end(self, *args, **kwargs): ...\n"
    )
    assert ways(ask([record(store, 2)], path, "anything")) == {"train": (1, 2, 3)}


def test_planning_writes_nothing(store: Store, hooks: Path) -> None:
    runs = [record(store)]
    before = {str(path): path.stat().st_mtime_ns for path in store.root.rglob("*")}
    ask(runs, hooks, where="loss < 0.2")
    assert {str(path): path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_hooks_are_those_named_else_those_of_the_asking_script(
    store: Store, hooks: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    run = record(store)
    assert hook_files([other], str(hooks)) == (other.resolve(),)
    assert hook_files([], str(hooks)) == (hooks.resolve(),)
    assert hook_files([], str(other)) == recipe_hooks([run]) == ()
