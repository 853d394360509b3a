"""A predicate over a history of forty runs chooses what pandas chooses on a table made from
the raw journals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import (
    Code,
    Launch,
    Position,
    RecordingProcess,
    ReplayRequest,
    Row,
    Run,
    Timing,
)
from flor_plugins.replayer.planning import missing, planner
from flor_plugins.store.checkpoints import save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.runs import save_run

RUNS, EPOCHS, STEPS = 40, 4, 3
HOOKS = """
import flor_plugins as flor

@flor.metric
def accuracy(ctx): ...

@flor.metric(at="step")
def norm(ctx):
    yield
"""
Table = pandas.DataFrame
PREDICATES: list[tuple[str, Callable[[Table], Any]]] = [
    ("val_acc > 0.5", lambda t: t.val_acc > 0.5),
    ("lr < 0.01 and not val_acc >= 0.5", lambda t: (t.lr < 0.01) & ~(t.val_acc >= 0.5)),
    ("accuracy.isna()", lambda t: t.accuracy.isna()),
    ("loss.notna() and epoch >= 2", lambda t: t.loss.notna() & (t.epoch >= 2)),
    (
        "opt in ['sgd', 'lion'] and norm.isna()",
        lambda t: t.opt.isin(["sgd", "lion"]) & t.norm.isna(),
    ),
    ("opt == 'adam' or name == 'run07'", lambda t: (t.opt == "adam") | (t.name_ == "run07")),
    ("params.batch >= 16", lambda t: t.batch >= 16),
    ("0.2 < val_acc <= 0.7", lambda t: (t.val_acc > 0.2) & (t.val_acc <= 0.7)),
    ("loss * batch / 8 + 1 > 2.5", lambda t: t.loss * t.batch / 8 + 1 > 2.5),
    ("epoch % 2 == 0 or step == 4", lambda t: (t.epoch % 2 == 0) | (t.step == 4)),
    ("loss < 1 - val_acc", lambda t: t.loss < 1 - t.val_acc),
    ("`val/f1` >= 0.5 and name != 'run03'", lambda t: (t.f1 >= 0.5) & (t.name_ != "run03")),
    (
        "model.depth == 4 and not (loss < 0.5 or lr.isna())",
        lambda t: (t.depth == 4) & ~((t.loss < 0.5) | t.lr.isna()),
    ),
    (
        "name.str.startswith('run1') & (val_acc != 0.5)",
        lambda t: t.name_.str.startswith("run1") & (t.val_acc != 0.5),
    ),
]


def write(run: Run, writer: str, rows: list[Row]) -> None:
    journal = Journal(run.path / "metrics" / f"{writer}.jsonl", run.path / "media")
    for row in rows:
        journal.append(row)
    journal.close()


def of(number: int, epoch: int) -> dict[str, float]:
    """What validation gave at the end of that epoch; some runs and epochs lack some of it."""
    values = {"val_acc": (number * 7 + epoch * 3) % 11 / 10, "val/f1": (number * 5 + epoch) % 9 / 8}
    if number % 6 == 0:
        del values["val/f1"]
    if (number + epoch) % 5 == 0:
        del values["val_acc"]
    return values


def params_of(number: int) -> dict[str, Any]:
    params = {
        "lr": 0.002 * (number % 9),
        "batch": 8 * (1 + number % 3),
        "opt": ["adam", "sgd", "lion"][number % 3],
        "model.depth": 2 + number % 4,
    }
    if number % 10 == 4:
        del params["lr"]
    return params


def record(store: Store, number: int, hooks: Path) -> Run:
    """A run as a recording leaves it, with some values of a replay of today's hooks, some of
    older ones.
    """
    run_id = f"20261123-2005{number:02}-123-9f3a2c"
    run = Run(
        run_id,
        f"run{number:02}",
        "p",
        "hf",
        "finished",
        "2026-11-23T20:05:01Z",
        Launch("script", "/r/train.py"),
        Code("a" * 40, "/r/.git", "/r"),
        RecordingProcess("elsewhere", 1, "2"),
        store.run(run_id),
        timing=Timing(1, 10, 2),
        params=params_of(number),
    )
    run.path.mkdir(parents=True)
    save_run(run)
    for epoch in range(EPOCHS + 1):
        state = {"model": {"w": torch.full((2,), float(epoch))}, "optimizer": [], "trainer": {}}
        save_checkpoint(run.path, Position(epoch, epoch * STEPS), encode(state))
    steps = [Position(step // STEPS, step) for step in range(1, EPOCHS * STEPS + 1)]
    losses = [
        Row(
            one,
            "train",
            "step",
            {"loss": number % 8 / one.step} if (number + one.step) % 7 else {"other": 1},
            0.0,
        )
        for one in steps
    ]
    ends = [Position(epoch, epoch * STEPS) for epoch in range(1, EPOCHS + 1)]
    write(
        run,
        "record-r0",
        [*losses, *(Row(one, "validation", "epoch", of(number, one.epoch), 0.0) for one in ends)],
    )
    today = {one.name: one.digest for one in scan(hooks)}
    computed = [Row(one, "validation", "epoch", {"accuracy": 0.5}, 0.0, "exact", today["accuracy"])
                for one in ends if (number + one.epoch) % 3 == 0]  # fmt: skip
    computed += [Row(one, "train", "step", {"norm": 1.0}, 0.0, "exact", today["norm"])
                 for one in steps if (number + one.step) % 4 == 0]  # fmt: skip
    older = [Row(one, "validation", "epoch", {"accuracy": 0.25}, 0.0, "exact", "0" * 64)
             for one in ends if (number + one.epoch) % 3 != 1]  # fmt: skip
    older += [Row(one, "train", "step", {"norm": 2.0}, 0.0, "diverged", "0" * 64)
              for one in steps if (number + one.step) % 4 != 1]  # fmt: skip
    write(run, "replay-20261124-000000-000-000000-w0", older)
    write(run, "replay-20261125-000000-000-000000-w0", computed)
    return run


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hooks") / "hooks.py"
    path.write_text(HOOKS)
    return path


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, hooks: Path) -> list[Run]:
    store = Store(tmp_path_factory.mktemp("history") / ".flor").make()
    return [record(store, number, hooks) for number in range(RUNS)]


def lines_of(run: Run, asked: str, hooks: Path) -> dict[tuple[str, int], Any]:
    """(metric, step) to its value, as the newest journal says; of `asked` only what today's
    hook gave.
    """
    today = {one.name: one.digest for one in scan(hooks)}
    found = {}
    for file in sorted((run.path / "metrics").glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()[1:]):
            for name, value in line["values"].items():
                if name != asked or line["hook"] == today[name]:
                    found[name, line["step"]] = value
    return found


def table(history: list[Run], asked: str, hooks: Path) -> Table:
    """One row per epoch, or for `norm` per step, of all runs.

    On steps an epoch's values hold while its number does.
    """
    rows = []
    for run in history:
        found = lines_of(run, asked, hooks)
        for step in range(1, EPOCHS * STEPS + 1):
            epoch = step // STEPS
            if asked != "norm" and step % STEPS:
                continue
            ended = epoch * STEPS
            rows.append(
                {
                    "run": run.run_id,
                    "name_": run.name,
                    "epoch": epoch,
                    "step": step,
                    "loss": found.get(("loss", step)),
                    "norm": found.get(("norm", step)),
                    "val_acc": found.get(("val_acc", ended)),
                    "f1": found.get(("val/f1", ended)),
                    "accuracy": found.get(("accuracy", ended)),
                    "lr": run.params.get("lr"),
                    "batch": run.params["batch"],
                    "opt": run.params["opt"],
                    "depth": run.params["model.depth"],
                }
            )
    numbers = ["loss", "norm", "val_acc", "f1", "accuracy", "lr"]
    return pandas.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))


def plan_of(
    history: list[Run], hooks: Path, *metrics: str, where: str | None = None
) -> planner.Plan:
    store = Store(history[0].path.parents[1])
    return planner.make(store, history, ReplayRequest(metrics, where, hooks=(hooks,)))


def chosen(made: planner.Plan) -> set[tuple[str, int]]:
    """(run, step) of all that is to be computed."""
    return {
        (task.run_id, step)
        for task in made.tasks
        for one in task.passes
        for step in (one.steps or [position.step for position in one.positions])
    }


@pytest.fixture(scope="module")
def counts() -> Iterator[list[tuple[str, str, int, int, int]]]:
    """Filled by the tests and shown with `pytest -s`: predicate, metric, places of all,
    chosen by us, by pandas.
    """
    found: list[tuple[str, str, int, int, int]] = []
    yield found
    print(f"\n{'predicate':<55} {'missing metric':<14} {'of all':>6} {'ours':>5} {'pandas':>6}")
    for where, metric, every, ours, theirs in found:
        print(f"{where:<55} {metric:<14} {every:>6} {ours:>5} {theirs:>6}")


@pytest.mark.parametrize("metric", ["accuracy", "norm"])
@pytest.mark.parametrize(("where", "mask"), PREDICATES, ids=[text for text, _ in PREDICATES])
def test_a_predicate_chooses_what_pandas_chooses(
    history: list[Run],
    hooks: Path,
    counts: list[Any],
    where: str,
    mask: Callable[[Table], Any],
    metric: str,
) -> None:
    rows = table(history, metric, hooks)
    expected = rows[mask(rows) & rows[metric].isna()]
    assert 0 < len(expected) < len(rows)
    made = plan_of(history, hooks, metric, where=where)
    counts.append((where, metric, len(rows), len(chosen(made)), len(expected)))
    assert chosen(made) == set(zip(expected["run"], expected["step"], strict=True))


def test_without_a_predicate_all_that_is_missing_is_chosen(history: list[Run], hooks: Path) -> None:
    rows = table(history, "accuracy", hooks)
    missing = rows[rows["accuracy"].isna()]
    made = plan_of(history, hooks, "accuracy")
    assert chosen(made) == set(zip(missing["run"], missing["step"], strict=True))


def test_each_journal_is_read_once_for_a_plan(
    history: list[Run], hooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = missing.read_run
    for module in (planner, missing, __import__("flor_plugins.store.query.series", fromlist=[""]),
                   __import__("flor_plugins.store.run_index", fromlist=[""])):  # fmt: skip
        monkeypatch.setattr(
            module, "read_run", lambda path, names=None: read.append(path) or original(path, names)
        )
    plan_of(history, hooks, "accuracy", "norm", where="lr < 1 or accuracy.isna()")
    assert sorted(read) == [run.path for run in history]
