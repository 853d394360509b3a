"""The State of an HF training: what `capture` saves, `restore` loads.

Both belong to the same moment. At an epoch boundary it is the entry of `Trainer._run_epoch`
(transformers/trainer.py): all `on_epoch_begin` callbacks have run, and nothing of the epoch is
drawn: accelerate's loader makes its iterator at the first `next()` (accelerate/data_loader.py,
`DataLoaderShard.__iter__`). Inside an epoch it is the entry of `get_batch_samples`: the update
before is logged and evaluated, and of the next one only the batch that accelerate fetches ahead
is drawn.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from flor_plugins.errors import ReplayError
from flor_plugins.hf import loaders
from flor_plugins.hf.rng_history import RngHistory
from flor_plugins.records.sections import MODEL, MODULE, OPTIMIZER, RNG, TRAINER, Sections
from flor_plugins.state import ddp_buckets, fast_load, user_objects
from flor_plugins.state import module as module_state
from flor_plugins.state import optimizer as optimizer_state

# Fields of TrainerState that describe this process or this call, not the training.
_OF_THE_CALL = ("stateful_callbacks", "max_steps", "is_local_process_zero", "is_world_process_zero")
# Attributes in which Trainer keeps sums between two logs (transformers/trainer.py,
# `_inner_training_loop`).
_SUMS = (
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "current_flos",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
)


def capture(trainer: Trainer, history: RngHistory) -> dict[str, Any]:
    """Return the sections of a State, at the moment that `history` has come to."""
    # Declared optional, because they are None before `train`; here they are built.
    model: Any = trainer.model
    optimizer: Any = trainer.optimizer
    scheduler: Any = trainer.lr_scheduler
    moment, users = loaders.capture(trainer), list(_users_callbacks(trainer))
    known = user_objects.parts(model) if users else ()
    scaler = getattr(trainer.accelerator, "scaler", None)
    saved = model.state_dict()
    return {
        MODEL: saved,
        OPTIMIZER: [optimizer.state_dict()],
        TRAINER: {
            "scheduler": scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "state": {
                f.name: getattr(trainer.state, f.name)
                for f in dataclasses.fields(trainer.state)
                if f.name not in _OF_THE_CALL
            },
            "control": dict(vars(trainer.control)),
            "sums": {name: getattr(trainer, name) for name in _SUMS if hasattr(trainer, name)},
            "callbacks": {
                name: callback.state().get("attributes")
                for name, callback in _stateful_callbacks(trainer)
            },
            "own": {name: user_objects.capture(one, known) for name, one in users},
            "loader": moment.pop("loader"),
            "gradient_order": ddp_buckets.capture(trainer.model_wrapped),
            "evaluated": loaders.evaluated(trainer),
            "epoch": history.epoch,
            "batch": history.batch,
        },
        # At a step's end gradients are None (`model.zero_grad()` in `_run_epoch`), but for
        # those of an accumulation that the end of a stream cut short.
        MODULE: module_state.capture(model, saved=saved, gradients=True),
        RNG: {**moment, **history.moments(history.batch)},
    }


def only_weights(trainer: Trainer) -> dict[str, Any]:
    """Return the sections of a State of a sharded model.

    All processes call this, the first gets it whole.
    """
    return {MODEL: trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}}


def restore(trainer: Trainer, sections: Sections) -> None:
    """Put a State into a trainer that stands at the same moment. RNG comes last: the rest may draw.

    Without the section of the optimizer one can validate, not train.
    """
    held = sections[TRAINER]
    ddp_buckets.restore(trainer.model_wrapped, held.get("gradient_order"))
    restore_weights(trainer, sections)
    model: Any = trainer.model
    scheduler: Any = trainer.lr_scheduler
    optimizer: Any = trainer.optimizer
    if OPTIMIZER in sections:
        optimizer_state.restore(optimizer, sections[OPTIMIZER][0])
    scheduler.load_state_dict(held["scheduler"])
    if held["scaler"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(held["scaler"])
    module_state.restore(model, module_state.copied(sections[MODULE]))
    restore_progress(trainer, sections)
    for name, value in held["sums"].items():
        moved = value.to(trainer.args.device).clone() if isinstance(value, torch.Tensor) else value
        setattr(trainer, name, moved)
    for callback_name, callback in _stateful_callbacks(trainer):
        for name, value in (held["callbacks"].get(callback_name) or {}).items():
            setattr(callback, name, copy.deepcopy(value))
    for callback_name, callback in _users_callbacks(trainer):
        if callback_name in held.get("own", {}):
            user_objects.restore(callback, held["own"][callback_name])
    loaders.restore(trainer, {**sections[RNG], "loader": held["loader"]})


def restore_progress(trainer: Trainer, sections: Sections) -> None:
    """How far the training has come, what it has logged, and what it is about to do."""
    held = sections[TRAINER]
    for name, value in held["state"].items():
        setattr(trainer.state, name, copy.deepcopy(value))
    vars(trainer.control).update(held["control"])


def restore_weights(trainer: Trainer, sections: Sections) -> None:
    """Only the model's weights and buffers, in place: tied weights stay tied.

    What `save_pretrained` wrote lacks all but one name of a tied weight; those are set with it.
    Raises ReplayError, naming them, for weights that are missing or that the model doesn't
    know.
    """
    model: Any = trainer.model
    if fast_load.copy_into(model, sections[MODEL]):
        return
    missing, unknown = model.load_state_dict(sections[MODEL], strict=False)
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in own.keys() & sections[MODEL].keys()}
    missing = [name for name in missing if own[name].data_ptr() not in loaded]
    if missing or unknown:
        raise ReplayError(
            f"the weights of a checkpoint were to be loaded into a {type(model).__name__} and "
            f"do not fit: "
            f"missing {', '.join(missing[:5]) or 'none'}; unknown to the model "
            f"{', '.join(unknown[:5]) or 'none'} "
            f"({len(missing)} and {len(unknown)} in all). Let the script build the model that "
            f"was trained."
        )


def _stateful_callbacks(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Those that say themselves what they save."""
    callbacks = trainer.callback_handler.callbacks
    return user_objects.numbered(one for one in callbacks if isinstance(one, ExportableState))


def _users_callbacks(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Yield the user's own callbacks.

    Transformers asks no callback for its state that isn't ExportableState.
    """
    return user_objects.numbered(
        one for one in trainer.callback_handler.callbacks if user_objects.is_users(one)
    )
