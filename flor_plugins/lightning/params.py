"""Hyper-parameters of a Lightning training, flat, with dots."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from flor_plugins.recorder.launch_environment import flatten

_SETTINGS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "check_val_every_n_epoch",
    "val_check_interval",
    "precision",
    "world_size",
    "reload_dataloaders_every_n_epochs",
)


def params_of(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Hparams of module and data module by their names, the trainer's settings under `trainer.`."""
    params: dict[str, Any] = {}
    for owner in (getattr(trainer, "datamodule", None), module):
        if owner is not None:
            params.update(flatten("", dict(owner.hparams)))
    settings = {name: getattr(trainer, name, None) for name in _SETTINGS}
    params.update(flatten("trainer", settings))
    return params
