"""Tiny trainings of both frameworks in which somebody looks for obstacles where a
FlorCallback would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from transformers import TrainerCallback

from flor_plugins.hf import obstacles as hf
from flor_plugins.lightning import obstacles as lit
from flor_plugins.records import Obstacle, ReplayGrade
from tests.conftest import load_script

Found = list[Obstacle]
Toys = dict[str, ModuleType]


def load_toys(project: Path) -> Toys:
    """The two toy scripts, as modules."""
    return {name: load_script(project, name) for name in ("lit_toy", "hf_toy")}


class LitLook(Callback):
    """Looks for obstacles where a FlorCallback would."""

    found: Found

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found = lit.obstacles_of(trainer)


class HfLook(TrainerCallback):
    trainer: Any
    found: Found

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = hf.obstacles_of(self.trainer)


def in_lightning(
    toy: ModuleType, *callbacks: Any, net: Any = None, data: Any = None, **settings: Any
) -> Found:
    """What is found in a short fit."""
    look = LitLook()
    trainer = toy.trainer(
        [*callbacks, look], 1, limit_train_batches=2, limit_val_batches=1, **settings
    )
    given = data or toy.data()
    if isinstance(given, pl.LightningDataModule):
        trainer.fit(net or toy.Net(), datamodule=given)
    else:
        trainer.fit(net or toy.Net(), *given)
    return look.found


def in_hf(
    toy: ModuleType,
    *callbacks: Any,
    change: Callable[[Any], Any] = lambda trainer: None,
    **settings: Any,
) -> Found:
    look = HfLook()
    look.trainer = toy.build([*callbacks, look], max_steps=2, eval_strategy="no", **settings)
    change(look.trainer)
    look.trainer.train()
    return look.found


def said(found: Found, *words: str) -> ReplayGrade:
    """The grade of the only obstacle; its reason has all of the words, its remedy is not empty."""
    (one,) = found
    assert all(word in one.reason for word in words), one.reason
    assert one.remedy
    return one.grade


def holding(base: type, value: Any) -> Any:
    """A callback of the user's that holds a value."""
    kind = type("Holding", (base,), {"__init__": lambda self: None, "__module__": __name__})
    made = kind()
    made.held = value
    return made
