"""Replaying with a Lightning trainer that the user's own script has built.

`fit` runs as usual up to its first epoch; there, at the entry of `FitLoop.on_advance_start`, states
are restored and stretches of training driven, and the loop is left through StopIteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from flor_plugins.errors import HookError
from flor_plugins.hooks.hook_files import check_callback
from flor_plugins.lightning import state
from flor_plugins.lightning.callback import FlorCallback
from flor_plugins.lightning.collector import MetricCollector
from flor_plugins.lightning.fast_forward import FastForward, is_boundary, prepare
from flor_plugins.lightning.intercept import Proceed, silence
from flor_plugins.records import Position, ReplayPass, TrainingRange
from flor_plugins.replayer.worker_session.session import WorkerSession, guarded
from flor_plugins.state import rng
from flor_plugins.state.method_wrapper import MethodWrapper


def drive(trainer: Any, go: Proceed, session: WorkerSession) -> None:
    """Do all passes of the session's task. The trainer's savers and loggers are off."""
    classes = [made for loaded in session.loaded for made in loaded.callbacks]
    for made in classes:
        check_callback(made, Callback)
    if any(loaded.compute_metrics for loaded in session.loaded):
        raise HookError(
            "compute_metrics is a hook of the HF Trainer; for Lightning write a Callback"
        )
    silence(trainer)
    driver = _ReplayDriver(session)
    trainer.callbacks = [driver, *_without_flor(trainer), *(made() for made in classes)]
    go()
    if driver.error is not None:
        raise driver.error


def pass_over(trainer: Any, go: Proceed, sections: Mapping[str, Any], end: Position) -> None:
    """Leave a fit as if it had trained: its last State is restored, no step is made."""
    silence(trainer)
    trainer.callbacks = [_SkipTraining(sections, end), *_without_flor(trainer)]
    go()


def _without_flor(trainer: Any) -> list[Callback]:
    return [c for c in trainer.callbacks if not isinstance(c, FlorCallback)]


class _SkipTraining(Callback):
    def __init__(self, sections: Mapping[str, Any], end: Position) -> None:
        self.sections, self.end = sections, end
        self.wrapped = MethodWrapper()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            prepare(trainer, self.sections, self.wrapped)
            self.wrapped.around(
                trainer.fit_loop, "on_advance_start", lambda original: self._enter(trainer)
            )

    def _enter(self, trainer: pl.Trainer) -> None:
        state.restore_progress(trainer, self.sections, self.end.epoch)
        state.restore(trainer, self.sections)
        raise StopIteration

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.wrapped.undo()


class _RangeEnded(Exception):
    """A stretch ends inside an epoch: the loops are left as they stand, without the epoch's end."""


