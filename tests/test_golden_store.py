"""A store that an earlier version recorded (tests/golden/recorded) is read, replayed and verified.

The recorded arithmetic is exact, so each number below holds on every machine.
"""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flor_plugins as flor

GOLDEN = Path(__file__).parent / "golden/recorded"
RUNS = ("lit", "hf", "loop")
STEPS = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (1, 7), (2, 8)]

LOSS = {
    "lit": [370.0, 80.0, 49.0, 8.0, 240.5, 60.125, 86.5625, 32.0],
    "hf": [98.0, 25.0, 128.0, 60.125, 36.40625, 40.0, 98.28125, 82.6953125],
    "loop": [32.0, 40.0, 128.0, 144.0, 20.0, 86.5, 34.0, 152.5],
    "killed": [32.0, 40.0, 128.0, 144.0, 20.0],
}
# After one epoch and after two.
VALIDATION_LOSS = {
    "lit": [42.125, 44.580078125],
    "hf": [48.0546875, 43.16552734375],
    "loop": [85.5625, 67.66015625],
}
LOGGED_BY_TRAINER = {"train_loss": [126.75, 104.796875], "loss_logged": [77.78125, 64.345703125]}
WEIGHTS = {
    "lit@epoch=0": [1.0, -2.0, 0.5, 4.0],
    "lit@epoch=1": [-4.5, -2.0, 4.0, -1.5],
    "lit@epoch=2": [-3.1875, -2.0, 4.0, 1.1875],
    "hf@epoch=2": [-3.09375, -3.875, 3.125, -1.8125],
    "loop@epoch=1": [1.0, -2.0, 0.5, 1.0],
    "loop@step=6": [0.5, -3.5, 0.5, -3.0],
    "loop@epoch=2": [0.125, -3.875, 2.25, -4.875],
    "killed@epoch=1": [1.0, -2.0, 0.5, 1.0],
}
# What the earlier version computed in hindsight, with golden/recorded/hooks.py.
WEIGHT_SUM = [-4.0, 0.0]
FIRST_UPDATE = [-5.5, 0.0, 0.0, 0.0, 0.0, -1.875, 3.1875, 0.0]

