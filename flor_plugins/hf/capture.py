"""The State of an HF training: what `capture` saves, `restore` loads.

Both belong to the same moment, the entry of `Trainer._run_epoch` (transformers/trainer.py): all
`on_epoch_begin` callbacks have run, and nothing of the epoch is drawn: accelerate's loader makes
its iterator at the first `next()` (accelerate/data_loader.py, `DataLoaderShard.__iter__`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from flor_plugins.state import module as module_state
from flor_plugins.state import optimizer as optimizer_state
from flor_plugins.state import rng

MODEL, OPTIMIZER, TRAINER, MODULE, RNG = "model", "optimizer", "trainer", "module", "rng"

# Fields of TrainerState that describe this process or this call, not the training.
_OF_THE_CALL = ("stateful_callbacks", "max_steps", "is_local_process_zero", "is_world_process_zero")
# Attributes in which Trainer keeps sums between two logs (transformers/trainer.py, `_inner_training_loop`).
_SUMS = (
    "_tr_loss",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "current_flos",
    "_initial_global_step",
    "_initial_num_input_tokens_seen",
)


def capture(trainer: Trainer, moments: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a State.

    moments: RNG states of other moments that a replay needs: "validation" (before the last
    evaluation).
    """
    # Declared optional, because they are None before `train`; here they are built.
    model: Any = trainer.model
    optimizer: Any = trainer.optimizer
    scheduler: Any = trainer.lr_scheduler
    loader = trainer.callback_handler.train_dataloader
    scaler = getattr(trainer.accelerator, "scaler", None)
    return {
        MODEL: model.state_dict(),
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
                name: callback.state().get("attributes") for name, callback in _stateful_callbacks(trainer)
            },
            "loader": _loader_state(loader),
        },
        # At a step's end gradients are None (`model.zero_grad()` in `_run_epoch`).
        MODULE: module_state.capture(model),
        RNG: {
            "now": rng.capture(),
            "generators": rng.capture_generators(rng.loader_generators(loaders(trainer))),
            **moments,
        },
    }


def restore(trainer: Trainer, sections: Mapping[str, Any]) -> None:
    """Put a State into a trainer that stands at the same moment. RNG comes last: the rest may draw."""
    held = sections[TRAINER]
    restore_weights(trainer, sections)
    model: Any = trainer.model
    scheduler: Any = trainer.lr_scheduler
    raw: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    optimizer_state.restore(raw, sections[OPTIMIZER][0])
    scheduler.load_state_dict(held["scheduler"])
    if held["scaler"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(held["scaler"])
    module_state.restore(model, sections[MODULE])
    for name, value in held["state"].items():
        setattr(trainer.state, name, list(value) if name == "log_history" else value)
    vars(trainer.control).update(held["control"])
    for name, value in held["sums"].items():
        moved = value.to(trainer.args.device).clone() if isinstance(value, torch.Tensor) else value
        setattr(trainer, name, moved)
    for callback_name, callback in _stateful_callbacks(trainer):
        for name, value in (held["callbacks"].get(callback_name) or {}).items():
            setattr(callback, name, value)
    _restore_loader(trainer.callback_handler.train_dataloader, held["loader"])
    rng.restore_generators(rng.loader_generators(loaders(trainer)), sections[RNG]["generators"])
    rng.restore(sections[RNG]["now"])


def restore_weights(trainer: Trainer, sections: Mapping[str, Any]) -> None:
    """Only the model's weights and buffers, in place: tied weights stay tied."""
    model: Any = trainer.model
    model.load_state_dict(sections[MODEL])


def _stateful_callbacks(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Callbacks with state by class and number: a replay has other callbacks beside them."""
    counts: dict[str, int] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            name = type(callback).__qualname__
            counts[name] = counts.get(name, 0) + 1
            yield f"{name}.{counts[name]}", callback


def loaders(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """The loaders of a training, by name."""
    handler = trainer.callback_handler
    for name, loader in (("train", handler.train_dataloader), ("validation", handler.eval_dataloader)):
        if loader is not None:
            yield name, loader


def _sampler(loader: Any) -> Any:
    """The sampler below accelerate's shards (accelerate/data_loader.py, `BatchSamplerShard`)."""
    batches = getattr(loader, "batch_sampler", None)
    while batches is not None and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)


def _loader_state(loader: Any) -> dict[str, Any]:
    sampler = _sampler(loader)
    generator = getattr(sampler, "generator", None)
    return {
        "iteration": getattr(loader, "iteration", None),
        "epoch": getattr(sampler, "epoch", None),
        "initial_seed": getattr(sampler, "initial_seed", None),
        "generator": None if generator is None else generator.get_state(),
    }


def _restore_loader(loader: Any, state: Mapping[str, Any]) -> None:
    sampler = _sampler(loader)
    if state["iteration"] is not None:
        loader.iteration = state["iteration"]
    if state["initial_seed"] is not None:
        sampler.initial_seed, sampler.epoch = state["initial_seed"], state["epoch"]
    if state["generator"] is not None:
        if sampler.generator is None:
            sampler.generator = torch.Generator()
        sampler.generator.set_state(state["generator"])
