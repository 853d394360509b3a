"""The State of a Lightning training: what `capture` saves, `restore` loads.

Both belong to the same moment, the entry of `FitLoop.advance` (lightning/pytorch/loops/fit_loop.py):
all `on_train_epoch_start` hooks have run, the epoch's iterator is not made yet (except epoch 0,
whose iterator is made in `FitLoop.setup_data`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loops.loop import _Loop
from torch import nn

from flor_plugins.state import module as module_state
from flor_plugins.state import optimizer as optimizer_state
from flor_plugins.state import rng

MODEL, OPTIMIZER, TRAINER, MODULE, RNG = "model", "optimizer", "trainer", "module", "rng"


def capture(trainer: pl.Trainer, moments: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a State.

    moments: RNG states of other moments that a replay needs: "setup" (before the first
    iterator) and "validation" (before the last validation loop).
    """
    module = trainer.lightning_module
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    connector = trainer._logger_connector
    return {
        MODEL: dumped.pop("state_dict"),
        OPTIMIZER: dumped.pop("optimizer_states"),
        TRAINER: {
            "checkpoint": dumped,
            "callback_metrics": dict(connector._callback_metrics),
            "logged_metrics": dict(connector._logged_metrics),
            "callback_buffers": {
                name: dict(module_state.unsaved_buffers(held)) for name, held in _callback_modules(trainer)
            },
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "should_stop": trainer.should_stop,
        },
        # With manual optimization gradients may live across the epoch's end;
        # otherwise zero_grad precedes the next backward.
        MODULE: module_state.capture(module, gradients=not module.automatic_optimization),
        RNG: {
            "now": rng.capture(),
            "generators": rng.capture_generators(rng.loader_generators(loaders(trainer))),
            **moments,
        },
    }


def weights(trainer: pl.Trainer) -> dict[str, Any]:
    """The model's tensors as `capture` saves them: callbacks that average weights put theirs in."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)["state_dict"]


def restore(trainer: pl.Trainer, sections: Mapping[str, Any]) -> None:
    """Put a State into a trainer that stands at the same moment. RNG comes last: the rest may draw."""
    module, connector = trainer.lightning_module, trainer._checkpoint_connector
    connector._loaded_checkpoint = as_checkpoint(sections)
    connector.restore_datamodule()
    connector.restore_model()
    connector.restore_callbacks()
    connector.restore_training_state()
    connector._loaded_checkpoint = {}
    for optimizer, state in zip(trainer.optimizers, sections[OPTIMIZER], strict=True):
        optimizer_state.restore(optimizer, state)
    module_state.restore(module, sections[MODULE])
    held = sections[TRAINER]
    for name, owned in _callback_modules(trainer):
        module_state.restore_buffers(owned, held["callback_buffers"].get(name, {}))
    trainer._logger_connector._callback_metrics = dict(held["callback_metrics"])
    trainer._logger_connector._logged_metrics = dict(held["logged_metrics"])
    trainer.accumulate_grad_batches = held["accumulate_grad_batches"]
    rng.restore_generators(rng.loader_generators(loaders(trainer)), sections[RNG]["generators"])
    rng.restore(sections[RNG]["now"])


def restore_weights(trainer: pl.Trainer, sections: Mapping[str, Any]) -> None:
    """Only the model's weights and buffers, in place."""
    trainer.lightning_module.load_state_dict(sections[MODEL])


def restore_progress(trainer: pl.Trainer, sections: Mapping[str, Any], completed: int) -> None:
    """Loop counters as they were with `completed` epochs done and the next one not yet begun.

    The trainer's own restart flags are cleared: they change control flow and data order
    (fit_loop.py `restarted_*`, training_epoch_loop.py `on_run_start`).
    """
    loop = trainer.fit_loop
    loop.load_state_dict(sections[TRAINER]["checkpoint"]["loops"]["fit_loop"])
    _clear_restart(loop)
    trackers: list[Any] = [loop.epoch_progress.total, loop.epoch_progress.current]  # declared as base class
    for progress in trackers:
        progress.ready = progress.started = progress.processed = progress.completed = completed
    trainer.should_stop = False


def as_checkpoint(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The dict that Lightning's own restore functions expect, without loop progress."""
    checkpoint = dict(sections[TRAINER]["checkpoint"])
    checkpoint.pop("loops", None)
    return {**checkpoint, "state_dict": sections[MODEL], "optimizer_states": sections[OPTIMIZER]}


def _callback_modules(trainer: pl.Trainer) -> Iterator[tuple[str, nn.Module]]:
    """Modules that callbacks keep (averaged models): their own state has no non-persistent buffers."""
    for callback in cast(Any, trainer).callbacks:
        for attribute, value in vars(callback).items():
            if isinstance(value, nn.Module) and value is not trainer.lightning_module:
                yield f"{type(callback).__qualname__}.{attribute}", value


def loaders(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    """The loaders of a fit, by name."""
    loops = {"train": trainer.fit_loop, "validation": trainer.fit_loop.epoch_loop.val_loop}
    for name, loop in loops.items():
        combined = loop._combined_loader
        for index, loader in enumerate(combined.flattened if combined is not None else []):
            yield f"{name}.{index}", loader


def _clear_restart(loop: _Loop) -> None:
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for part in vars(loop).values():
        if isinstance(part, _Loop):
            _clear_restart(part)
