"""Meeting a Lightning trainer at `fit`: to replay it, or to record it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger

from flor_plugins.adapter import Proceed
from flor_plugins.lightning.callback import FlorCallback


def intercept(arrived: Callable[[pl.Trainer, Proceed], Any], *, inject: bool) -> None:
    """From now on every recorded `Trainer.fit` of this process goes to `arrived(trainer, go)`.

    inject: also trainers without a FlorCallback. Called once, in a worker process.
    """
    original = pl.Trainer.fit

    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not inject and not any(isinstance(c, FlorCallback) for c in self.callbacks):
            return original(self, *args, **kwargs)
        return arrived(self, lambda: original(self, *args, **kwargs))

    pl.Trainer.fit = fit  # type: ignore[method-assign]


def train_alone() -> None:
    """From now on every Trainer of this process is one for a single device.

    It sees all of the validation data.
    """
    original = pl.Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "devices": 1, "num_nodes": 1, "strategy": "auto"})

    pl.Trainer.__init__ = init  # type: ignore[method-assign]


def train(built: Any, callback: FlorCallback | None) -> None:
    """Train what a recipe's function returned: (trainer, module, data).

    callback: put on, if there is one.
    """
    trainer, module, data = built
    if callback is not None:
        trainer.callbacks = [callback, *trainer.callbacks]
    if isinstance(data, pl.LightningDataModule):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, *(data if isinstance(data, (tuple, list)) else (data,)))


def put_on(callback: Callable[[], FlorCallback]) -> None:
    """From now on every `Trainer.fit` of this process without a FlorCallback gets one."""
    original = pl.Trainer.fit

    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(c, FlorCallback) for c in self.callbacks):
            self.callbacks = [callback(), *self.callbacks]
        return original(self, *args, **kwargs)

    pl.Trainer.fit = fit  # type: ignore[method-assign]


def silence(trainer: Any) -> None:
    """No checkpoint is written or deleted, no tracker hears of the replay."""
    trainer.num_sanity_val_steps = 0
    trainer.loggers = [DummyLogger() for _ in trainer.loggers]
    trainer.save_checkpoint = _nothing  # type: ignore[method-assign]
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            for name in ("_save_checkpoint", "_remove_checkpoint", "_link_checkpoint"):
                setattr(callback, name, _nothing)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for a saver."""
