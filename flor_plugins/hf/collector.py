"""Every value that an HF Trainer knows, once, at its true position.

`on_log` brings the loss only as a mean since the last log, and gradient norm and learning rate
only then. `training_step`, `_get_grad_norm` and `prediction_step` are looked up on the trainer at
each call (transformers/trainer.py), so that they can be wrapped on this trainer only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from transformers import Trainer

from flor_plugins.hf import loaders
from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Context
from flor_plugins.records import Phase
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.state.still import still
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH
from flor_plugins.store.metrics.timeline import Timeline

# Where a value of ours fails to be read, the training goes on: `guarded` runs our part.
GuardedCall = Callable[[Callable[[], Any]], Any]

# HF logs the mean loss since the last log as "loss"; here "loss" is each update's own.
_RENAMED = {"loss": "loss_logged"}


class MetricCollector:
    """Feeds a Timeline from a trainer, and calls step and validation hooks at their moments."""

    def __init__(
        self,
        trainer: Trainer,
        timeline: Timeline,
        hooks: HookDispatcher,
        run: str,
        guarded: GuardedCall,
    ) -> None:
        self.trainer, self.timeline, self.hooks, self.run, self.guarded = (
            trainer,
            timeline,
            hooks,
            run,
            guarded,
        )
        self._wrapped = MethodWrapper()
        self._losses: list[torch.Tensor] = []
        self._batch: Any = None
        self._val_loader: Any = None
        self._first = False  # is the next batch the first of an epoch?
        self._checksums: list[Any] = []  # of the batches of the present update
        hooks.generators = lambda: loaders.generators(trainer)
        self._in_update = ExitStack()
        self._is_in_update = False

    def attach(self) -> None:
        """Wrap what values pass through. Call once per training, when the trainer is built."""
        self._wrapped.before(self.trainer, "get_batch_samples", self._on_update_begin)
        self._wrapped.around(self.trainer, "training_step", self._training_step)
        self._wrapped.around(self.trainer, "_get_grad_norm", self._grad_norm)
        self._wrapped.around(self.trainer, "evaluate", self._in_phase("validation"))
        self._wrapped.around(self.trainer, "predict", self._in_phase("test"))
        if self.hooks.at("validation"):
            self._wrapped.around(self.trainer, "prediction_step", self._prediction_step)

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        self._end_update()
        self._wrapped.undo()

    def begin_epoch(self) -> None:
        """The next batch is the first of an epoch."""
        self._first = True

    # ---- called by the callback's events of the same names

    def on_pre_optimizer_step(self) -> None:
        """Gradients are complete and clipped; weights and learning rate are those before the
        update.
        """
        optimizer = self._optimizer()
        for index, group in enumerate(optimizer.param_groups):
            lr = group["lr"]
            name = "lr" if index == 0 else f"lr.{index}"
            self.timeline.coming[name] = lr.detach().clone() if isinstance(lr, torch.Tensor) else lr
        if self.hooks.at("step"):
            self.hooks.before_update(self._update_context())

    def on_optimizer_step(self) -> None:
        """The update is made; gradients are still there."""
        if self.hooks.at("step"):
            self.timeline.coming.update(self.hooks.after_update(self._update_context()))

    def on_step_end(self) -> None:
        """global_step counts this update already; logging and evaluation follow."""
        self._end_update()
        values = self.timeline.take_coming()
        if self._losses:
            values["loss"] = self._loss()
        if self._checksums:
            values[BATCH] = fingerprints.by_place(self._checksums)
        self._forget_batches()
        self.timeline.step(self.trainer.state.global_step, values)

    def on_epoch_end(self, epoch: int) -> None:
        """`epoch` epochs are done; the epoch's log and evaluation follow."""
        self._end_update()
        self.timeline.complete_epoch(epoch)

    def on_log(self, logs: dict[str, Any]) -> None:
        """Other callbacks take keys out of the same dict: it is copied here."""
        values = {_RENAMED.get(k, k): v for k, v in logs.items() if k not in ("epoch", "step")}
        if self._is_in_update:  # `self.log` in compute_loss: of the update that is being made
            self.timeline.coming.update(still(values))
        else:
            self.timeline.add(values, "train")

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """`evaluate` has logged the same values before: they move to their phase."""
        values = {k: v for k, v in (metrics or {}).items() if k not in ("epoch", "step")}
        for level in ("step", "epoch"):
            self.timeline.move(set(values), ("train", level))
        values.update(self.hooks.validation_end(self.timeline.position))
        self.timeline.add(values, "validation")

    def on_predict(self, metrics: dict[str, Any]) -> None:
        self.timeline.add(dict(metrics or {}), "test")

    def context(self, **fields: Any) -> Context:
        """A hook's context at the present position."""
        position, trainer = self.timeline.position, self.trainer
        return Context(
            **{
                "model": trainer.model,
                "optimizer": self._optimizer(),
                "make_val_dataloader": self._val_dataloader,
                "device": trainer.args.device,
                "run": self.run,
                "epoch": position.epoch,
                "step": position.step,
                **fields,
            }
        )

    # ---- inside

    def _in_phase(self, phase: Phase) -> Callable[..., Any]:
        """While the wrapped method runs, what `flor.log` brings belongs to that phase."""

        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self.timeline.during(phase):
                return original(*args, **kwargs)

        return wrapper

    def _on_update_begin(self) -> None:
        # The first call of each update, before its batches are drawn. What user code logs with
        # flor.log from here on belongs to that update; the timeline still stands at the one before.
        self._end_update()
        self._forget_batches()  # those that the end of a stream left without an update
        self._in_update.enter_context(log.connected(self._log))
        self._is_in_update = True

    def _end_update(self) -> None:
        self._in_update.close()
        self._is_in_update = False

    def _forget_batches(self) -> None:
        self._losses, self._batch, self._checksums = [], None, []

    def _fingerprint(self, inputs: Any) -> None:
        """Each batch counts by its place in the update.

        No synchronisation but for one batch an epoch.
        """
        if self._first:
            self._first = False
            self.timeline.coming[FIRST_BATCH] = fingerprints.sha256(inputs)
        self._checksums.append(fingerprints.checksum(inputs))

    def _log(self, name: str, value: Any) -> None:
        self.timeline.coming.update(still({name: value}))

    def _optimizer(self) -> Any:
        # AcceleratedOptimizer hides the torch optimizer (accelerate/optimizer.py).
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)

    def _loss(self) -> torch.Tensor:
        # `training_step` returns each micro-batch's share of the update's mean.
        return torch.stack(self._losses).sum() if len(self._losses) > 1 else self._losses[0]

    def _update_context(self) -> Context:
        step = self.timeline.position.step + 1
        return self.context(
            batch=self._batch, loss=self._loss() if self._losses else None, step=step
        )

    def _training_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        self.guarded(lambda: self._fingerprint(inputs))
        loss = original(model, inputs, *args, **kwargs)
        self.guarded(lambda: self._losses.append(loss.detach().clone()))
        self._batch = inputs
        return loss

    def _grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        if norm is not None:
            copy = norm.detach().clone() if isinstance(norm, torch.Tensor) else norm
            self.timeline.coming["grad_norm"] = copy
        return norm

    def _prediction_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        outputs = original(model, inputs, *args, **kwargs)
        batch = self.trainer._prepare_inputs(inputs)
        self.guarded(
            lambda: self.hooks.validation_batch(self.context(batch=batch, outputs=outputs))
        )
        return outputs

    def _val_dataloader(self) -> Any:
        """The evaluation loader, made once: each `get_eval_dataloader` adds one to the accelerator.

        Not the one that the trainer keeps where workers persist: its first use draws a seed, a
        later one doesn't. Where several processes train it has all of the data, not this one's
        share: as in a replay by one process."""
        if self._val_loader is None and self.trainer.eval_dataset is not None:
            kept, wrapped = getattr(self.trainer, "_eval_dataloaders", {}), MethodWrapper()
            self.trainer._eval_dataloaders = {}
            if self.trainer.args.world_size > 1:
                wrapped.around(self.trainer.accelerator, "prepare", self._prepare_whole)
            try:
                self._val_loader = self.trainer.get_eval_dataloader()
            finally:
                wrapped.undo()
                self.trainer._eval_dataloaders = kept
        return self._val_loader

    def _prepare_whole(
        self, original: Callable[..., Any], loader: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """What accelerate makes of a loader in a process that is alone."""
        device = self.trainer.accelerator.device
        return prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True
        )
