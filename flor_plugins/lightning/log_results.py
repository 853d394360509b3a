"""What `self.log` has gathered in an epoch that is not over: running means.

The objects are private to Lightning
(lightning/pytorch/trainer/connectors/logger_connector/result.py) and in no checkpoint of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)

_META = (
    "fx", "name", "prog_bar", "logger", "on_step", "on_epoch",
    "enable_graph", "add_dataloader_idx", "dataloader_idx", "metric_attribute",
)  # fmt: skip

_AT_START = ("on_train_start.", "on_train_epoch_start.")


def capture(trainer: pl.Trainer) -> dict[str, Any]:
    """The aggregates of the training loop, and which hook logged last."""
    connector = trainer._logger_connector
    results = trainer.fit_loop.epoch_loop._results
    return {
        "results": {key: _result(one) for key, one in results.items()},
        "first_loop_iter": connector._first_loop_iter,
        "current_fx": connector._current_fx,
    }


def restore(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Put `capture`'s result back.

    torchmetrics in it are the module's own, which are restored with the module.
    """
    connector, module = trainer._logger_connector, trainer.lightning_module
    results = trainer.fit_loop.epoch_loop._results
    held = state.get("results", {})
    # Logged at this epoch's start just now by code that was not there when it was recorded: it
    # is nobody else's.
    new = {
        key: one for key, one in results.items() if key.startswith(_AT_START) and key not in held
    }
    results.clear()
    results.update(new)
    for key, one in held.items():
        results[key] = _restored(trainer, one).to(module.device)
    results.batch = results.batch_size = results.dataloader_idx = None
    # Otherwise the first value that is logged wipes the running means (logger_connector.py,
    # should_reset_tensors).
    connector._first_loop_iter = state.get("first_loop_iter")
    connector._current_fx = state.get("current_fx")


def _result(one: _ResultMetric) -> dict[str, Any]:
    return {
        "meta": {name: getattr(one.meta, name) for name in _META},
        "reduce": one.meta.reduce_fx.__name__,
        "sync": {"_should": one.meta.sync._should, "rank_zero_only": one.meta.sync.rank_zero_only},
        "is_tensor": one.is_tensor,
        "has_reset": one.has_reset,
        # A metric that is an object of its own is found again by its name in the module.
        "value": getattr(one, "value", None) if one.is_tensor else None,
        "batch_size": getattr(one, "cumulated_batch_size", None) if one.is_tensor else None,
        "forward_cache": one._forward_cache,
        "computed": one._computed,
        "update_count": one._update_count,
    }


def _restored(trainer: pl.Trainer, state: Mapping[str, Any]) -> _ResultMetric:
    meta = _Metadata(reduce_fx=getattr(torch, state["reduce"]), **state["meta"])
    # Equal to the one that `LightningModule.log` makes: the collection compares them.
    meta.sync = _Sync(fn=trainer.strategy.reduce, **state["sync"])
    one: Any = _ResultMetric(meta, state["is_tensor"])
    if state["is_tensor"]:
        one.value = state["value"]
        if state["batch_size"] is not None:
            one.cumulated_batch_size = state["batch_size"]
    else:
        one.value = dict(trainer.lightning_module.named_modules())[
            state["meta"]["metric_attribute"]
        ]
    one.has_reset, one._update_count = state["has_reset"], state["update_count"]
    one._forward_cache, one._computed = state["forward_cache"], state["computed"]
    return one
