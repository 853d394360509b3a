"""The State of a Lightning training: what `capture` saves, `restore` loads.

Both belong to the same moment. At an epoch's beginning that is the entry of `FitLoop.advance`
(lightning/pytorch/loops/fit_loop.py): all `on_train_epoch_start` hooks have run, the epoch's
iterator is not made yet (except epoch 0, whose iterator is made in `FitLoop.setup_data`).
Inside an epoch it is the entry of `_TrainingEpochLoop.advance`: all of the last batch is done,
validation and logging included, the next is not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from lightning.pytorch.loops.loop import _Loop
from torch import nn

from flor_plugins.lightning import loaders, log_results
from flor_plugins.lightning.rng_history import RngHistory
from flor_plugins.records.sections import MODEL, MODULE, OPTIMIZER, RNG, TRAINER, Sections
from flor_plugins.state import ddp_buckets, fast_load, user_objects
from flor_plugins.state import module as module_state
from flor_plugins.state import optimizer as optimizer_state


def capture(trainer: pl.Trainer, history: RngHistory, *, batch: int = 0) -> dict[str, Any]:
    """Return the sections of a State, at the moment that `history` has come to.

    batch: micro-batches of this epoch that are done; 0 at an epoch's beginning.
    """
    module = trainer.lightning_module
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    saved = dumped.pop("state_dict")
    return {
        MODEL: saved,
        OPTIMIZER: dumped.pop("optimizer_states"),
        TRAINER: {**_trainer(trainer), "checkpoint": dumped, "batch": batch},
        # With manual optimization gradients may live across updates and epochs;
        # otherwise zero_grad precedes the next backward.
        MODULE: module_state.capture(
            module, saved=saved, gradients=not module.automatic_optimization
        ),
        RNG: {**history.moments(batch), **loaders.capture(trainer)},
    }


def _trainer(trainer: pl.Trainer) -> dict[str, Any]:
    connector, loop = trainer._logger_connector, trainer.fit_loop
    users = list(_users_callbacks(trainer))
    known = user_objects.parts(trainer.lightning_module) if users else ()
    return {
        "callback_metrics": dict(connector._callback_metrics),
        "logged_metrics": dict(connector._logged_metrics),
        "logging": log_results.capture(trainer),
        "callback_buffers": {
            name: dict(module_state.unsaved_buffers(held))
            for name, held in _callback_modules(trainer)
        },
        "callbacks": {name: user_objects.capture(one, known) for name, one in users},
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "should_stop": trainer.should_stop,
        # StochasticWeightAveraging changes both for the epoch in which it updates batch norm.
        "max_batches": loop.max_batches,
        "skip_backward": loop._skip_backward,
        "loaders_of_epoch": loop._last_train_dl_reload_epoch,
        "validated": loaders.evaluated(trainer),
        "gradient_order": ddp_buckets.capture(trainer.strategy.model),
    }


def weights(trainer: pl.Trainer) -> dict[str, Any]:
    """The model's tensors as `capture` saves them: callbacks that average weights put theirs in."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)["state_dict"]


def only_weights(trainer: pl.Trainer) -> dict[str, Any]:
    """The sections of a State where processes share the parts of a model. All of them call this.

    Lightning's FSDP gives the first process whole tensors, other strategies give each its shards.
    """
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    return {MODEL: {name: _unsharded(tensor) for name, tensor in dumped["state_dict"].items()}}


def _unsharded(tensor: Any) -> Any:
    gather = getattr(tensor, "full_tensor", None)  # of torch.distributed.tensor.DTensor
    return tensor if gather is None else gather()


