"""What of a Lightning training keeps it from being replayed bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from flor_plugins.lightning import loaders, state
from flor_plugins.recorder.replayability import hidden_state, obstacles
from flor_plugins.records import Obstacle
from flor_plugins.state import user_objects

OF_CALLBACK = "give the callback state_dict and load_state_dict that hold it"
OF_MODULE = (
    "register it as buffer or submodule, or write on_save_checkpoint and "
    "on_load_checkpoint that hold it"
)
OF_DATA = "give the data module state_dict and load_state_dict that hold it"


def obstacles_of(trainer: pl.Trainer) -> list[Obstacle]:
    """What is known to break exactness of this fit.

    Call it when loaders and optimizers exist: from `on_train_start` on. It draws, copies and
    changes nothing.
    """
    outside = [*obstacles.of_kernels(trainer.strategy.root_device), *_of_strategy(trainer)]
    if any(one.grade == "weights" for one in outside):
        return outside  # no state is restored, so that none need be looked for
    return [
        *outside,
        *_of_clock(trainer),
        *(
            one
            for name, loader in loaders.sources(trainer)
            for one in obstacles.of_loader(_role(name), loader)
        ),
        *_of_callbacks(trainer),
        *_of_module(trainer),
        *_of_data(trainer),
    ]


def _role(name: str) -> str:
    return "training" if name.startswith("train") else "validation"


def _of_strategy(trainer: pl.Trainer) -> Iterator[Obstacle]:
    # All others split the model or the optimizer over processes.
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        yield obstacles.of_sharding(f"Lightning's {type(strategy).__name__}")
    elif isinstance(strategy, DDPStrategy):
        if strategy._start_method not in (None, "popen"):
            yield obstacles.of_spawned(f'DDPStrategy(start_method="{strategy._start_method}")')
        if strategy._ddp_comm_state is not None:
            yield obstacles.of_gradient_hook(
                getattr(strategy._ddp_comm_hook, "__name__", "a ddp_comm_hook")
            )


def _of_clock(trainer: pl.Trainer) -> Iterator[Obstacle]:
    """What happens when so many seconds have passed happens at another step in a replay."""
    seconds = getattr(trainer, "_val_check_time_interval", None)
    if seconds is not None:
        reason = (
            f"val_check_interval is a time ({seconds:g} s): a replay validates after other steps"
        )
        yield Obstacle(
            "partial", reason, "give val_check_interval in batches, or as a fraction of an epoch"
        )
    for timer in state.callbacks_of(trainer):
        duration = timer._duration if isinstance(timer, Timer) else None
        if duration is not None:
            reason = (
                f"max_time or a Timer ends the training after {duration:g} s: a replay "
                f"may end at another step"
            )
            yield Obstacle("partial", reason, "end it with max_epochs or max_steps")


def _of_callbacks(trainer: pl.Trainer) -> Iterator[Obstacle]:
    known = _known(trainer)
    for callback in state.callbacks_of(trainer):
        if user_objects.is_users(callback) and not _brings_state(callback, Callback):
            yield from hidden_state.of_callback(callback, known, OF_CALLBACK)


def _of_module(trainer: pl.Trainer) -> Iterator[Obstacle]:
    module = trainer.lightning_module
    if not _brings_state(module, pl.LightningModule, "on_save_checkpoint"):
        yield from hidden_state.of_modules(module, _known(trainer), OF_MODULE)


def _of_data(trainer: pl.Trainer) -> Iterator[Obstacle]:
    source = getattr(trainer, "datamodule", None)
    if source is not None and not _brings_state(source, pl.LightningDataModule):
        yield from hidden_state.of_object("the data module", source, (), OF_DATA)


def _brings_state(value: object, base: type, *methods: str) -> bool:
    """Tell whether its class writes one of the methods that put state into a checkpoint."""
    names = methods or ("state_dict", "on_save_checkpoint")
    return any(getattr(type(value), name, None) is not getattr(base, name, None) for name in names)


def _known(trainer: pl.Trainer) -> frozenset[int]:
    """Objects that the trainer has: a reference to one of them is no state."""
    held = cast(Any, trainer)
    schedulers = [config.scheduler for config in held.lr_scheduler_configs]
    owned = [
        trainer,
        held.datamodule,
        *held.loggers,
        *held.callbacks,
        *held.optimizers,
        *schedulers,
    ]
    return frozenset(map(id, [*owned, *trainer.lightning_module.modules()]))
