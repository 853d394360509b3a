from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import flor_plugins as flor
from flor_plugins.hf import FlorCallback
from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from tests.conftest import Table, at, launched, load_script

EPOCHS, BATCHES, WINDOW, UPDATES = 3, 8, 3, 3  # 60 texts in batches of 8; 3 micro-batches an update


@dataclass
class Trained:
    weights: dict[str, torch.Tensor]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluated: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)


@flor.metric(at="epoch")
def nosy_epoch(ctx: Any) -> float:
    torch.randn(3), np.random.rand(), random.random()
    ctx.model.train()
    return sum(float(ctx.model(**batch).loss) for batch in ctx.val_dataloader)


@flor.metric(at="step", grad=True)
def nosy_step(ctx: Any) -> Any:
    ctx.model(input_ids=ctx.batch["input_ids"]).logits.square().sum().backward()
    return torch.stack([p.grad.norm() for p in ctx.model.parameters()]).norm() + torch.rand(())


@flor.metric(at="validation", reduce="sum")
def texts(ctx: Any) -> float:
    torch.randn(3)
    return float(len(ctx.batch["input_ids"]))


@pytest.fixture(scope="module")
def toy(shared_project: Path) -> ModuleType:
    return load_script(shared_project, "hf_toy")


def watch(trainer: Any, done: Trained, broken_at: int | None = None) -> None:
    """Note each micro-batch's loss and each update's gradient norm, without flor."""
    compute, norm = trainer.compute_loss, trainer._get_grad_norm
    counts = np.zeros(2)  # one array, changed in place at every batch

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.training:
            return compute(model, inputs, *args, **kwargs)
        loss = compute(model, inputs, *args, **kwargs)
        if broken_at == len(done.losses):
            loss = loss * float("nan")
        done.losses.append(loss.item())
        counts[0] = len(done.losses)
        flor.log("batches so far", len(done.losses))
        flor.log("counts", counts)
        return loss

    def grad_norm(*args: Any, **kwargs: Any) -> Any:
        found = norm(*args, **kwargs)
        done.norms.append(float(found))
        return found

    trainer.compute_loss, trainer._get_grad_norm = compute_loss, grad_norm


def train(
    toy: ModuleType,
    callbacks: list[Any],
    *,
    after: bool = False,
    broken_at: int | None = None,
    **settings: Any,
) -> Trained:
    done = Trained({})
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    trainer = toy.build(callbacks, **settings)
    watch(trainer, done, broken_at)
    trainer.train()
    done.weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    if after:
        done.evaluated = trainer.evaluate()
        done.predicted = trainer.predict(trainer.eval_dataset).metrics or {}
    return done


Recorded = tuple[Trained, Run, Table]


def record(
    toy: ModuleType, project: Path, store: Path, metrics: Any = (), **settings: Any
) -> Recorded:
    callback = launched(FlorCallback("toy", store=store, metrics=metrics), project, "hf_toy")
    done = train(toy, [callback], **settings)
    (run,) = flor.runs(store=store)
    return done, run, read(run)


def read(run: Run) -> Table:
    """`evaluate` after the training stands where the last evaluation does: its own journal
    is left out.
    """
    from flor_plugins.store.metrics.journal import read_rows

    rows = read_rows(run.path / "metrics" / "record-r0.parquet")
    assert len({(row.position, row.phase, row.level) for row in rows}) == len(rows)
    return {(row.position, row.phase, row.level): dict(row.values) for row in rows}