# What nobody has computed before.
NEW_METRICS = ("validated", "gradient_sum")
NEW_HOOKS = """
import flor_plugins as flor

@flor.metric(at="epoch")
def validated(ctx):
    net = getattr(ctx.model, "net", ctx.model)
    return sum(net(**batch)["loss"].item() for batch in ctx.val_dataloader) / 2

@flor.metric(at="step")
def gradient_sum(ctx):
    return sum(parameter.grad.sum().item() for parameter in ctx.model.parameters())
"""
GRADIENT_SUM = {
    "lit": [88.0, 0.0, -28.0, 0.0, -30.0, 30.0, -32.0, 0.0],
    "hf": [56.0, -14.0, 0.0, 30.0, 18.5, 0.0, 14.5, -31.75],
    "loop": [0.0, 0.0, 0.0, 24.0, 0.0, 30.0, -4.0, -14.0],
}
# The steps between which a run is trained again: its checkpoints, and its end.
TRAINED_AGAIN = {"lit": [0, 4, 8], "hf": [0, 8], "loop": [0, 4, 6, 8], "killed": [0, 4, 5]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the golden store that names folders and the host of this machine."""
    root = tmp_path_factory.mktemp("golden")
    for name in ("project", "store"):
        shutil.copytree(GOLDEN / name, root / name)
    (root / "store/gitignore").rename(root / "store/.gitignore")
    for path in (path for path in root.rglob("*") if path.suffix in (".json", ".txt")):
        text = path.read_text().replace("/GOLDEN/", f"{root}/")
        path.write_text(text.replace("GOLDEN-HOST", socket.gethostname()))
    return root / "store"


class Again(NamedTuple):
    """What a replay of new hooks returned, and what a verification of each run returned."""

    frame: Any
    stretches: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def again(store: Path) -> Again:
    """Replay new hooks for three runs and verify four runs.

    One fixture does it all, so that the workers of a framework share one start: their server is
    chosen by the environment, and pytest changes the environment from test to test.
    """
    hooks = store.parent / "new_hooks.py"
    hooks.write_text(NEW_HOOKS)
    frame = flor.replay(NEW_METRICS, run=RUNS, hooks=[hooks], workers=2, store=store)
    return Again(frame, {run: flor.verify(run, store=store) for run in TRAINED_AGAIN})


def values_of(frame: Any, run: str, metric: str) -> dict[tuple[int, int], Any]:
    """Return {(epoch, step): value} of one run, without missing values."""
    own = frame[(frame["name"] == run) & frame[metric].notna()]
    return dict(zip(zip(own["epoch"], own["step"], strict=True), own[metric], strict=True))


def at_steps(values: Iterable[float]) -> dict[tuple[int, int], float]:
    return dict(zip(STEPS, values, strict=False))


def at_epochs(values: Iterable[float]) -> dict[tuple[int, int], float]:
    return dict(zip([(1, 4), (2, 8)], values, strict=True))


def test_the_runs_of_an_earlier_version_are_listed(store: Path):
    found = flor.runs(store=store)
    assert [(run.name, run.framework, run.status, str(run.position)) for run in found] == [
        ("lit", "lightning", "finished", "epoch=2,step=8"),
        ("hf", "hf", "finished", "epoch=2,step=8"),
        ("loop", "loop", "finished", "epoch=2,step=8"),
        ("killed", "loop", "killed", "None"),
    ]
    assert [run.params["lr"] for run in found if "lr" in run.params] == [0.125, 0.125, 0.125]
    assert [run.tags for run in found] == [("golden",), (), (), ()]
    assert {run.replay_grade for run in found} == {"exact"}
    assert not any(run.gaps or run.obstacles or run.error for run in found)


def test_values_of_updates_are_read_from_sealed_and_unsealed_journals(store: Path):
    frame = flor.dataframe("loss", store=store)
    assert list(frame.columns) == ["run", "name", "epoch", "step", "loss"]
    assert {run: values_of(frame, run, "loss") for run in LOSS} == {
        run: at_steps(values) for run, values in LOSS.items()
    }
    norms = values_of(flor.dataframe("grad_norm", store=store), "hf", "grad_norm")
    assert norms[0, 1] == pytest.approx(math.sqrt(1568), rel=1e-7)
    assert norms[1, 7] == 14.5


def test_values_of_epochs_are_read_from_all_phases(store: Path):
    names = ("val_loss", "eval_loss", *LOGGED_BY_TRAINER)
    frame = flor.dataframe(*names, level="epoch", store=store)
    columns = {"lit": "validation/val_loss", "hf": "eval_loss", "loop": "train/val_loss"}
    for run, column in columns.items():
        assert values_of(frame, run, column) == at_epochs(VALIDATION_LOSS[run])
    for run, name in (("lit", "train_loss"), ("hf", "loss_logged")):
        assert values_of(frame, run, name) == at_epochs(LOGGED_BY_TRAINER[name])
    assert values_of(frame, "killed", "train/val_loss") == {(1, 4): VALIDATION_LOSS["loop"][0]}


def test_replayed_values_of_an_earlier_version_are_read_with_their_verdicts(store: Path):
    frame = flor.dataframe("weight_sum", "first_update", source=True, store=store)
    frame = frame[frame["name"] == "lit"]
    assert values_of(frame, "lit", "first_update") == at_steps(FIRST_UPDATE)
    ends = frame.drop_duplicates("epoch")  # the other steps repeat the value of their epoch
    assert values_of(ends, "lit", "weight_sum") == at_epochs(WEIGHT_SUM)
    for name in ("weight_sum", "first_update"):
        known = frame[frame[name].notna()]
        assert set(known[f"{name}.verdict"]) == {"exact"}
        assert known[f"{name}.source"].str.startswith("replay ").all()


def test_values_that_an_earlier_version_replayed_are_not_computed_again(store: Path):
    told: list[Any] = []
    frame = flor.replay(
        ["weight_sum", "first_update"],
        run="lit",
        hooks=[GOLDEN / "hooks.py"],
        store=store,
        progress=lambda *event: told.append(event),
    )
    assert told == []
    assert values_of(frame, "lit", "first_update") == at_steps(FIRST_UPDATE)


def test_sql_reads_the_tables_of_an_earlier_version(store: Path):
    losses = flor.sql(
        "select r.name, count(*) as rows, sum(m.value) as total from metrics m "
        "join runs r using (run) where m.name = 'loss' group by r.name",
        store=store,
    )
    found = {name: (rows, total) for name, rows, total in losses.itertuples(index=False)}
    assert found == {run: (len(values), sum(values)) for run, values in LOSS.items()}
    checkpoints = flor.sql(
        "select r.name, list(c.step order by c.step) as steps from checkpoints c "
        "join runs r using (run) where c.is_full group by r.name",
        store=store,
    )
    found = {name: list(steps) for name, steps in checkpoints.itertuples(index=False)}
    assert found == TRAINED_AGAIN | {"killed": [0, 4]}
    assert flor.sql("select plan, verdicts from replays", store=store).notna().all(axis=None)


@pytest.mark.parametrize("place", WEIGHTS)
def test_checkpoints_of_an_earlier_version_hold_their_weights(store: Path, place: str):
    (weight,) = flor.checkpoint(place, store=store).values()
    assert weight.tolist() == WEIGHTS[place]


@pytest.mark.exactness
def test_a_new_hook_of_an_old_run_gives_the_values_that_it_had_then(again: Again):
    ends = again.frame[again.frame["step"].isin([4, 8])]
    for run in RUNS:
        assert values_of(ends, run, "validated") == at_epochs(VALIDATION_LOSS[run])
        assert values_of(again.frame, run, "gradient_sum") == at_steps(GRADIENT_SUM[run])


@pytest.mark.exactness
def test_a_replay_of_an_old_run_is_exact(again: Again, store: Path):
    frame = flor.dataframe(*NEW_METRICS, where="step == 8", source=True, store=store)
    for name in NEW_METRICS:
        verdicts = frame.set_index("name")[f"{name}.verdict"]
        assert {run: verdicts[run] for run in RUNS} == dict.fromkeys(RUNS, "exact")


@pytest.mark.exactness
@pytest.mark.parametrize("run", TRAINED_AGAIN)
def test_an_old_run_is_trained_again_to_the_last_bit(again: Again, run: str):
    stretches = again.stretches[run]
    steps = [(one["start"].step, one["end"].step) for one in stretches]
    assert steps == list(pairwise(TRAINED_AGAIN[run]))
    assert [one["verdict"] for one in stretches] == ["exact"] * len(steps), stretches
    for one, (start, end) in zip(stretches, steps, strict=True):
        assert one["compared"] >= 3 * (end - start), "loss, lr and batch of each update"
