"""Every value that a Lightning trainer knows, once, at its true position.

The public hooks come too early or too late: in a callback's `on_train_epoch_end` what the module
logs there is still missing, and `callback_metrics` keeps stale values. The logger connector
(lightning/pytorch/trainer/connectors/logger_connector) is where all logged values pass; its
methods are wrapped on this trainer only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from flor_plugins.hooks import log
from flor_plugins.hooks.metric import Context
from flor_plugins.hooks.step_collector import GuardedCall, StepCollector, ValueReceiver
from flor_plugins.lightning import loaders
from flor_plugins.records import Phase
from flor_plugins.state.method_wrapper import Method, MethodWrapper
from flor_plugins.state.tensor_trees import still


class MetricCollector(StepCollector):
    """Feeds a Timeline from a trainer, and calls step and validation hooks at their moments."""

    def __init__(self, trainer: pl.Trainer, receiver: ValueReceiver, guarded: GuardedCall) -> None:
        super().__init__(receiver, guarded)
        self.trainer = trainer
        self._wrapped = MethodWrapper()
        self._in_connector = False
        self.hooks.generators = partial(loaders.generators, trainer)

    def attach(self) -> None:
        """Wrap what values pass through. Call once per fit, when the trainer is built."""
        trainer, wrapped, guarded = self.trainer, self._wrapped, self.guarded
        connector, epoch_loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        wrapped.around(epoch_loop, "advance", self._advance)
        wrapped.around(connector, "on_batch_start", self._on_batch_start)
        wrapped.after(connector, "on_batch_end", guarded, self._on_batch_end)
        wrapped.before(connector, "epoch_end_reached", guarded, self._on_epoch_end_reached)
        wrapped.before(connector, "update_train_epoch_metrics", guarded, self._on_train_metrics)
        wrapped.before(connector, "update_eval_epoch_metrics", guarded, self._on_eval_metrics)
        wrapped.around(connector, "log_metrics", self._on_log_metrics)
        wrapped.around(epoch_loop.val_loop, "run", self.in_phase("validation"))
        wrapped.around(trainer.validate_loop, "run", self.in_phase("validation"))
        wrapped.around(trainer.test_loop, "run", self.in_phase("test"))
        for logger in trainer.loggers:
            wrapped.around(logger, "log_metrics", self._on_logger)

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        self._wrapped.undo()

    def begin(self) -> None:
        """The trainer is about to be put elsewhere: what was pending belongs to no update."""
        self.forget_batches()
        self.timeline.take_coming()

    def trained(self) -> Context:
        """Return the context without its position."""
        trainer = self.trainer
        return Context(
            trainer.lightning_module,
            optimizer=trainer.optimizers[0] if trainer.optimizers else None,
            make_val_dataloader=partial(loaders.val_dataloader, trainer),
            device=trainer.lightning_module.device,
        )

    # ---- called by the callback's hooks of the same names

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clipping of the gradients may still come."""
        index = next((i for i, one in enumerate(self.trainer.optimizers) if one is optimizer), 0)
        self.before_update(optimizer, f"optimizer{index}." if index else "")

    def on_train_batch_end(self, outputs: Any) -> None:
        """The training step has returned its loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self.losses.append(loss.detach().clone())
        self.batch = None

    def on_validation_batch_end(self, outputs: object, batch: object) -> None:
        """The validation step has returned what hooks see as outputs."""
        if self.hooks.at("validation") and not self.trainer.sanity_checking:
            self.hooks.validation_batch(self.context(batch=batch, outputs=outputs))

    # ---- inside

    def in_phase(self, phase: Phase) -> Method:
        """As for every framework; what the sanity check logs belongs to no phase."""
        inside = super().in_phase(phase)

        def wrapper(original: Method, *args: Any, **kwargs: Any) -> Any:
            if self.trainer.sanity_checking:
                with log.connected(_leave_out):
                    return original(*args, **kwargs)
            return inside(original, *args, **kwargs)

        return wrapper

    def _advance(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        with log.connected(self.log_coming):
            return original(*args, **kwargs)

    def _on_batch_start(self, original: Method, batch: object, *args: Any, **kwargs: Any) -> Any:
        # Before all hooks of callbacks: some change the batch in place.
        if self.trainer.training:
            self.guarded(self._on_train_batch_start, batch)
        return original(batch, *args, **kwargs)

    def _on_train_batch_start(self, batch: object) -> None:
        self.is_first_batch = self.trainer.fit_loop.epoch_loop.batch_idx == 0
        if self.is_first_batch:  # manual optimization may have left batches that came to no update
            self.forget_batches()
        self.see_batch(batch)

    def _on_batch_end(self) -> None:
        trainer = self.trainer
        if not trainer.training or trainer.global_step == self.timeline.position.step:
            return
        found = trainer._results.metrics(True)["callback"] if trainer._results else {}
        values = still({k: v for k, v in found.items() if f"{k}_step" not in found})
        self.updated(trainer.global_step, values, self._whole_loss())

    def _whole_loss(self) -> torch.Tensor | None:
        # Lightning divides each micro-batch's loss by accumulate_grad_batches, also where an
        # epoch's last update has fewer (lightning/pytorch/loops/optimization/automatic.py).
        loss, count = self.loss(), len(self.losses)
        divided_by = self.trainer.accumulate_grad_batches
        return loss if loss is None or count == divided_by else loss * (divided_by / count)

    def _on_epoch_end_reached(self) -> None:
        if self.trainer.training:
            # declared as its base class
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            self.timeline.complete_epoch(progress.processed + 1)

    def _on_train_metrics(self) -> None:
        self.timeline.add(still(_epoch_values(self.trainer)), "train", "epoch")

    def _on_eval_metrics(self) -> None:
        trainer = self.trainer
        if trainer.sanity_checking:
            return
        values = _epoch_values(trainer)
        if not trainer.testing:
            values.update(self.hooks.validation_end(self.timeline.position))
        is_inside = trainer.state.fn == "fit" and not (
            trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        )
        phase = "test" if trainer.testing else "validation"
        self.timeline.add(still(values), phase, "step" if is_inside else "epoch")

    def _on_log_metrics(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        self._in_connector = True
        try:
            return original(*args, **kwargs)
        finally:
            self._in_connector = False

    def _on_logger(self, original: Method, metrics: Any, *args: Any, **kwargs: Any) -> Any:
        # What passes through the connector is known already; the rest is logged to the
        # logger directly (LearningRateMonitor, DeviceStatsMonitor, the user's own calls).
        if not self._in_connector and not self.trainer.sanity_checking:
            self.guarded(self._log_extra, metrics)
        return original(metrics, *args, **kwargs)

    def _log_extra(self, metrics: Any) -> None:
        extra = {k: v for k, v in metrics.items() if k not in ("epoch", "step")}
        self.timeline.add_coming(still(extra))


def _leave_out(name: str, value: object) -> None:
    """Stands in for what `flor.log` feeds."""


def _epoch_values(trainer: pl.Trainer) -> dict[str, Any]:
    """Return reduced values, as loggers get them.

    Of a name logged per step and per epoch that is only `name_epoch`.
    """
    if trainer._results is None:
        return {}
    found = trainer._results.metrics(False)["callback"]
    return {k: v for k, v in found.items() if f"{k}_epoch" not in found}
