"""Replaying with a Lightning trainer that the user's own script has built.

`fit` runs as usual up to its first epoch; there, at the entry of `FitLoop.on_advance_start`, states
are restored and ranges of training driven, and the loop is left through StopIteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from flor_plugins.adapter import Proceed
from flor_plugins.errors import HookError
from flor_plugins.hooks.hook_files import check_callback
from flor_plugins.lightning import loaders, state
from flor_plugins.lightning.callback import FlorCallback
from flor_plugins.lightning.collector import MetricCollector
from flor_plugins.lightning.fast_forward import FastForward, is_boundary, prepare
from flor_plugins.lightning.intercept import silence
from flor_plugins.records import Position, TrainingRange
from flor_plugins.records.sections import RNG, LoadedSections
from flor_plugins.replayer.worker_session.replay_loop import RangeEnd, ReplayLoop
from flor_plugins.replayer.worker_session.session import WorkerSession, guarded
from flor_plugins.state import rng
from flor_plugins.state.method_wrapper import MethodWrapper


def drive(trainer: Any, go: Proceed, session: WorkerSession) -> None:
    """Do all passes of the session's task. The trainer's savers and loggers are off."""
    callbacks = [callback for file in session.files for callback in file.callbacks]
    for callback in callbacks:
        check_callback(callback, Callback)
    if any(file.compute_metrics for file in session.files):
        raise HookError(
            "compute_metrics is a hook of the HF Trainer; for Lightning write a Callback"
        )
    silence(trainer)
    driver = _ReplayDriver(trainer, session)
    trainer.callbacks = [driver, *_without_flor(trainer), *(make() for make in callbacks)]
    go()
    if driver.error is not None:
        raise driver.error


def pass_over(trainer: Any, go: Proceed, sections: Mapping[str, Any], end: Position) -> None:
    """Leave a fit as if it had trained: its last State is restored, no step is made."""
    silence(trainer)
    trainer.callbacks = [_SkipTraining(sections, end), *_without_flor(trainer)]
    go()


def _without_flor(trainer: Any) -> list[Callback]:
    return [callback for callback in trainer.callbacks if not isinstance(callback, FlorCallback)]


class _SkipTraining(Callback):
    def __init__(self, sections: Mapping[str, Any], end: Position) -> None:
        self.sections, self.end = sections, end
        self.wrapped = MethodWrapper()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return

        def enter(advance_start: Proceed) -> None:
            state.restore_progress(trainer, self.sections, self.end.epoch)
            state.restore(trainer, self.sections)
            raise StopIteration

        prepare(trainer, self.sections, self.wrapped)
        self.wrapped.around(trainer.fit_loop, "on_advance_start", enter)

    def teardown(self, *_: object, **__: object) -> None:
        self.wrapped.undo()


class _ReplayDriver(Callback):
    """Moves a trainer from inside `fit`."""

    def __init__(self, trainer: pl.Trainer, session: WorkerSession) -> None:
        self.trainer, self.session = trainer, session
        self.collector = MetricCollector(trainer, session, guarded)
        self.wrapped = MethodWrapper()
        self.error: BaseException | None = None
        # Of the range that is being run, as long as its State is not all in place.
        self._entry: FastForward | None = None
        self._is_training = False
        # The epoch whose start hooks have run, where nothing else of it has.
        self._begun: int | None = None
        self._stepped = 0
        self._loop = ReplayLoop(
            session,
            context=self.collector.context,
            weights=partial(state.weights, trainer),
            restore_weights=partial(state.restore_weights, trainer),
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Weights alone may be all that there is, and all that is needed.
        trained = [
            span.start
            for replay_pass in self.session.passes("train")
            for span in replay_pass.stretches
        ]
        validated = [
            position
            for replay_pass in self.session.passes("validate")
            for position in replay_pass.positions
        ]
        start = next(iter(trained + validated), None)
        prepare(trainer, None if start is None else self.session.state(start), self.wrapped)
        self.wrapped.around(trainer.fit_loop, "on_advance_start", self._drive)
        self.collector.attach()
        self.wrapped.before(trainer.fit_loop.epoch_loop, "advance", self._step_boundary)

    def on_train_start(self, *_: object, **__: object) -> None:
        def after_step(optimizer: Optimizer, *_: object) -> None:
            self.collector.after_update(optimizer)

        for optimizer in self.trainer.optimizers:
            optimizer.register_step_post_hook(after_step)

    def teardown(self, *_: object, **__: object) -> None:
        self.collector.detach()
        self.wrapped.undo()

    def _drive(self, advance_start: Proceed) -> None:
        """Run epochs as `FitLoop.run` would, from the first `FitLoop.on_advance_start` on."""
        self._loop.evaluate()
        self._loop.validate(self._restore_validation, self._validate)
        with closing(self._loop.ranges()) as ranges:
            for trained in ranges:
                self._run_again(advance_start, trained)
        raise StopIteration  # FitLoop.run takes it as its end

    # ---- training

    def _run_again(self, advance_start: Proceed, trained: TrainingRange) -> None:
        loop = self.trainer.fit_loop
        self._enter(advance_start, trained.start)
        self._is_training = True
        try:
            is_over = False
            while not is_over:
                loop.advance()
                loop.on_advance_end()
                loop.on_iteration_done()
                is_over = self._epoch_boundary(advance_start)
        except RangeEnd:
            pass
        finally:
            self._is_training, self._entry = False, None

    def _enter(self, advance_start: Proceed, start: Position) -> None:
        """Up to the entry of `FitLoop.advance`.

        Of a State inside an epoch the rest is done at its first batch.
        """
        trainer: Any = self.trainer
        entry = FastForward(trainer, self.session.state(start))
        self._stepped = start.step
        if self._begun != entry.epoch or trainer.reload_dataloaders_every_n_epochs:
            self.collector.begin()
            entry.before_epoch()
            advance_start()
        entry.at_epoch()
        self._entry, self._begun = entry if entry.batch else None, None
        del entry
        if self._entry is None:
            self.session.read_ahead()

    def _epoch_boundary(self, advance_start: Proceed) -> bool:
        """An epoch is over, its hooks and loggers included.

        The recording stood at the same moment: the next epoch's start hooks had run, unless the
        run had ended.
        """
        position, run = self._position(), self.session.run
        is_last = run.status == "finished" and run.position is not None and position >= run.position
        if not is_last:
            advance_start()
            self._begun = position.epoch
        self._stepped = position.step
        return self._loop.boundary(position, epoch_ended=True) or is_last

    def _step_boundary(self) -> None:
        """Entry of `_TrainingEpochLoop.advance`, as in FlorCallback."""
        if not self._is_training:
            return
        if self._entry is not None:
            self._entry.at_batch()
            self._entry = None
            self.session.read_ahead()
        if is_boundary(self.trainer, self._stepped):
            position = self._position()
            self._stepped = position.step
            if self._loop.boundary(position, epoch_ended=False):
                raise RangeEnd

    def _position(self) -> Position:
        return Position(self.trainer.current_epoch, self.trainer.global_step)

    # ---- without training

    def _restore_validation(self, position: Position, sections: LoadedSections) -> None:
        trainer, epoch_loop = self.trainer, self.trainer.fit_loop.epoch_loop
        is_inside = FastForward(trainer, sections).batch
        # At an epoch's end its validation came before the counters went on.
        epoch = position.epoch if is_inside else position.epoch - 1
        state.restore_progress(trainer, sections, epoch, has_begun=True)
        state.restore(trainer, sections)
        if not is_inside:
            epoch_loop.batch_progress.is_last_batch = True
        epoch_loop.val_loop.batch_progress.total.reset()
        self.session.stand_at(position)
        held = sections[RNG]
        moment = held.get("validation_moment")
        if moment is not None:
            loaders.restore(trainer, moment)
        else:  # recorded by an earlier version, or never validated
            rng.restore(held.get("validation", held["now"]))

    def _validate(self) -> None:
        self.trainer.validating = True
        self.trainer.fit_loop.epoch_loop.val_loop.run()
        self.trainer.training = True

    # ---- values, as in FlorCallback

    def on_before_optimizer_step(
        self, trainer: object, pl_module: object, optimizer: Optimizer
    ) -> None:
        self.collector.on_before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: object, pl_module: object, outputs: Any, *_: object, **__: object
    ) -> None:
        self.collector.on_train_batch_end(outputs)

    def on_validation_batch_end(
        self,
        trainer: object,
        pl_module: object,
        outputs: Any,
        batch: Any,
        *_: object,
        **__: object,
    ) -> None:
        self.collector.on_validation_batch_end(outputs, batch)

    def on_exception(self, trainer: object, pl_module: object, exception: BaseException) -> None:
        self.error = exception
