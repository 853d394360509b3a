"""Trainings with the features that make a restoration hard, and a replay of them without a
worker process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from flor_plugins.records import Position, ReplayPass, Run, Task, TrainingRange
from flor_plugins.records.events import Event, event_to_json
from flor_plugins.replayer.planning.training_ranges import ranges_through
from flor_plugins.replayer.worker_session.session import WorkerSession
from flor_plugins.store.run_index import index_run

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
        self.log(
            "train_loss", loss + 0.01 * self.seen + sum(self.last), on_step=True, on_epoch=True
        )
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
        return torch.optim.Adam(self.g.parameters(), 1e-2), torch.optim.RMSprop(
            self.d.parameters(), 1e-2
        )


class Thaw(BaseFinetuning):
    """Adds a parameter group in the second epoch."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.body[0])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body[0], optimizer, lr=5e-3)


class Rising(pl.Callback):
    """A callback with a state of its own and without a state_dict: it scales the gradients."""

    def __init__(self) -> None:
        self.count, self.recent = 0, deque(maxlen=4)
        self.generator = torch.Generator().manual_seed(9)
        self.shadow = nn.Linear(2, 2)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.count += 1
        self.recent.append(self.count)
        factor = 1 + torch.rand((), generator=self.generator) + sum(self.recent) / 100
        self.shadow.weight.data.mul_(0.9).add_(pl_module.head.weight.detach().mean())
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor + self.shadow.weight.detach().mean())


class Exact(torch.optim.Optimizer):
    """Keeps float32 copies of its parameters, a counter, and a queue of limited length."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(master=parameter.float().clone(), n=0, last=deque(maxlen=3))
                state["n"] += 1
                state["last"].append(state["n"])
                state["master"].sub_(group["lr"] * parameter.grad.float() / sum(state["last"]))
                parameter.copy_(state["master"].to(parameter.dtype))
        return loss


def adamw(module: nn.Module) -> Any:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)


def session_of(
    run: Run, ways: dict[str, tuple[int, ...]], inside: Sequence[tuple[Position, Position]] = ()
) -> tuple[WorkerSession, list[dict[str, Any]]]:
    """A session without a worker, and the list that its events go to.

    ways: for each way the epochs, by completed count. inside: (start, end) of further stretches.
    """
    places = index_run(run)
    passes = []
    for way, epochs in ways.items():
        positions = tuple(places.end_of(epoch) for epoch in epochs)
        if way == "train":
            stretches = [
                *ranges_through(places, positions),
                *(TrainingRange(*ends, (ends[0].epoch + 1,)) for ends in inside),
            ]
            ordered = tuple(sorted(stretches, key=lambda one: one.start))
            passes.append(ReplayPass("train", ("nothing",), "", stretches=ordered))
        else:
            passes.append(ReplayPass(way, ("nothing",), "", positions))  # type: ignore[arg-type]
    events: list[dict[str, Any]] = []
    task = Task(run.run_id, run.name, "", tuple(passes))

    def tell(event: Event) -> None:
        events.append(event_to_json(event))

    return WorkerSession(replace(run), task, "20261123-000000-000-000000", [], tell), events
