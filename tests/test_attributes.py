"""State that the user's objects keep and no checkpoint holds is found and named; what is
usually held is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tests.looking import Toys, holding, in_hf, in_lightning, load_toys, said

# Lightning warns of few workers, of few batches ...
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def toys(shared_project: Path) -> Toys:
    return load_toys(shared_project)


class Busy(Callback):
    """All that callbacks usually hold, and that is recorded, built again or of no consequence."""

    def __init__(self, trainer: Any, log: Path) -> None:
        self.trainer, self.written, self.seen, self.losses = trainer, log.open("w"), 0, [0.5]
        self.draw, self.best, self.function, self.kind = torch.Generator(), None, print, dict
        self.copy, self.constants = torch.nn.Linear(2, 2), np.zeros(2)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.module, self.layers, self.optimizer = pl_module, [pl_module.net], trainer.optimizers[0]

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += 1
        self.losses.append(float(outputs["loss"]))


def test_what_callbacks_usually_hold_is_no_obstacle(toys: Toys, tmp_path: Path) -> None:
    busy = Busy(None, tmp_path / "log.txt")
    assert in_lightning(toys["lit_toy"], busy) == []
    busy.written.close()


def test_caches_and_lists_of_outputs_on_a_module_are_no_obstacle(toys: Toys) -> None:
    toy = toys["lit_toy"]

    class Caching(torch.nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x.detach()
            return super().forward(x)

    class Net(toy.Net):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net[2] = Caching()
            self.outputs: list[Any] = []

        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            self.outputs.append(loss.detach())
            return loss

        def on_train_epoch_end(self) -> None:
            self.outputs.clear()

    assert in_lightning(toy, net=Net()) == []


class Average:
    """An exponential average, as a class of the user's."""

    def __init__(self) -> None:
        self.shadow: dict[str, Any] = {}

    def update(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.shadow[name] = value


class Setting:
    def __init__(self) -> None:
        self.rate = 0.5

    def to_dict(self) -> dict[str, float]:
        made = {}
        made["rate"] = self.rate
        return made


class Saving(Callback):
    """Brings its own state, so that what it holds is its own business."""

    def __init__(self) -> None:
        self.held = torch.nn.Linear(2, 2)

    def state_dict(self) -> dict[str, Any]:
        return self.held.state_dict()


class HfSaving(TrainerCallback, ExportableState):
    def __init__(self) -> None:
        self.held = torch.nn.Linear(2, 2)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"held": dict(self.held.state_dict())}}


HELD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "iterator": (lambda: iter([1, 2]), ("iterator",)),
    "iterators in a list": (lambda: [itertools.count()], ("count",)),
    "network in a list": (lambda: [torch.nn.Linear(2, 2)], ("Linear",)),
    "optimizer": (lambda: torch.optim.SGD([torch.zeros(1)]), ("SGD",)),
    "object that changes itself": (Average, ("Average (test_attributes.py:", "shadow")),
}


@pytest.mark.parametrize("what", HELD)
def test_a_callback_that_keeps_what_no_checkpoint_holds_is_named(
    what: str, toys: Toys, tmp_path: Path
) -> None:
    make, words = HELD[what]
    assert (
        said(in_lightning(toys["lit_toy"], holding(Callback, make())), "Holding", "`held`", *words)
        == "partial"
    )
    found = in_hf(toys["hf_toy"], holding(TrainerCallback, make()), output_dir=str(tmp_path))
    assert said(found, "Holding", "`held`", *words) == "partial"
    assert "ExportableState" in found[0].remedy


def test_a_callback_that_reads_a_file_is_named_and_one_that_writes_is_not(
    toys: Toys, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("text")
    with (tmp_path / "in.txt").open() as read, (tmp_path / "out.txt").open("w") as written:
        assert (
            said(in_lightning(toys["lit_toy"], holding(Callback, read)), "open file") == "partial"
        )
        assert in_lightning(toys["lit_toy"], holding(Callback, written)) == []


def test_data_that_a_callback_updates_and_no_checkpoint_holds_is_named(toys: Toys) -> None:
    class Summing(Callback):
        def __init__(self, kind: type) -> None:
            self.sums = np.zeros(2, dtype=kind)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.sums[0] += 1

    assert (
        said(in_lightning(toys["lit_toy"], Summing(object)), "Summing", "`sums`", "ndarray")
        == "partial"
    )
    assert in_lightning(toys["lit_toy"], Summing(float)) == []


def test_callbacks_that_bring_their_state_or_keep_settings_are_no_obstacle(
    toys: Toys, tmp_path: Path
) -> None:
    assert in_lightning(toys["lit_toy"], Saving(), holding(Callback, Setting())) == []
    settings = holding(TrainerCallback, Setting())
    assert in_hf(toys["hf_toy"], HfSaving(), settings, output_dir=str(tmp_path)) == []


def test_state_of_a_module_that_no_checkpoint_holds_is_named(toys: Toys) -> None:
    toy = toys["lit_toy"]

    class Counting(torch.nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            self.history, self.calls, self._calls = [iter([])], 0, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1  # a plain public attribute, which is recorded
            self._calls += 1
            return super().forward(x)

    class Net(toy.Net):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net[2] = Counting()
            self.average = Average()
            self.hidden = [torch.nn.Linear(2, 2)]

    found = in_lightning(toy, net=Net())
    assert {one.grade for one in found} == {"partial"}
    reasons = "\n".join(one.reason for one in found)
    assert len(found) == 4, reasons
    assert all(name in reasons for name in ("`history`", "`_calls`", "`average`", "`hidden`")), (
        reasons
    )


def test_a_module_that_writes_its_own_checkpoint_hooks_is_no_obstacle(toys: Toys) -> None:
    class Net(toys["lit_toy"].Net):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.average = Average()

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["average"] = self.average.shadow

    assert in_lightning(toys["lit_toy"], net=Net()) == []


def test_a_data_module_that_counts_is_named(toys: Toys) -> None:
    toy = toys["lit_toy"]

    class Growing(pl.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.rounds = 0

        def train_dataloader(self) -> Any:
            self.rounds += 1
            return toy.data()[0]

    assert (
        said(in_lightning(toy, data=Growing()), "data module", "Growing", "`rounds`") == "partial"
    )


def test_a_user_defined_hf_trainer_that_counts_is_named(toys: Toys, tmp_path: Path) -> None:
    toy = toys["hf_toy"]

    class Own(toy.Trainer):  # type: ignore[name-defined]
        losses: Any

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            self.losses.append(loss)
            return loss

    def change(trainer: Any) -> None:
        trainer.__class__, trainer.losses = Own, []

    found = in_hf(toy, change=change, output_dir=str(tmp_path))
    assert said(found, "Own (test_attributes.py:", "`losses`") == "partial"
