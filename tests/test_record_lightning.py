from __future__ import annotations

import gc
import random
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import flor_plugins as flor
from flor_plugins.lightning import FlorCallback
from flor_plugins.recorder.gaps import FlorWarning
from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from tests.conftest import Table, at, launched, load_script, table_of

# 60 points in batches of 8; 3 micro-batches an update, 2 in the last
EPOCHS, BATCHES, WINDOW = (
    3,
    8,
    3,
)
UPDATES = 3


@dataclass
class Trained:
    weights: dict[str, torch.Tensor]
    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)


@flor.metric(at="epoch")
def nosy_epoch(ctx: Any) -> float:
    torch.randn(3), np.random.rand(), random.random()
    ctx.model.train()
    return sum(float(ctx.model(x).sum()) for x, _ in ctx.val_dataloader)


@flor.metric(at="step", grad=True)
def nosy_step(ctx: Any) -> Any:
    ctx.model(ctx.batch[0]).square().sum().backward()
    return torch.stack([p.grad.norm() for p in ctx.model.parameters()]).norm() + torch.rand(())


@flor.metric(at="validation", reduce="sum")
def points(ctx: Any) -> float:
    torch.randn(3)
    return float(len(ctx.batch[0]))


@pytest.fixture(scope="module")
def toy(shared_project: Path) -> ModuleType:
    return load_script(shared_project, "lit_toy")


def train(
    toy: ModuleType, callbacks: list[Any], *, accumulate: int = 1, test: bool = False
) -> Trained:
    done = Trained({})

    class Watched(toy.Net):
        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            done.losses.append(loss.item())
            done.lrs.append(self.optimizers().param_groups[0]["lr"])
            counts[0] = len(done.losses)
            flor.log("batches so far", len(done.losses))
            flor.log("counts", counts)
            return loss

    counts = np.zeros(2)  # one array, changed in place at every batch
    pl.seed_everything(7, verbose=False)
    net = Watched()
    trainer = toy.trainer(callbacks, EPOCHS, accumulate_grad_batches=accumulate)
    trainer.fit(net, *toy.data())
    done.weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if test:
        trainer.test(net, toy.data()[1], verbose=False)
    return done


def record(
    toy: ModuleType, project: Path, store: Path, metrics: Any = (), **settings: Any
) -> tuple[Trained, Run, Table]:
    callback = launched(FlorCallback("toy", store=store, metrics=metrics), project, "lit_toy")
    done = train(toy, [callback], **settings)
    (run,) = flor.runs(store=store)
    return done, run, table_of(run)


Recorded = tuple[Trained, Run, Table]


