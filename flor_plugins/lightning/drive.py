"""Replaying with a Lightning trainer that the user's own script has built.

`fit` runs as usual up to its first epoch; there, at the entry of `FitLoop.on_advance_start`, states
are restored and driven, and the loop is left through StopIteration, which `FitLoop.run` takes as its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from flor_plugins.errors import HookError
from flor_plugins.hooks.load import check_callback
from flor_plugins.lightning import capture
from flor_plugins.lightning.callback import FlorCallback
from flor_plugins.lightning.harvest import Harvest
from flor_plugins.lightning.intercept import Go, silence
from flor_plugins.records import Pass, Position
from flor_plugins.replay.session import Session
from flor_plugins.state import rng
from flor_plugins.state.wrapped import Wrapped


def drive(trainer: Any, go: Go, session: Session) -> None:
    """Do all passes of the session's task. The trainer's savers and loggers are off."""
    classes = [made for loaded in session.loaded for made in loaded.callbacks]
    for made in classes:
        check_callback(made, Callback)
    if any(loaded.compute_metrics for loaded in session.loaded):
        raise HookError("compute_metrics is a hook of the HF Trainer; for Lightning write a Callback")
    silence(trainer)
    driver = _Driver(session)
    trainer.callbacks = [driver, *_without_flor(trainer), *(made() for made in classes)]
    go()
    if driver.error is not None:
        raise driver.error


def pass_over(trainer: Any, go: Go, sections: Mapping[str, Any], end: Position) -> None:
    """Leave a fit as if it had trained: its last State is restored, no step is made."""
    silence(trainer)
    trainer.callbacks = [_PassOver(sections, end), *_without_flor(trainer)]
    go()


def _without_flor(trainer: Any) -> list[Callback]:
    return [c for c in trainer.callbacks if not isinstance(c, FlorCallback)]


class _Entered(Callback):
    """Common to both: official restore functions see our State before callbacks' on_fit_start."""

    def __init__(self) -> None:
        self.wrapped = Wrapped()

    def prepare(self, trainer: pl.Trainer, sections: Mapping[str, Any], entry: Callable[..., Any]) -> None:
        connector = trainer._checkpoint_connector
        # `resume_start(None)` leaves `_loaded_checkpoint` alone and `restore_model` and its siblings use
        # it (checkpoint_connector.py): callbacks that act on restored state (BaseFinetuning adds
        # param groups) find it in on_fit_start. A ckpt_path of the script must not replace it.
        connector._loaded_checkpoint = capture.as_checkpoint(sections)
        self.wrapped.around(connector, "resume_start", lambda original, *a, **k: None)
        self.wrapped.around(trainer.fit_loop, "on_advance_start", entry)
        setup = sections[capture.RNG].get("setup")
        if setup is not None:
            self.wrapped.before(trainer.fit_loop, "setup_data", _once(lambda: rng.restore(setup)))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.wrapped.undo()


class _PassOver(_Entered):
    def __init__(self, sections: Mapping[str, Any], end: Position) -> None:
        super().__init__()
        self.sections, self.end = sections, end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.prepare(trainer, self.sections, lambda original: self._enter(trainer))

    def _enter(self, trainer: pl.Trainer) -> None:
        capture.restore_progress(trainer, self.sections, self.end.epoch)
        capture.restore(trainer, self.sections)
        raise StopIteration