class _ReplayDriver(Callback):
    """Drives the passes of a session from inside `fit`."""

    def __init__(self, session: WorkerSession) -> None:
        self.session = session
        self.wrapped = MethodWrapper()
        self.error: BaseException | None = None
        # Of the stretch that is being run, as long as its State is not all in place.
        self._entry: FastForward | None = None
        self._is_training = False
        # The epoch whose start hooks have run, where nothing else of it has.
        self._begun: int | None = None
        self._stepped = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        loop, session = trainer.fit_loop, self.session
        start = self._first_start()
        # Weights alone may be all that there is, and all that is needed.
        prepare(trainer, None if start is None else session.state(start), self.wrapped)
        self.wrapped.around(
            loop, "on_advance_start", lambda original: self._drive(trainer, original)
        )
        self.harvest = MetricCollector(
            trainer, session.timeline, session.hooks, session.run.name, guarded
        )
        self.harvest.attach()
        self.wrapped.before(loop.epoch_loop, "advance", lambda: self._step_boundary(trainer))

    def _first_start(self) -> Position | None:
        stretches = [stretch for one in self.session.passes("train") for stretch in one.stretches]
        validated = [
            position for one in self.session.passes("validate") for position in one.positions
        ]
        return stretches[0].start if stretches else next(iter(validated), None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda o, *_: self.harvest.on_after_step(o))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.harvest.detach()
        self.wrapped.undo()

    def _drive(self, trainer: pl.Trainer, advance_start: Proceed) -> None:
        """Entry of the first `FitLoop.on_advance_start`: from here on epochs are run as
        `FitLoop.run` would.
        """
        for one in self.session.passes("state"):
            self._state_pass(trainer, one)
        for one in self.session.passes("validate"):
            self._validate_pass(trainer, one)
        for one in self.session.passes("train"):
            with self.session.passing(one):
                for stretch in self.session.stretches(one):
                    self._run_stretch(trainer, advance_start, stretch)
        raise StopIteration  # FitLoop.run takes it as its end

    # ---- training

    def _run_stretch(
        self, trainer: pl.Trainer, advance_start: Proceed, stretch: TrainingRange
    ) -> None:
        loop = trainer.fit_loop
        self._enter(trainer, advance_start, stretch.start)
        self._is_training = True
        try:
            is_over = False
            while not is_over:
                loop.advance()
                loop.on_advance_end()
                loop.on_iteration_done()
                is_over = self._epoch_boundary(trainer, advance_start)
        except _RangeEnded:
            pass
        finally:
            self._is_training, self._entry = False, None

    def _enter(self, trainer: pl.Trainer, advance_start: Proceed, start: Position) -> None:
        """Up to the entry of `FitLoop.advance`.

        Of a State inside an epoch the rest is done at its first batch.
        """
        entry = FastForward(trainer, self.session.state(start))
        self._stepped = start.step
        if self._begun != entry.epoch or cast(Any, trainer).reload_dataloaders_every_n_epochs:
            self.harvest.begin()
            entry.before_epoch()
            advance_start()
        entry.at_epoch()
        self._entry, self._begun = entry if entry.batch else None, None
        del entry
        if self._entry is None:
            self.session.restored()

    def _epoch_boundary(self, trainer: pl.Trainer, advance_start: Proceed) -> bool:
        """An epoch is over, its hooks and loggers included. The recording stood at the same moment:

        the next epoch's start hooks had run, unless the run had ended.
        """
        position = Position(trainer.current_epoch, trainer.global_step)
        run = self.session.run
        is_last = run.status == "finished" and run.position is not None and position >= run.position
        if not is_last:
            advance_start()
            self._begun = position.epoch
        self._stepped = position.step
        return self._is_end(trainer, position, epoch_ended=True) or is_last

    def _step_boundary(self, trainer: pl.Trainer) -> None:
        """Entry of `_TrainingEpochLoop.advance`, as in FlorCallback."""
        if not self._is_training:
            return
        if self._entry is not None:
            self._entry.at_batch()
            self._entry = None
            self.session.restored()
        if is_boundary(trainer, self._stepped):
            position = Position(trainer.current_epoch, trainer.global_step)
            self._stepped = position.step
            if self._is_end(trainer, position, epoch_ended=False):
                raise _RangeEnded

    def _is_end(self, trainer: pl.Trainer, position: Position, *, epoch_ended: bool) -> bool:
        return self.session.boundary(
            position,
            epoch_ended=epoch_ended,
            weights=lambda: state.weights(trainer),
            context=self.harvest.context,
        )

    # ---- without training

    def _state_pass(self, trainer: pl.Trainer, one: ReplayPass) -> None:
        with self.session.passing(one):
            for position in one.positions:
                sections = self.session.state(position, only=(state.MODEL,))
                self._stand_at(position)
                state.restore_weights(trainer, sections)
                del sections  # so that the next one is read into the same memory
                self.session.restored()
                values = self.session.values_of(self.harvest.context())
                self.session.timeline.add(values, "validation")
                self.session.compare_weights(position, trainer.lightning_module.state_dict())
                self.session.position_done(position)

    def _validate_pass(self, trainer: pl.Trainer, one: ReplayPass) -> None:
        loop = trainer.fit_loop
        with self.session.passing(one):
            for position in one.positions:
                sections = self.session.state(position)
                entry = FastForward(trainer, sections)
                # At an epoch's end its validation came before the counters went on.
                epoch = position.epoch if entry.batch else position.epoch - 1
                state.restore_progress(trainer, sections, epoch, has_begun=True)
                state.restore(trainer, sections)
                if not entry.batch:
                    loop.epoch_loop.batch_progress.is_last_batch = True
                loop.epoch_loop.val_loop.batch_progress.total.reset()
                self._stand_at(position)
                self._as_before_validation(trainer, sections)
                del sections, entry
                self.session.restored()
                trainer.validating = True
                loop.epoch_loop.val_loop.run()
                trainer.training = True
                self.session.position_done(position)

    def _as_before_validation(self, trainer: pl.Trainer, sections: Mapping[str, Any]) -> None:
        held = sections[state.RNG]
        moment = held.get("validation_moment")
        if moment is not None:
            state.restore_moment(trainer, moment)
        else:  # recorded by an earlier version, or never validated
            rng.restore(held.get("validation", held["now"]))

    def _stand_at(self, position: Position) -> None:
        timeline = self.session.timeline
        if self.session.places.is_end(position):
            timeline.jump(Position(position.epoch - 1, position.step))
            timeline.complete_epoch(position.epoch)
        else:
            timeline.jump(position)

    # ---- values, as in FlorCallback

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self.harvest.on_before_optimizer_step(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
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
