"""Every value that an HF Trainer knows, once, at its true position.

`on_log` brings the loss only as a mean since the last log, and gradient norm and learning rate
only then. `training_step`, `_get_grad_norm` and `prediction_step` are looked up on the trainer at
each call (transformers/trainer.py), so that they can be wrapped on this trainer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from flor_plugins.hf import loaders
from flor_plugins.hooks import log
from flor_plugins.hooks.metric import Context
from flor_plugins.hooks.step_collector import GuardedCall, StepCollector, ValueReceiver
from flor_plugins.state.method_wrapper import Method, MethodWrapper
from flor_plugins.state.tensor_trees import still

# HF logs the mean loss since the last log as "loss"; here "loss" is each update's own.
_RENAMED = {"loss": "loss_logged"}


class MetricCollector(StepCollector):
    """Feeds a Timeline from a trainer, and calls step and validation hooks at their moments."""

    def __init__(self, trainer: Trainer, receiver: ValueReceiver, guarded: GuardedCall) -> None:
        super().__init__(receiver, guarded)
        self.trainer = trainer
        self._wrapped = MethodWrapper()
        self._val_loader: object = None
        self._in_update = ExitStack()
        self._is_in_update = False
        self.hooks.generators = partial(loaders.generators, trainer)

    def attach(self) -> None:
        """Wrap what values pass through. Call once per training, when the trainer is built."""
        trainer, wrapped = self.trainer, self._wrapped
        wrapped.before(trainer, "get_batch_samples", self._on_update_begin)
        wrapped.around(trainer, "training_step", self._training_step)
        wrapped.around(trainer, "_get_grad_norm", self._grad_norm)
        wrapped.around(trainer, "evaluate", self.in_phase("validation"))
        wrapped.around(trainer, "predict", self.in_phase("test"))
        if self.hooks.at("validation"):
            wrapped.around(trainer, "prediction_step", self._prediction_step)

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        self._end_update()
        self._wrapped.undo()

    def begin_epoch(self) -> None:
        """The next batch is the first of an epoch."""
        self.is_first_batch = True

    def trained(self) -> Context:
        """Return the context without its position."""
        return Context(
            self.trainer.model,
            optimizer=self._optimizer(),
            make_val_dataloader=self._val_dataloader,
            device=self.trainer.args.device,
        )

    def _optimizer(self) -> Any:
        # AcceleratedOptimizer hides the optimizer that the Trainer was given, or has made
        # (accelerate/optimizer.py); that may be a wrapper of the user's own.
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)

    # ---- called by the callback's events of the same names

    def on_pre_optimizer_step(self) -> None:
        """Gradients are clipped."""
        self.before_update(self._optimizer())

    def on_optimizer_step(self) -> None:
        """The update is made; gradients are still there."""
        self.after_update(self._optimizer())

    def on_step_end(self) -> None:
        """global_step counts this update already; logging and evaluation follow."""
        self._end_update()
        self.batch = None
        self.updated(self.trainer.state.global_step, {}, self.loss())

    def on_epoch_end(self, epoch: int) -> None:
        """`epoch` epochs are done; the epoch's log and evaluation follow."""
        self._end_update()
        self.timeline.complete_epoch(epoch)

    def on_log(self, logs: Mapping[str, Any]) -> None:
        """Other callbacks take keys out of the same dict: it is copied here."""
        values = {_RENAMED.get(name, name): value for name, value in _logged(logs).items()}
        if self._is_in_update:  # `self.log` in compute_loss: of the update that is being made
            self.timeline.add_coming(still(values))
        else:
            self.timeline.add(values, "train")

    def on_evaluate(self, metrics: Mapping[str, Any]) -> None:
        """`evaluate` has logged the same values before: they move to their phase."""
        values = _logged(metrics)
        for level in ("step", "epoch"):
            self.timeline.move(set(values), ("train", level))
        values.update(self.hooks.validation_end(self.timeline.position))
        self.timeline.add(values, "validation")

    def on_predict(self, metrics: Mapping[str, Any]) -> None:
        """A test is over: its values stand at the last position."""
        self.timeline.add(dict(metrics), "test")

    # ---- inside

    def _on_update_begin(self) -> None:
        # The first call of each update, before its batches are drawn. What user code logs with
        # flor.log from here on belongs to that update; the timeline still stands at the one before.
        self._end_update()
        self.forget_batches()  # those that the end of a stream left without an update
        self._in_update.enter_context(log.connected(self.log_coming))
        self._is_in_update = True

    def _end_update(self) -> None:
        self._in_update.close()
        self._is_in_update = False

    def _training_step(
        self, original: Method, model: object, inputs: object, *args: Any, **kwargs: Any
    ) -> Any:
        self.guarded(self.see_batch, inputs)
        loss = original(model, inputs, *args, **kwargs)
        self.guarded(self._add_loss, loss)
        return loss

    def _add_loss(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.detach().clone())

    def _grad_norm(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        if norm is not None:
            self.log_coming("grad_norm", norm)
        return norm

    def _prediction_step(
        self, original: Method, model: object, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        outputs = original(model, inputs, *args, **kwargs)
        batch = self.trainer._prepare_inputs(inputs)
        self.guarded(self._validate, batch, outputs)
        return outputs

    def _validate(self, batch: object, outputs: object) -> None:
        self.hooks.validation_batch(self.context(batch=batch, outputs=outputs))

    def _val_dataloader(self) -> object:
        """Return the evaluation loader for hooks, made once: the accelerator keeps each one."""
        if self._val_loader is None and self.trainer.eval_dataset is not None:
            self._val_loader = loaders.val_dataloader(self.trainer)
        return self._val_loader


def _logged(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("epoch", "step")}
