"""The cells of the exactness matrix for Lightning: trainings that each use what makes a
restoration hard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader

from tests import variants
from tests.variants import Exact, Gan, Net, Points, Rising, Stream, Thaw, adamw


@dataclass
class Cell:
    """module: makes it. every: updates between two checkpoints. settings: of the trainer."""

    module: Callable[[], pl.LightningModule] = lambda: Net(adamw)
    loader: Callable[[], Any] = lambda: DataLoader(Points(), 4, shuffle=True)
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Path], list[pl.Callback]] = lambda folder: []
    every: int = 4
    validates: bool = True
    validation: Callable[[], Any] = lambda: DataLoader(Points(20, False), 4)


class Measured(Net):
    """torchmetrics, one of them logged, and one that only adds up."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.all_time = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        self.accuracy(self(batch[0]), batch[1])
        self.all_time.update(loss.detach())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("all_time", self.all_time.compute(), on_step=True)
        if index % 5 == 3:
            self.log("largest", loss, reduce_fx="max", on_step=False, on_epoch=True)
        return loss


class Frozen(Net):
    """Half of it is frozen, the rest is thawed by the module itself in the middle of an epoch."""

    def __init__(self) -> None:
        super().__init__(lambda module: torch.optim.AdamW(module.parameters(), 1e-2))
        self.body[0].requires_grad_(False)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if self.current_epoch == 2 and index == 6:
            self.body[0].requires_grad_(True)
        return super().training_step(batch, index)


class Drawing(Net):
    """Draws from a generator of its own, and counts in a part of it."""

    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if (
                not self.training
            ):  # a validation that changes the module can't be repeated from the State after it
                return x
            self.calls += 1
            return x + torch.randn(x.shape, generator=self.generator) / self.calls

    def __init__(self) -> None:
        super().__init__(adamw)
        self.noise = self.Noise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.noise(x))


class Tokens(pl.LightningModule):
    """GPT-2 with one layer: its input and output embeddings are one tensor. lora: only
    adapters are trained.
    """

    def __init__(self, lora: bool = False) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        self.model: Any = GPT2LMHeadModel(config)
        if lora:
            from peft import LoraConfig, get_peft_model

            self.model = get_peft_model(
                self.model, LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.2)
            )

    def _loss(self, batch: Any) -> torch.Tensor:
        tokens = (batch[0].abs() * 8).long() % 32
        return self.model(input_ids=tokens, labels=tokens).loss

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        return adamw(self)


class Half(Net):
    """bfloat16 parameters; an optimizer with float32 state, a counter and a queue: loading
    casts and rebuilds them.
    """

    def __init__(self) -> None:
        super().__init__(lambda module: Exact(module.parameters(), 1e-2))
        self.head.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).bfloat16()).float()


class Reloading(Net):
    """Makes new loaders every other epoch; which ones depends on the epoch and on chance."""

    def train_dataloader(self) -> Any:
        points = torch.utils.data.Subset(
            Points(), range(60 - 4 * self.current_epoch - int(torch.randint(9, ())))
        )
        return DataLoader(points, 4, shuffle=True, drop_last=True)


def with_schedule(
    schedule: Callable[[Any], Any], **config: Any
) -> Callable[[], pl.LightningModule]:
    def optimize(module: nn.Module) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer), **config},
        }

    return lambda: Net(optimize)


def with_optimizer(kind: Any, **options: Any) -> Callable[[], pl.LightningModule]:
    return lambda: Net(lambda module: kind(module.parameters(), **options))


def workers(number: int, data: Callable[[], Any] = Points, **options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(data(), 4, num_workers=number, shuffle=data is Points, **options)


def two_loaders() -> Any:
    return {
        "a": DataLoader(Points(), 4, shuffle=True),
        "b": DataLoader(Points(24), 4, shuffle=True, num_workers=2, persistent_workers=True),
    }


class Joint(Net):
    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return super().training_step(
            [torch.cat(both) for both in zip(batch["a"], batch["b"], strict=True)], index
        )


def persistent_validation() -> Any:
    return DataLoader(Points(20, False), 4, num_workers=2, persistent_workers=True)


def sixteen_batches() -> Any:
    return DataLoader(Points(64), 4, shuffle=True)


def warm_up(optimizer: Any) -> Any:
    return schedules.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))