class _Driver(_Entered):
    """Drives the passes of a session from inside `fit`."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.error: BaseException | None = None
        self._epochs: list[tuple[Pass, int]] = []
        self._context: Any = None
        self._epoch: int | None = None
        self._sections: dict[str, Any] | None = None
        self._begun = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._epochs = [(one, epoch) for one in self.session.passes("train") for epoch in one.epochs]
        first = self._epochs[0][1] - 1 if self._epochs else self.session.task.passes[0].epochs[0]
        self.prepare(trainer, self.session.state(first)[1], lambda original: self._advance_start(trainer, original))
        self.wrapped.before(trainer.fit_loop, "advance", lambda: self._advance(trainer))
        self.wrapped.before(trainer.fit_loop, "on_run_end", lambda: self._epoch_over(trainer))
        self.harvest = Harvest(
            trainer, self.session.timeline, self.session.hooks, self.session.run.name, lambda act: act()
        )
        self.harvest.attach()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda o, *_: self.harvest.on_after_step(o))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.harvest.detach()
        super().teardown(trainer, pl_module, stage)

    # ---- between epochs

    def _advance_start(self, trainer: pl.Trainer, original: Go) -> None:
        if not self._begun:
            self._begun = True
            for one in self.session.passes("state"):
                self._state_pass(trainer, one)
            for one in self.session.passes("validate"):
                self._validate_pass(trainer, one)
        self._epoch_over(trainer)
        if not self._epochs:
            raise StopIteration
        one, epoch = self._epochs[0]
        if self._context is None:
            self._context = self.session.passing(one)
            self._context.__enter__()
        self._epoch = epoch
        # Without a checkpoint here the epoch before has just been run: the training goes on.
        self._sections = self.session.state(epoch - 1)[1] if self.session.has_state(epoch - 1) else None
        if self._sections is not None:
            capture.restore_progress(trainer, self._sections, epoch - 1)
        original()

    def _advance(self, trainer: pl.Trainer) -> None:
        """The same moment as the recording's: hooks of the epoch's start have run, then are overwritten."""
        if self._sections is None:
            return
        position = checkpoint_position(self._sections)
        self.session.timeline.jump(Position(self._epoch - 1 if self._epoch else 0, position))
        capture.restore(trainer, self._sections)

    def _epoch_over(self, trainer: pl.Trainer) -> None:
        """A re-run epoch is over, its hooks and loggers included: compare where it ended."""
        if self._epoch is None:
            return
        epoch, self._epoch = self._epoch, None
        self._epochs.pop(0)
        self.session.epoch_done(epoch)
        self.session.compare_weights(epoch, capture.weights(trainer))
        if not self._epochs:
            self._context.__exit__(None, None, None)

    # ---- without training

    def _state_pass(self, trainer: pl.Trainer, one: Pass) -> None:
        with self.session.passing(one):
            for epoch in one.epochs:
                position, sections = self.session.state(epoch, only=(capture.MODEL,))
                self.session.timeline.jump(position)
                self.session.timeline.complete_epoch(epoch)
                capture.restore_weights(trainer, sections)
                values = self.session.hooks.epoch(self.harvest.context())
                self.session.timeline.add(values, "validation", "epoch")
                self.session.compare_weights(epoch, trainer.lightning_module.state_dict())
                self.session.epoch_done(epoch)

    def _validate_pass(self, trainer: pl.Trainer, one: Pass) -> None:
        loop = trainer.fit_loop
        with self.session.passing(one):
            for epoch in one.epochs:
                position, sections = self.session.state(epoch)
                capture.restore_progress(trainer, sections, epoch - 1)
                capture.restore(trainer, sections)
                trackers: list[Any] = [loop.epoch_progress.total, loop.epoch_progress.current]
                for progress in trackers:
                    progress.ready = progress.started = epoch
                loop.epoch_loop.batch_progress.is_last_batch = True
                loop.epoch_loop.val_loop.batch_progress.total.reset()
                self.session.timeline.jump(Position(epoch - 1, position.step))
                self.session.timeline.complete_epoch(epoch)
                rng.restore(sections[capture.RNG].get("validation", sections[capture.RNG]["now"]))
                trainer.validating = True
                loop.epoch_loop.val_loop.run()
                trainer.training = True
                self.session.epoch_done(epoch)

    # ---- values, as in FlorCallback

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self.harvest.on_before_optimizer_step(optimizer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.harvest.on_train_batch_start(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.harvest.on_train_batch_end(outputs)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.harvest.on_validation_batch_end(outputs, batch)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.error = exception


def checkpoint_position(sections: Mapping[str, Any]) -> int:
    """The optimizer updates that a State has behind it."""
    return int(sections[capture.TRAINER]["checkpoint"]["global_step"])


def _once(act: Callable[[], Any]) -> Callable[[], None]:
    """`act` at the first call only: later iterators belong to restored epochs."""
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            act()

    return run