def restore(trainer: pl.Trainer, sections: Sections) -> None:
    """Put a State into a trainer that stands at the same moment. RNG comes last: the rest may draw.

    Without the section of the optimizers one can validate, not train.
    """
    module, connector = trainer.lightning_module, trainer._checkpoint_connector
    held = sections[TRAINER]
    ddp_buckets.restore(trainer.strategy.model, held.get("gradient_order"))
    for name, callback in _users_callbacks(trainer):
        if name in held.get("callbacks", {}):
            user_objects.restore(callback, held["callbacks"][name])
    # they stay as they are without a section of theirs
    present = [one.state_dict() for one in trainer.optimizers]
    connector._loaded_checkpoint = as_checkpoint({OPTIMIZER: present, **sections})
    connector.restore_datamodule()
    connector.restore_model()
    connector.restore_callbacks()
    _rebuild_parameter_groups(trainer)
    connector.restore_training_state()
    connector._loaded_checkpoint = {}
    for optimizer, state in zip(trainer.optimizers, sections.get(OPTIMIZER, present), strict=True):
        optimizer_state.restore(optimizer, state)
    module_state.restore(module, sections[MODULE])
    for name, owned in _callback_modules(trainer):
        module_state.restore_buffers(owned, held["callback_buffers"].get(name, {}))
    _restore_trainer(trainer, held)
    if "validated" in held:
        loaders.restore_evaluated(trainer, held["validated"])
    loaders.restore(trainer, sections[RNG])


def _restore_trainer(trainer: pl.Trainer, held: Mapping[str, Any]) -> None:
    connector, loop = trainer._logger_connector, trainer.fit_loop
    connector._callback_metrics = dict(held["callback_metrics"])
    connector._logged_metrics = dict(held["logged_metrics"])
    log_results.restore(trainer, held.get("logging", {}))
    trainer.accumulate_grad_batches = held["accumulate_grad_batches"]
    trainer.should_stop = held["should_stop"]
    loop.max_batches = held.get("max_batches", loop.max_batches)
    loop._skip_backward = held.get("skip_backward", loop._skip_backward)


def _rebuild_parameter_groups(trainer: pl.Trainer) -> None:
    """The groups that a finetuning callback had added by then: it adds them when a fit starts."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            callback.on_fit_start(trainer, trainer.lightning_module)


def restore_weights(trainer: pl.Trainer, sections: Sections) -> None:
    """Only the model's weights and buffers, in place."""
    if not fast_load.copy_into(trainer.lightning_module, sections[MODEL]):
        trainer.lightning_module.load_state_dict(sections[MODEL])


def restore_progress(
    trainer: pl.Trainer, sections: Sections, completed: int, *, has_begun: bool = False
) -> None:
    """Set loop counters as they were with `completed` epochs done.

    has_begun: the next one's start hooks have run.

    The trainer's own restart flags are cleared: they change control flow and data order
    (fit_loop.py `restarted_*`, training_epoch_loop.py `on_run_start`).
    """
    loop = trainer.fit_loop
    loop.load_state_dict(sections[TRAINER]["checkpoint"]["loops"]["fit_loop"])
    _clear_restart(loop)
    # declared as base class
    trackers: list[Any] = [
        loop.epoch_progress.total,
        loop.epoch_progress.current,
    ]
    for progress in trackers:
        progress.ready = progress.started = completed + has_begun
        progress.processed = progress.completed = completed


def as_checkpoint(sections: Sections) -> dict[str, Any]:
    """The dict that Lightning's own restore functions expect, without loop progress."""
    checkpoint = dict(sections[TRAINER]["checkpoint"])
    checkpoint.pop("loops", None)
    return {**checkpoint, "state_dict": sections[MODEL], "optimizer_states": sections[OPTIMIZER]}


def callbacks_of(trainer: pl.Trainer) -> list[Callback]:
    """Return the callbacks: they are set from outside, not declared (callback_connector.py)."""
    return cast(Any, trainer).callbacks


def _users_callbacks(trainer: pl.Trainer) -> Iterator[tuple[str, Callback]]:
    """Callbacks of the user's own."""
    return user_objects.numbered(one for one in callbacks_of(trainer) if user_objects.is_users(one))


def _callback_modules(trainer: pl.Trainer) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that callbacks keep: averaged models.

    Their own state has no non-persistent buffers.
    """
    for callback in callbacks_of(trainer):
        for attribute, value in vars(callback).items():
            if isinstance(value, nn.Module) and value is not trainer.lightning_module:
                yield f"{type(callback).__qualname__}.{attribute}", value


def _clear_restart(loop: _Loop) -> None:
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for part in vars(loop).values():
        if isinstance(part, _Loop):
            _clear_restart(part)