@pytest.fixture(scope="module")
def plain(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    return record(toy, shared_project, tmp_path_factory.mktemp("plain") / "store", after=True)


@pytest.fixture(scope="module")
def nosy(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    metrics = (nosy_epoch, nosy_step, texts)
    return record(toy, shared_project, tmp_path_factory.mktemp("nosy") / "store", metrics)


@pytest.fixture(scope="module")
def accumulated(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    store = tmp_path_factory.mktemp("acc") / "store"
    return record(toy, shared_project, store, accumulate=WINDOW)


@pytest.fixture(scope="module")
def alone(toy: ModuleType) -> Trained:
    return train(toy, [])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def position(step: int, per_epoch: int = BATCHES) -> tuple[int, int]:
    return step // per_epoch, step


def test_training_with_the_callback_ends_in_the_same_bits(plain: Recorded, alone: Trained) -> None:
    assert same(plain[0].weights, alone.weights)
    assert plain[0].losses == alone.losses


def test_live_metrics_that_draw_iterate_and_differentiate_change_no_bit(
    nosy: Recorded, alone: Trained
) -> None:
    done, run, table = nosy
    assert same(done.weights, alone.weights)
    assert run.gaps == ()
    for epoch in range(1, EPOCHS + 1):
        values = at(table, epoch, epoch * BATCHES, "validation", "epoch")
        assert values["texts"] == 20.0
        assert isinstance(values["nosy_epoch"], float)
    assert all("nosy_step" in at(table, *position(step)) for step in range(1, EPOCHS * BATCHES + 1))


def test_every_step_has_its_loss_learning_rate_and_gradient_norm_once(plain: Recorded) -> None:
    done, _, table = plain
    for step in range(1, EPOCHS * BATCHES + 1):
        values = at(table, *position(step))
        assert values["loss"] == done.losses[step - 1]
        assert values["grad_norm"] == done.norms[step - 1]
        assert values["lr"] == pytest.approx(1e-3 * (1 - (step - 1) / (EPOCHS * BATCHES)))
        assert ("loss_logged" in values) == (step % 3 == 0)
    steps = [place for place, _, level in table if level == "step"]
    assert len(steps) == EPOCHS * BATCHES


def test_with_accumulation_the_loss_is_the_mean_of_the_micro_batches(
    accumulated: Recorded, toy: ModuleType
) -> None:
    done, run, table = accumulated
    assert run.position == Position(EPOCHS, EPOCHS * UPDATES)
    starts = [
        epoch * BATCHES + first for epoch in range(EPOCHS) for first in range(0, BATCHES, WINDOW)
    ]
    for step, start in enumerate(starts, start=1):
        epoch_end = (start // BATCHES + 1) * BATCHES
        # compute_loss divides by the tokens of the whole update: the shares add up to the mean
        shares = done.losses[start : min(start + WINDOW, epoch_end)]
        loss = at(table, *position(step, UPDATES))["loss"]
        assert loss == pytest.approx(sum(shares), rel=1e-5)
        assert 3.4 < loss < 4.2  # as that of one batch: log(54) is 3.99
    assert at(table, 0, 1)["batches so far"] == WINDOW


def test_evaluations_in_the_training_stand_at_their_epoch_as_validation_only(
    plain: Recorded,
) -> None:
    _, _, table = plain
    for epoch in range(1, EPOCHS + 1):
        assert "eval_loss" in at(table, epoch, epoch * BATCHES, "validation", "epoch")
    names = {name for (_, phase, _), values in table.items() if phase == "train" for name in values}
    assert not [name for name in names if name.startswith("eval_")]
    assert "train_runtime" in at(table, EPOCHS, EPOCHS * BATCHES, "train", "epoch")


def test_evaluate_and_predict_afterwards_land_in_the_same_run(plain: Recorded) -> None:
    from flor_plugins.store.metrics.journal import read_run

    done, run, _ = plain
    later = [row for source, row in read_run(run.path) if source.writer != "record-r0"]
    assert [(row.position, row.phase) for row in later] == [
        (run.position, "validation"),
        (run.position, "test"),
    ]
    assert later[0].values["eval_loss"] == done.evaluated["eval_loss"]
    assert later[1].values["test_loss"] == done.predicted["test_loss"]
    assert not list(run.path.rglob("*.jsonl"))


def test_a_value_logged_in_compute_loss_lands_at_its_update(plain: Recorded) -> None:
    for step in range(1, EPOCHS * BATCHES + 1):
        values = at(plain[2], *position(step))
        assert values["batches so far"] == step
        assert values["counts"] == [step, 0]


def test_every_epoch_boundary_has_a_full_checkpoint(plain: Recorded) -> None:
    done, run, _ = plain
    checkpoints = list_checkpoints(run.path)
    assert [one.position for one in checkpoints] == [
        Position(e, e * BATCHES) for e in range(EPOCHS + 1)
    ]
    assert all(one.is_full for one in checkpoints)
    assert same(
        load_checkpoint(run.path, checkpoints[-1].position, ["model"])["model"], done.weights
    )


def test_a_finished_run_says_how_it_ended(plain: Recorded) -> None:
    run = plain[1]
    assert (run.status, run.error, run.gaps) == ("finished", None, ())
    assert run.code is not None and run.params["learning_rate"] == 1e-3


def test_every_hook_of_the_callback_is_one_of_transformers() -> None:
    hooks = [name for name in vars(FlorCallback) if name.startswith("on_")]
    assert hooks and all(hasattr(TrainerCallback, name) for name in hooks)


def test_the_trainers_nan_filter_does_not_hide_a_nan_loss(
    toy: ModuleType, shared_project: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    _, _, table = record(toy, shared_project, store, epochs=1, broken_at=2, logging_steps=1)
    values = [at(table, *position(step)) for step in range(1, BATCHES + 1)]
    assert [np.isnan(one["loss"]) for one in values] == [False, False] + [True] * 6
    assert np.isfinite(values[2]["loss_logged"])  # what the Trainer itself says there
