"""What of an HF training keeps it from being replayed bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.utils import DistributedType
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from flor_plugins.recorder.replayability import hidden_state, obstacles
from flor_plugins.records import Obstacle
from flor_plugins.state import user_objects

OF_CALLBACK = (
    "derive the callback from transformers.trainer_callback.ExportableState, with a "
    "state() that holds it"
)
OF_MODULE = (
    "register it as buffer or submodule, or write get_extra_state and set_extra_state that hold it"
)
OF_TRAINER = "keep it in a callback that is a transformers.trainer_callback.ExportableState"

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_SIZES = ("dp_shard_size", "tp_size", "cp_size", "sp_size")  # of accelerate's ParallelismConfig


def obstacles_of(trainer: Trainer) -> list[Obstacle]:
    """What is known to break exactness of this training.

    Call it when loaders and optimizers exist: from `on_train_begin` on. It draws, copies and
    changes nothing.
    """
    outside = [*obstacles.of_kernels(trainer.args.device), *_of_strategy(trainer)]
    if any(one.grade == "weights" for one in outside):
        return outside  # no state is restored, so that none need be looked for
    return [
        *outside,
        *_of_loaders(trainer),
        *_of_callbacks(trainer),
        *_of_module(trainer),
        *hidden_state.of_object("the Trainer", trainer, (), OF_TRAINER),
    ]


def _of_strategy(trainer: Trainer) -> Iterator[Obstacle]:
    args: Any = trainer.args
    kind = trainer.accelerator.distributed_type
    config = getattr(args, "parallelism_config", None) or getattr(
        trainer.accelerator, "parallelism_config", None
    )
    sizes = {name: getattr(config, name, None) or 1 for name in _SIZES}
    parallel = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    tensor = getattr(trainer.model, "tp_size", None) or 1
    if kind in _SHARDED or args.deepspeed or args.fsdp:
        name = kind.value if kind in _SHARDED else "DeepSpeed" if args.deepspeed else "FSDP"
        yield obstacles.of_sharding(f"accelerate's {name}")
    elif parallel:
        yield obstacles.of_sharding(f"ParallelismConfig({', '.join(parallel)})")
    elif tensor > 1:
        yield obstacles.of_sharding(f"tensor parallelism (tp_size={tensor})")


def _of_loaders(trainer: Trainer) -> Iterator[Obstacle]:
    args: Any = trainer.args
    yield from obstacles.of_loader("training", trainer.callback_handler.train_dataloader)
    # Evaluation loaders are made when they are needed, from these (Trainer._get_dataloader).
    evaluated: Any = trainer.eval_dataset
    workers = args.dataloader_num_workers
    for dataset in evaluated.values() if isinstance(evaluated, dict) else [evaluated]:
        if dataset is not None:
            yield from obstacles.of_dataset("validation", dataset, workers=workers)
            yield from obstacles.of_workers(
                "validation",
                dataset,
                trainer.data_collator,
                workers=workers,
                persistent=args.dataloader_persistent_workers,
                in_order=getattr(args, "dataloader_in_order", True),
            )


def _of_callbacks(trainer: Trainer) -> Iterator[Obstacle]:
    known = _known(trainer)
    for callback in trainer.callback_handler.callbacks:
        if user_objects.is_users(callback) and not isinstance(callback, ExportableState):
            yield from hidden_state.of_callback(callback, known, OF_CALLBACK)


def _of_module(trainer: Trainer) -> Iterator[Obstacle]:
    model: Any = trainer.model
    yield from hidden_state.of_modules(model, _known(trainer), OF_MODULE)


def _known(trainer: Trainer) -> frozenset[int]:
    """Objects that the trainer has: a reference to one of them is no state."""
    model: Any = trainer.model
    optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
    wrapped = [getattr(optimizer, "optimizer", None), getattr(scheduler, "scheduler", None)]
    owned = [
        trainer,
        optimizer,
        scheduler,
        *wrapped,
        trainer.model_wrapped,
        *trainer.callback_handler.callbacks,
    ]
    owned += [trainer.train_dataset, trainer.eval_dataset]
    return frozenset(map(id, [one for one in owned if one is not None] + list(model.modules())))
