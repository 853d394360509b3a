"""Every value that a Lightning trainer knows, once, at its true position.

The public hooks come too early or too late: in a callback's `on_train_epoch_end` what the module
logs there is still missing, and `callback_metrics` keeps stale values. The logger connector
(lightning/pytorch/trainer/connectors/logger_connector) is where all logged values pass; its
methods are wrapped on this trainer only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Context
from flor_plugins.lightning import state
from flor_plugins.records import Phase
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.state.still import still
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH
from flor_plugins.store.metrics.timeline import Timeline

# Where a value of ours fails to be read, the training goes on: `guarded` runs our part.
GuardedCall = Callable[[Callable[[], Any]], Any]


class MetricCollector:
    """Feeds a Timeline from a trainer, and calls step and validation hooks at their moments."""

    def __init__(
        self,
        trainer: pl.Trainer,
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
        self._data = _UpdateFingerprints()
        self._in_connector = False
        hooks.generators = lambda: state.generators(trainer)

    def attach(self) -> None:
        """Wrap what values pass through. Call once per fit, when the trainer is built."""
        connector, wrapped = self.trainer._logger_connector, self._wrapped
        wrapped.around(self.trainer.fit_loop.epoch_loop, "advance", self._advance)
        wrapped.around(connector, "on_batch_start", self._on_batch_start)
        wrapped.after(connector, "on_batch_end", lambda: self.guarded(self._on_batch_end))
        wrapped.before(
            connector, "epoch_end_reached", lambda: self.guarded(self._on_epoch_end_reached)
        )
        wrapped.before(
            connector, "update_train_epoch_metrics", lambda: self.guarded(self._on_train_metrics)
        )
        wrapped.before(
            connector, "update_eval_epoch_metrics", lambda: self.guarded(self._on_eval_metrics)
        )
        wrapped.around(connector, "log_metrics", self._on_log_metrics)
        wrapped.around(
            self.trainer.fit_loop.epoch_loop.val_loop, "run", self._in_phase("validation")
        )
        wrapped.around(self.trainer.validate_loop, "run", self._in_phase("validation"))
        wrapped.around(self.trainer.test_loop, "run", self._in_phase("test"))
        for logger in self.trainer.loggers:
            wrapped.around(logger, "log_metrics", self._on_logger)

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        self._wrapped.undo()

    def begin(self) -> None:
        """The trainer is about to be put elsewhere: what was pending belongs to no update."""
        self._losses, self._batch, self.timeline.coming = [], None, {}
        self._data.begin()

    # ---- called by the callback's hooks of the same names

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are complete, clipping may still come; the weights are those before the
        update.
        """
        names = ["lr"] + [f"lr.{i}" for i in range(1, len(optimizer.param_groups))]
        index = next((i for i, o in enumerate(self.trainer.optimizers) if o is optimizer), 0)
        prefix = f"optimizer{index}." if index else ""
        for name, group in zip(names, optimizer.param_groups, strict=True):
            lr = group["lr"]
            self.timeline.coming[prefix + name] = (
                lr.detach().clone() if isinstance(lr, torch.Tensor) else lr
            )
        if self.hooks.at("step"):
            self.hooks.before_update(self._update_context(optimizer))

    def on_after_step(self, optimizer: Any) -> None:
        """The update is made; gradients are still there."""
        if self.hooks.at("step"):
            self.timeline.coming.update(self.hooks.after_update(self._update_context(optimizer)))

    def on_train_batch_end(self, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach().clone())
        self._batch = None

    def on_validation_batch_end(self, outputs: Any, batch: Any) -> None:
        if self.hooks.at("validation") and not self.trainer.sanity_checking:
            self.hooks.validation_batch(self.context(batch=batch, outputs=outputs))

    def context(self, **fields: Any) -> Context:
        """A hook's context at the present position."""
        position = self.timeline.position
        trainer = self.trainer
        return Context(
            **{
                "model": trainer.lightning_module,
                "optimizer": trainer.optimizers[0] if trainer.optimizers else None,
                "make_val_dataloader": lambda: val_dataloader(trainer),
                "device": trainer.lightning_module.device,
                "run": self.run,
                "epoch": position.epoch,
                "step": position.step,
                **fields,
            }
        )

    # ---- inside

    def _in_phase(self, phase: Phase) -> Callable[..., Any]:
        """While the wrapped method runs, what `flor.log` brings belongs to that phase; to
        none in the sanity check.
        """

        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.trainer.sanity_checking:
                with log.connected(lambda name, value: None):
                    return original(*args, **kwargs)
            with self.timeline.during(phase):
                return original(*args, **kwargs)

        return wrapper

    def _update_context(self, optimizer: Any) -> Context:
        # The update that is being made will be global_step + 1; before the training step has
        # returned, its own loss is not known yet (the closure runs inside optimizer.step).
        step = self.timeline.position.step + 1
        loss = torch.stack(self._losses).sum() if self._losses else None
        return self.context(optimizer=optimizer, batch=self._batch, loss=loss, step=step)

    def _advance(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # What user code logs with flor.log during a batch belongs to the update that is being
        # made; the timeline still stands at the one before.
        with log.connected(lambda name, value: self.timeline.coming.update(still({name: value}))):
            return original(*args, **kwargs)

    def _on_batch_start(
        self, original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Before all hooks of callbacks: some change the batch in place.
        if self.trainer.training:
            self.guarded(lambda: self._see(batch))
        return original(batch, *args, **kwargs)

    def _see(self, batch: Any) -> None:
        self._batch = batch
        is_first = self.trainer.fit_loop.epoch_loop.batch_idx == 0
        if is_first:  # manual optimization may have left batches behind that came to no update
            self._losses = []
            self._data.begin()
        self._data.add(batch, is_first=is_first)

    def _on_batch_end(self) -> None:
        trainer = self.trainer
        if not trainer.training or trainer.global_step == self.timeline.position.step:
            return
        found = trainer._results.metrics(True)["callback"] if trainer._results else {}
        values = still({k: v for k, v in found.items() if f"{k}_step" not in found})
        values.update(self.timeline.take_coming())
        if self._losses:
            values["loss"] = self._loss()
        values.update(self._data.take())
        self._losses = []
        self.timeline.step(trainer.global_step, values)

    def _loss(self) -> torch.Tensor:
        # Lightning divides each micro-batch's loss by accumulate_grad_batches, also where an
        # epoch's last update has fewer (lightning/pytorch/loops/optimization/automatic.py).
        count, divided_by = len(self._losses), self.trainer.accumulate_grad_batches
        loss = torch.stack(self._losses).sum() if count > 1 else self._losses[0]
        return loss if count == divided_by else loss * (divided_by / count)

    def _on_epoch_end_reached(self) -> None:
        if self.trainer.training:
            progress: Any = (
                self.trainer.fit_loop.epoch_progress.current
            )  # declared as its base class
            self.timeline.complete_epoch(progress.processed + 1)

    def _on_train_metrics(self) -> None:
        self.timeline.add(still(_epoch_values(self.trainer)), "train", "epoch")

    def _on_eval_metrics(self) -> None:
        trainer = self.trainer
        if trainer.sanity_checking:
            return
        phase: Phase = "test" if trainer.testing else "validation"
        in_fit = trainer.state.fn == "fit"
        ended = not in_fit or trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        level = "epoch" if ended else "step"
        values = _epoch_values(trainer)
        values.update(
            self.hooks.validation_end(self.timeline.position) if phase == "validation" else {}
        )
        self.timeline.add(still(values), phase, level)

    def _on_log_metrics(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._in_connector = True
        try:
            return original(*args, **kwargs)
        finally:
            self._in_connector = False

    def _on_logger(
        self, original: Callable[..., Any], metrics: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # What passes through the connector is known already; the rest is logged to the
        # logger directly (LearningRateMonitor, DeviceStatsMonitor, the user's own calls).
        if not self._in_connector and not self.trainer.sanity_checking:
            extra = {k: v for k, v in metrics.items() if k not in ("epoch", "step")}
            self.guarded(lambda: self.timeline.coming.update(still(extra)))
        return original(metrics, *args, **kwargs)


class _UpdateFingerprints:
    """Fingerprints of the batches that an update is made from."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._checksums: list[torch.Tensor | int] = []
        self._first = ""

    def add(self, batch: Any, *, is_first: bool) -> None:
        """is_first: of its epoch; its sha256 is worth a synchronisation with the device."""
        if is_first:
            self._first = fingerprints.sha256(batch)
        self._checksums.append(fingerprints.checksum(batch))

    def take(self) -> dict[str, Any]:
        """The values of the update that has been made."""
        values = {
            BATCH: fingerprints.by_place(self._checksums),
            **({FIRST_BATCH: self._first} if self._first else {}),
        }
        self.begin()
        return values


def val_dataloader(trainer: pl.Trainer) -> Any:
    """The validation loader of a fit (a list where there are several), or None.

    Where several processes train it has all of the data, not this one's share: as in a replay
    by one process."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader
    if combined is None:
        return None
    if trainer.world_size > 1:
        combined = CombinedLoader(loop._data_source.dataloader(), "sequential")
    loaders = combined.flattened
    return loaders[0] if len(loaders) == 1 else loaders


def _epoch_values(trainer: pl.Trainer) -> dict[str, Any]:
    """Reduced values; of a name logged per step and per epoch only `name_epoch`, as loggers
    get it.
    """
    results = trainer._results
    if results is None:
        return {}
    found = results.metrics(False)["callback"]
    return {k: v for k, v in found.items() if f"{k}_epoch" not in found}
