"""The ways to save a training that are compared: each trains for some steps and makes a
checkpoint every few of them.

A saver is called with a Setting and returns the seconds of each step. All train the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save
from torch.utils.data import DataLoader

from tests.benchmarks.place import Place, remove, require
from tests.benchmarks.workloads import Clock, Masked, Shape, Tokens, fit, train


@dataclass(frozen=True, slots=True)
class Setting:
    """What one fit of a saver is. every: steps between checkpoints. steps: of the whole fit."""

    place: Place
    shape: Shape
    model: torch.nn.Module
    every: int
    steps: int
    device: str = "cpu"


Saver = Callable[[Setting], list[float]]


def nothing(setting: Setting) -> list[float]:
    """No checkpoints: the control."""
    return _lightning(setting, lambda folder: [])


def flor(setting: Setting) -> list[float]:
    store = setting.place.folder()
    try:
        steps = _lightning(setting, lambda folder: [_callback(setting, "lightning", store)])
        require(store, range(setting.every, setting.steps, setting.every))
        return steps
    finally:
        remove(store)


def model_checkpoint(setting: Setting) -> list[float]:
    return _lightning(setting, lambda folder: [_model_checkpoint(setting, folder)])


def async_checkpoint_io(setting: Setting) -> list[float]:
    return _lightning(
        setting, lambda folder: [_model_checkpoint(setting, folder)], [AsyncCheckpointIO()]
    )


def torch_save(setting: Setting) -> list[float]:
    """What a hand-written loop does."""

    def save(state: dict[str, Any], folder: Path) -> None:
        torch.save(state, folder / "state.pt")

    return _lightning(setting, lambda folder: [Saving(setting.every, folder, save)])


def dcp_async(setting: Setting) -> list[float]:
    """torch.distributed.checkpoint.async_save as it comes: a new copy of the state, and a
    thread that writes.
    """
    return _dcp(setting)


def dcp_async_reused(setting: Setting) -> list[float]:
    """... with a stager that keeps its memory."""
    return _dcp(setting, is_reused=True)


def dcp_async_process(setting: Setting) -> list[float]:
    """... and a process that writes."""
    return _dcp(setting, is_reused=True, async_checkpointer_type=AsyncCheckpointerType.PROCESS)


def nothing_hf(setting: Setting) -> list[float]:
    return _hf(setting)


def flor_hf(setting: Setting) -> list[float]:
    store = setting.place.folder()
    try:
        steps = _hf(setting, [_callback(setting, "hf", store)])
        require(store, range(setting.every, setting.steps, setting.every))
        return steps
    finally:
        remove(store)


def hf_save(setting: Setting) -> list[float]:
    return _hf(setting, save_strategy="steps", save_steps=setting.every)


SAVERS: Mapping[str, Saver] = MappingProxyType(
    {
        "none": nothing,
        "flor": flor,
        "ModelCheckpoint": model_checkpoint,
        "AsyncCheckpointIO": async_checkpoint_io,
        "torch.save": torch_save,
        "dcp.async_save": dcp_async,
        "dcp.async_save reused": dcp_async_reused,
        "dcp.async_save process": dcp_async_process,
        "none (hf)": nothing_hf,
        "flor (hf)": flor_hf,
        "save_strategy (hf)": hf_save,
    }
)


class Saving(pl.Callback):
    """Calls `save(state, folder)` every few steps, after the optimizer's update; a new
    folder each time.
    """

    def __init__(
        self, every: int, folder: Path, save: Callable[[dict[str, Any], Path], None]
    ) -> None:
        self.every, self.folder, self.save = every, folder, save

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % self.every == 0:
            folder = self.folder / str(trainer.global_step)
            folder.mkdir()
            self.save(
                {"model": pl_module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()},
                folder,
            )


class DcpSaving(Saving):
    """...

    with async_save; waits for the save before, as the PyTorch recipe does, and for the last one
    at the end.
    """

    def __init__(self, every: int, folder: Path, options: Mapping[str, Any]) -> None:
        super().__init__(every, folder, self._save)
        self.options = options
        self._answer: Any = None

    def _save(self, state: dict[str, Any], folder: Path) -> None:
        self._wait()
        self._answer = async_save(state, checkpoint_id=folder, **self.options)

    def _wait(self) -> None:
        if self._answer is not None:
            self._answer.result()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._wait()


def _callback(setting: Setting, framework: str, folder: Path) -> Any:
    return setting.place.callback(
        framework, folder, every_n_steps=setting.every, every_minutes=None
    )


def _model_checkpoint(setting: Setting, folder: Path) -> ModelCheckpoint:
    # save_top_k=-1: deleting the one before would be counted, too
    return ModelCheckpoint(
        folder, every_n_train_steps=setting.every, save_top_k=-1, save_weights_only=False
    )


def _lightning(
    setting: Setting,
    callbacks: Callable[[Path], Sequence[pl.Callback]],
    plugins: Sequence[Any] = (),
) -> list[float]:
    folder = setting.place.folder()
    loader = DataLoader(Tokens(setting.shape), setting.shape.batch)
    try:
        with Clock(setting.model) as clock:
            fit(
                Masked(setting.model),
                loader,
                callbacks=callbacks(folder),
                plugins=plugins,
                folder=folder,
                device=setting.device,
                max_steps=setting.steps,
            )
        return clock.steps()
    finally:
        remove(folder)


def _hf(setting: Setting, callbacks: Sequence[Any] = (), **options: Any) -> list[float]:
    folder = setting.place.folder()
    try:
        with Clock(setting.model) as clock:
            train(
                setting.model, setting.shape, folder, callbacks=callbacks, max_steps=setting.steps,
                use_cpu=setting.device == "cpu", **options,
            )  # fmt: skip
        return clock.steps()
    finally:
        remove(folder)


def _dcp(setting: Setting, *, is_reused: bool = False, **options: Any) -> list[float]:
    """One process is a group of its own."""
    group = setting.place.folder() / "group"
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=0, world_size=1)
    try:
        with _stager(setting.device, is_reused) as given:
            return _lightning(
                setting, lambda folder: [DcpSaving(setting.every, folder, {**given, **options})]
            )
    finally:
        dist.destroy_process_group()


@contextmanager
def _stager(device: str, is_reused: bool) -> Iterator[dict[str, Any]]:
    if not is_reused:
        yield {}
        return
    # The copy is waited for, as with the default stager: the next update must not change what
    # is being copied.
    is_cuda = device == "cuda"
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=is_cuda,
            use_shared_memory=True,
            use_async_staging=False,
            use_non_blocking_copy=is_cuda,
        )
    )
    try:
        yield {"async_stager": stager}
    finally:
        stager.close()