@pytest.fixture(scope="module")
def plain(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    return record(toy, shared_project, tmp_path_factory.mktemp("plain") / "store", test=True)


@pytest.fixture(scope="module")
def nosy(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    metrics = (nosy_epoch, nosy_step, points)
    return record(toy, shared_project, tmp_path_factory.mktemp("nosy") / "store", metrics)


@pytest.fixture(scope="module")
def accumulated(
    toy: ModuleType, shared_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recorded:
    return record(toy, shared_project, tmp_path_factory.mktemp("acc") / "store", accumulate=WINDOW)


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


@pytest.mark.parametrize("is_on", [True, False])
def test_garbage_is_collected_in_the_training_as_before(
    toy: ModuleType, shared_project: Path, tmp_path: Path, is_on: bool
) -> None:
    seen: list[bool] = []

    class Looking(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(gc.isenabled())

    recording = launched(
        FlorCallback("toy", store=tmp_path, every_n_steps=1), shared_project, "lit_toy"
    )
    if not is_on:
        gc.disable()
    try:
        train(toy, [recording, Looking()])
    finally:
        gc.enable()
    assert seen == [is_on] * EPOCHS * BATCHES


def test_live_metrics_that_draw_iterate_and_differentiate_change_no_bit(
    nosy: Recorded, alone: Trained
) -> None:
    done, run, table = nosy
    assert same(done.weights, alone.weights)
    assert run.gaps == ()
    for epoch in range(1, EPOCHS + 1):
        values = at(table, epoch, epoch * BATCHES, "validation", "epoch")
        assert values["points"] == 24.0
        assert isinstance(values["nosy_epoch"], float)
    assert all("nosy_step" in at(table, *position(step)) for step in range(1, EPOCHS * BATCHES + 1))


def test_every_step_has_its_loss_and_learning_rate_once(plain: Recorded) -> None:
    done, _, table = plain
    for step in range(1, EPOCHS * BATCHES + 1):
        values = at(table, *position(step))
        assert values["loss"] == values["train_loss_step"] == done.losses[step - 1]
        assert values["lr"] == done.lrs[step - 1]
    steps = [place for place, _, level in table if level == "step"]
    assert len(steps) == EPOCHS * BATCHES


def test_with_accumulation_the_loss_is_the_mean_of_the_micro_batches(accumulated: Recorded) -> None:
    done, run, table = accumulated
    starts = [
        epoch * BATCHES + first for epoch in range(EPOCHS) for first in range(0, BATCHES, WINDOW)
    ]
    assert run.position == Position(EPOCHS, EPOCHS * UPDATES)
    for step, start in enumerate(starts, start=1):
        epoch_end = (start // BATCHES + 1) * BATCHES
        losses = done.losses[start : min(start + WINDOW, epoch_end)]
        assert at(table, *position(step, UPDATES))["loss"] == pytest.approx(
            np.mean(losses), rel=1e-5
        )
    assert "loss" not in at(table, EPOCHS, EPOCHS * UPDATES + 1)


def test_every_update_has_the_fingerprint_of_its_batches_and_every_epoch_that_of_its_first(
    plain: Recorded, accumulated: Recorded
) -> None:
    for (_, _, table), updates in ((plain, BATCHES), (accumulated, UPDATES)):
        rows = [at(table, *position(step, updates)) for step in range(1, EPOCHS * updates + 1)]
        assert len({row["flor.batch"] for row in rows}) == len(rows)
        assert [step for step, row in enumerate(rows) if "flor.first_batch" in row] == [
            0,
            updates,
            2 * updates,
        ]
    alone = [at(plain[2], *position(step))["flor.batch"] for step in range(1, WINDOW + 1)]
    # the first epoch has the same batches in both
    together = at(accumulated[2], *position(1, UPDATES))
    expected = sum(i * one for i, one in enumerate(alone, start=1))
    assert (together["flor.batch"] - expected) % 2**64 == 0  # the sum is one of 64 bits
    assert together["flor.first_batch"] == at(plain[2], *position(1))["flor.first_batch"]


def test_data_that_can_not_be_read_for_a_fingerprint_are_trained_on_all_the_same(
    toy: ModuleType,
    shared_project: Path,
    tmp_path: Path,
    alone: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(batch: Any) -> Any:
        raise NotImplementedError("no words in this dtype")

    monkeypatch.setattr("flor_plugins.state.batch_fingerprint.checksum", broken)
    callback = launched(FlorCallback(store=tmp_path / "store"), shared_project, "lit_toy")
    with pytest.warns(FlorWarning, match="no words in this dtype"):
        done = train(toy, [callback])
    (run,) = flor.runs(store=tmp_path / "store")
    assert same(done.weights, alone.weights)
    assert (run.status, len(run.gaps)) == ("finished", 1)


def test_epoch_values_late_ones_and_validation_stand_at_the_last_step_of_their_epoch(
    plain: Recorded,
) -> None:
    done, _, table = plain
    for epoch in range(1, EPOCHS + 1):
        train_values = at(table, epoch, epoch * BATCHES, "train", "epoch")
        assert train_values["late"] == 60.0 * epoch
        assert 0 <= train_values["train_acc"] <= 1
        losses = done.losses[(epoch - 1) * BATCHES : epoch * BATCHES]
        sizes = [8] * 7 + [4]
        assert train_values["train_loss_epoch"] == pytest.approx(
            np.average(losses, weights=sizes), rel=1e-5
        )
        assert list(at(table, epoch, epoch * BATCHES, "validation", "epoch")) == ["val_loss"]


def test_the_sanity_check_is_not_recorded(plain: Recorded) -> None:
    assert sum(phase == "validation" for _, phase, _ in plain[2]) == EPOCHS
    assert not [place for place, _, _ in plain[2] if place == Position(0, 0)]


def test_a_test_after_the_fit_lands_at_the_last_position(plain: Recorded) -> None:
    _, run, table = plain
    assert [key for key in table if key[1] == "test"] == [(run.position, "test", "epoch")]
    tested = at(table, EPOCHS, EPOCHS * BATCHES, "test", "epoch")
    validated = at(table, EPOCHS, EPOCHS * BATCHES, "validation", "epoch")
    assert tested == {"test_loss": validated["val_loss"]}  # the same data and weights


def test_a_value_logged_in_training_step_lands_at_its_update(
    plain: Recorded, accumulated: Recorded
) -> None:
    for step in range(1, EPOCHS * BATCHES + 1):
        values = at(plain[2], *position(step))
        assert values["batches so far"] == step
        assert values["counts"] == [step, 0]
    assert at(accumulated[2], 0, 1)["batches so far"] == WINDOW
    assert at(accumulated[2], 1, UPDATES)["batches so far"] == BATCHES


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
    assert run.code is not None and run.params["lr"] == 0.01


def test_every_hook_of_the_callback_is_one_of_lightning() -> None:
    hooks = [name for name in vars(FlorCallback) if name.startswith("on_")]
    assert hooks and all(hasattr(Callback, name) for name in hooks)


def test_nan_losses_are_recorded(toy: ModuleType, shared_project: Path, tmp_path: Path) -> None:
    class Broken(toy.Net):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch, index) * (float("nan") if index == 2 else 1.0)

    callback = launched(FlorCallback(store=tmp_path / "store"), shared_project, "lit_toy")
    toy.trainer([callback], 1).fit(Broken(), *toy.data())
    (run,) = flor.runs(store=tmp_path / "store")
    losses = [at(table_of(run), *position(step))["loss"] for step in range(1, BATCHES + 1)]
    assert [np.isnan(loss) for loss in losses] == [False, False] + [True] * 6
