"""Trainings with the features that make a restoration hard, and a replay of them without a worker process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from flor_plugins.records import Pass, Run, Task
from flor_plugins.replay.session import Session

SETTINGS: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Points(Dataset):
    """60 points of 8 numbers; augmented with torch's and numpy's global generators."""

    def __init__(self, n: int = 60, augment: bool = True) -> None:
        self.x = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x[i].clone()
        if self.augment:
            x = x + torch.randn(8) * 0.1 + float(np.random.rand()) * 0.1
        return x, (self.x[i].sum() > 0).long()


class Stream(IterableDataset):
    """Has no length, and shuffles by itself."""

    def __iter__(self) -> Any:
        points = Points()
        for i in torch.randperm(len(points)).tolist():
            yield points[i]


class Net(pl.LightningModule):
    """Batch norm, dropout, a non-persistent buffer, a counter and a queue on the module itself."""

    def __init__(self, optimize: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.optimize = optimize
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, 2)
        self.register_buffer("mean", torch.zeros(()), persistent=False)
        self.seen = 0
        self.last: deque[float] = deque(maxlen=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * (1 + 0.1 * self.mean)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.seen += len(x)
        self.last.append(float(loss))
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        self.log("train_loss", loss + 0.01 * self.seen + sum(self.last), on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return self.optimize(self)


class Gan(pl.LightningModule):
    """Manual optimization with two optimizers; gradients of one live across epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Linear(8, 8)
        self.d = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        first, second = self.optimizers()
        x = batch[0]
        z = torch.randn_like(x)
        judged = self.d(x).mean() - self.d(self.g(z).detach()).mean()
        self.manual_backward(judged / 3)
        if (index + 1) % 3 == 0:
            second.step()
            second.zero_grad()
        first.zero_grad()
        made = self.d(self.g(z)).mean()
        self.manual_backward(made)
        first.step()
        return (judged + made).detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.g.parameters(), 1e-2), torch.optim.RMSprop(self.d.parameters(), 1e-2)


class Thaw(BaseFinetuning):
    """Adds a parameter group in the second epoch."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.body[0])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body[0], optimizer, lr=5e-3)


def adamw(module: nn.Module) -> Any:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)


def plateau(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


def onecycle(module: nn.Module) -> Any:
    optimizer = adamw(module)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-2, total_steps=100)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def cosine(module: nn.Module) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2, foreach=True)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)]


def variant(name: str, folder: Any) -> tuple[pl.LightningModule, Any, list[pl.Callback], dict[str, Any]]:
    """Module, training loader, callbacks and trainer settings of a variant."""
    optimizers = {"plateau": plateau, "onecycle": onecycle, "cosine": cosine}
    module: pl.LightningModule = Gan() if name == "gan" else Net(optimizers.get(name, adamw))
    workers = 2 if name == "workers" else 0
    loader = DataLoader(Points(), 4, shuffle=True, num_workers=workers)
    if name == "own_generator":
        loader = DataLoader(Points(), 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    if name == "stream":
        loader = DataLoader(Stream(), 4)
    callbacks: dict[str, list[pl.Callback]] = {
        "swa": [StochasticWeightAveraging(5e-3, swa_epoch_start=1, annealing_epochs=2)],
        "ema": [EMAWeightAveraging(decay=0.9)],
        "early": [EarlyStopping("val_loss", patience=1, min_delta=-10)],
        "finetuning": [Thaw()],
        "model_checkpoint": [ModelCheckpoint(folder, monitor="val_loss", save_top_k=1)],
    }
    settings: dict[str, dict[str, Any]] = {
        "accumulate": {"accumulate_grad_batches": 4},
        "clip": {"gradient_clip_val": 0.1},
        "often_validated": {"val_check_interval": 0.4},
        "seldom_validated": {"check_val_every_n_epoch": 2},
        "max_steps": {"max_steps": 50, "max_epochs": -1},
        "bfloat16": {"precision": "bf16-mixed"},
        "limited": {"limit_train_batches": 9},
        "model_checkpoint": {"enable_checkpointing": True},
    }
    return module, loader, callbacks.get(name, []), settings.get(name, {})


def train(name: str, folder: Any, callback: pl.Callback | None, seed: int) -> tuple[pl.Trainer, Callable[[], Any]]:
    """A trainer and the call that trains it."""
    pl.seed_everything(seed, verbose=False)
    module, loader, callbacks, settings = variant(name, folder)
    on = [callback] if callback is not None else []
    trainer = pl.Trainer(**{**SETTINGS, "max_epochs": 4, "callbacks": [*on, *callbacks], **settings})
    return trainer, lambda: trainer.fit(module, loader, DataLoader(Points(20, False), 4))


def session_of(run: Run, ways: dict[str, tuple[int, ...]]) -> tuple[Session, list[dict[str, Any]]]:
    """A session without a worker, and the list that its events go to."""
    passes = tuple(Pass(way, epochs, ("nothing",), "") for way, epochs in ways.items())  # type: ignore[arg-type]
    events: list[dict[str, Any]] = []
    task = Task(run.run_id, run.name, "", passes)
    return Session(replace(run), task, "20261123-000000-000-000000", [], events.append), events