def one_cycle(optimizer: Any) -> Any:
    return schedules.OneCycleLR(optimizer, 0.1, total_steps=100)


def in_turn(optimizer: Any) -> Any:
    parts = [
        schedules.LinearLR(optimizer, total_iters=20),
        schedules.CosineAnnealingLR(optimizer, 40),
    ]
    return schedules.SequentialLR(optimizer, parts, [20])


CELLS: dict[str, Cell] = {
    "dropout_shuffle": Cell(),
    "two_workers": Cell(loader=workers(2)),
    "persistent_workers": Cell(loader=workers(2, persistent_workers=True)),
    "two_loaders": Cell(lambda: Joint(adamw), two_loaders),
    "stream": Cell(loader=lambda: DataLoader(Stream(), 4)),
    "stream_workers": Cell(loader=workers(2, Stream)),
    "stream_persistent": Cell(loader=workers(2, Stream, persistent_workers=True)),
    "own_generator": Cell(loader=lambda: workers(0, generator=torch.Generator().manual_seed(5))()),
    "own_generator_workers": Cell(
        loader=lambda: workers(2, generator=torch.Generator().manual_seed(5))()
    ),
    "accumulate": Cell(loader=sixteen_batches, settings={"accumulate_grad_batches": 3}, every=2),
    "accumulate_stream": Cell(
        loader=lambda: DataLoader(Stream(), 4), settings={"accumulate_grad_batches": 4}, every=1
    ),
    "accumulate_clip": Cell(
        loader=sixteen_batches,
        settings={"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        every=2,
    ),
    "accumulate_scheduled": Cell(
        callbacks=lambda folder: [GradientAccumulationScheduler({0: 4, 2: 2})], every=3
    ),
    "adamw_foreach": Cell(with_optimizer(torch.optim.AdamW, lr=1e-2, foreach=True)),
    "adamw_fused": Cell(with_optimizer(torch.optim.AdamW, lr=1e-2, fused=True)),
    "adam_amsgrad": Cell(with_optimizer(torch.optim.Adam, lr=1e-2, amsgrad=True)),
    "sgd_momentum": Cell(with_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)),
    "sgd_fused": Cell(with_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)),
    "adafactor": Cell(with_optimizer(torch.optim.Adafactor, lr=1e-2)),
    "adafactor_foreach": Cell(with_optimizer(torch.optim.Adafactor, lr=1e-2, foreach=True)),
    "lbfgs": Cell(with_optimizer(torch.optim.LBFGS, lr=1e-2, max_iter=2)),
    "bfloat16_parameters": Cell(Half),
    "warm_up": Cell(with_schedule(warm_up, interval="step")),
    "cosine": Cell(with_schedule(lambda optimizer: schedules.CosineAnnealingLR(optimizer, 4))),
    "one_cycle": Cell(with_schedule(one_cycle, interval="step")),
    "in_turn": Cell(with_schedule(in_turn, interval="step")),
    "plateau": Cell(
        with_schedule(lambda o: schedules.ReduceLROnPlateau(o, patience=0), monitor="val_loss")
    ),
    "plateau_by_steps": Cell(
        with_schedule(
            lambda o: schedules.ReduceLROnPlateau(o, patience=1),
            monitor="train_loss_step",
            interval="step",
            frequency=2,
        )
    ),
    "clip_norm": Cell(settings={"gradient_clip_val": 0.1}),
    "clip_value": Cell(settings={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16": Cell(settings={"precision": "bf16-mixed"}),
    "validated_at_0.4": Cell(settings={"val_check_interval": 0.4}, validates=False),
    "validated_by_steps": Cell(
        settings={"val_check_interval": 7, "check_val_every_n_epoch": None}, validates=False
    ),
    "validated_every_2_epochs": Cell(settings={"check_val_every_n_epoch": 2}),
    "validated_by_persistent_workers": Cell(validation=persistent_validation),
    "validated_by_persistent_workers_unchecked": Cell(
        settings={"num_sanity_val_steps": 0}, validation=persistent_validation
    ),
    "tied_weights": Cell(Tokens),
    "lora": Cell(lambda: Tokens(lora=True)),
    "frozen": Cell(Frozen),
    "finetuning": Cell(callbacks=lambda folder: [Thaw()]),
    "early_stopping": Cell(
        callbacks=lambda folder: [EarlyStopping("val_loss", patience=1, min_delta=-10)]
    ),
    "early_stopping_min_steps": Cell(
        settings={"min_steps": 52, "max_epochs": 9},
        callbacks=lambda folder: [EarlyStopping("val_loss", patience=0, min_delta=10)],
        validates=False,
    ),
    "ema": Cell(callbacks=lambda folder: [EMAWeightAveraging(decay=0.9)]),
    "swa": Cell(
        callbacks=lambda folder: [
            StochasticWeightAveraging(5e-3, swa_epoch_start=1, annealing_epochs=2)
        ]
    ),
    "model_checkpoint": Cell(
        settings={"enable_checkpointing": True},
        callbacks=lambda folder: [ModelCheckpoint(folder, monitor="val_loss", save_top_k=1)],
    ),
    "rates_monitored": Cell(
        settings={"logger": True}, callbacks=lambda folder: [LearningRateMonitor("step")]
    ),
    "manual_two_optimizers": Cell(Gan, validates=False),
    "manual_stream": Cell(Gan, lambda: DataLoader(Stream(), 4), validates=False),
    "torchmetrics": Cell(Measured),
    "own_generator_in_module": Cell(Drawing),
    "own_callback": Cell(callbacks=lambda folder: [Rising()]),
    "max_steps_long": Cell(settings={"max_steps": 50, "max_epochs": -1}, validates=False),
    "max_steps_short": Cell(settings={"max_steps": 13, "max_epochs": -1}, validates=False),
    "limited": Cell(settings={"limit_train_batches": 9}),
    "limited_persistent": Cell(
        loader=workers(2, persistent_workers=True), settings={"limit_train_batches": 7}
    ),
    "reloaded": Cell(
        lambda: Reloading(adamw), lambda: None, settings={"reload_dataloaders_every_n_epochs": 2}
    ),
}

# One for each mechanism: those of the default run. The others differ in a value, or combine two.
FEW = (
    "dropout_shuffle",  # the generators of this process
    "persistent_workers",  # those of loader workers that outlive an epoch
    "stream_workers",  # a dataset that can't be indexed
    "two_loaders",
    "own_generator",  # a sampler's own generator
    "accumulate_stream",  # an epoch that ends inside an update
    "accumulate_scheduled",
    "bfloat16_parameters",  # loading an optimizer's state casts and rebuilds it
    "lbfgs",  # several losses an update
    "plateau_by_steps",  # a schedule that looks at a metric
    "in_turn",  # schedules in a schedule
    "bf16",
    "validated_at_0.4",
    "validated_by_persistent_workers",
    "lora",  # tied, frozen and added weights
    "finetuning",  # groups of parameters that come later
    "early_stopping_min_steps",
    "ema",  # a second model
    "swa",
    "model_checkpoint",
    "manual_two_optimizers",
    "torchmetrics",
    "own_generator_in_module",
    "own_callback",
    "max_steps_short",  # an end inside an epoch
    "limited_persistent",
    "reloaded",
)


def train(
    name: str, folder: Path, callback: pl.Callback | None, seed: int
) -> tuple[pl.LightningModule, pl.Trainer, Callable[[], Any]]:
    """The module, its trainer, and the call that trains it."""
    cell = CELLS[name]
    pl.seed_everything(seed, verbose=False)
    module, loader = cell.module(), cell.loader()
    on = [callback] if callback is not None else []
    given = {"max_epochs": 4, "default_root_dir": folder, **cell.settings}
    trainer = pl.Trainer(
        **{**variants.SETTINGS, **given, "callbacks": [*on, *cell.callbacks(folder)]}
    )
    return module, trainer, lambda: trainer.fit(module, loader, cell.validation())
