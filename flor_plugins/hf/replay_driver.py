"""Replaying with an HF Trainer that the user's own script has built.

`train` runs as usual up to its first epoch; there, at the entry of `Trainer._run_epoch`, states are
restored and driven, and the call is left by an exception that only `drive` and `pass_over` catch:
`_finalize_training`, which loads the best model and deletes checkpoints, is never reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from flor_plugins.adapter import Proceed
from flor_plugins.hf import fast_forward, loaders, state
from flor_plugins.hf.collector import MetricCollector
from flor_plugins.hf.intercept import silence
from flor_plugins.hooks.hook_files import check_callback
from flor_plugins.records import Position, TrainingRange
from flor_plugins.records.sections import RNG, TRAINER, LoadedSections
from flor_plugins.replayer.worker_session.replay_loop import RangeEnd, ReplayLoop
from flor_plugins.replayer.worker_session.session import WorkerSession, guarded
from flor_plugins.state import rng
from flor_plugins.state.method_wrapper import MethodWrapper


class _TrainingLeft(BaseException):
    """Leaves `train`; a BaseException, so that no `except Exception` of a script keeps it."""


def drive(trainer: Trainer, go: Proceed, session: WorkerSession) -> None:
    """Do all passes of the session's task. The trainer's savers and reporters are off."""
    callbacks = [callback for file in session.files for callback in file.callbacks]
    for callback in callbacks:
        check_callback(callback, TrainerCallback)
    silence(trainer)
    for file in session.files:
        if file.compute_metrics is not None:
            trainer.compute_metrics = file.compute_metrics
    driver = _ReplayDriver(trainer, session)
    for callback in (driver, *callbacks):
        trainer.add_callback(callback)
    try:
        go()
    except _TrainingLeft:
        pass
    finally:
        driver.detach()


def pass_over(
    trainer: Trainer, go: Proceed, sections: Mapping[str, Any], end: Position
) -> TrainOutput:
    """Leave a training as if it had been done: its last State is restored, no step is made."""
    silence(trainer)
    wrapped = MethodWrapper()

    def stop(*_: object, **__: object) -> None:
        state.restore(trainer, sections)
        raise _TrainingLeft

    wrapped.around(trainer, "_run_epoch", stop)
    try:
        go()
    except _TrainingLeft:
        trainer.is_in_train = False
    finally:
        wrapped.undo()
    return TrainOutput(end.step, 0.0, {})


class _ReplayDriver(TrainerCallback):
    """Moves a trainer from inside `train`, at its first `_run_epoch`."""

    def __init__(self, trainer: Trainer, session: WorkerSession) -> None:
        self.trainer, self.session = trainer, session
        self.collector = MetricCollector(trainer, session, guarded)
        self._loop = ReplayLoop(
            session,
            context=self.collector.context,
            weights=self._weights,
            restore_weights=partial(state.restore_weights, trainer),
        )
        self._wrapped = MethodWrapper()
        self._epoch = 0  # completed ones
        self._step = 0  # at the last boundary
        self._batch = 0  # batches of the epoch that are drawn
        self.collector.attach()
        self._wrapped.around(trainer, "_run_epoch", self._drive)
        self._wrapped.around(trainer, "get_batch_samples", self._get_batch_samples)

    def detach(self) -> None:
        """Take every wrapper off again."""
        self._wrapped.undo()
        self.collector.detach()
        loaders.end_workers(self.trainer)

    def _drive(self, original: Callable[..., Any], *_: Any, **kwargs: Any) -> None:
        """All passes, at the entry of the first epoch; never returns."""
        # what an evaluation before the training brought is no value of a pass
        self.session.timeline.close()
        self._loop.evaluate()
        self._loop.validate(self._restore_validation, self.trainer.evaluate)
        with closing(self._loop.ranges()) as ranges:
            for trained in ranges:
                self._run_again(trained, original, kwargs)
        raise _TrainingLeft

    # ---- training

    def _run_again(
        self, trained: TrainingRange, original: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Train from the State at the range's start to its end, through all epochs between."""
        trainer = self.trainer
        sections: LoadedSections | None = self.session.state(trained.start)
        state.restore(trainer, sections)
        self._epoch, self._step = trained.start.epoch, trained.start.step
        while True:
            # User's callbacks hear of the epoch as they did; what they did to the State is
            # overwritten.
            trainer.control = trainer.callback_handler.on_epoch_begin(
                trainer.args, trainer.state, trainer.control
            )
            try:
                self._run_epoch(original, kwargs, sections)
            except RangeEnd:
                return
            self._epoch, sections = self._epoch + 1, None
            if self._is_end(epoch_ended=True) or trainer.control.should_training_stop:
                return

    def _run_epoch(
        self,
        original: Callable[..., Any],
        kwargs: Mapping[str, Any],
        sections: LoadedSections | None,
    ) -> None:
        self._batch = 0 if sections is None else sections[TRAINER].get("batch", 0)
        if not self._batch:
            self.collector.begin_epoch()
        if sections is None:
            original(**fast_forward.from_the_beginning(kwargs, self._epoch))
            return

        def let_go() -> None:
            sections.clear()  # calls that last as long as the epoch hold it
            self.session.read_ahead()

        fast_forward.run_epoch(self.trainer, original, kwargs, sections, let_go)

    def _get_batch_samples(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Where the loader is exhausted this moment is the epoch's end; it comes when
        # `_run_epoch` returns.
        is_epoch_end = loaders.is_exhausted(self.trainer) and self._batch > 0
        has_stepped = self.trainer.state.global_step != self._step
        if has_stepped and not is_epoch_end and self._is_end(epoch_ended=False):
            raise RangeEnd
        drawn = original(*args, **kwargs)
        self._batch += len(drawn[0])
        return drawn

    def _is_end(self, *, epoch_ended: bool) -> bool:
        """All values of the present position are there."""
        self._step = self.trainer.state.global_step
        return self._loop.boundary(Position(self._epoch, self._step), epoch_ended=epoch_ended)

    def _weights(self) -> Mapping[str, Tensor]:
        model = self.trainer.model
        assert model is not None  # inside `train`
        return model.state_dict()

    # ---- without training

    def _restore_validation(self, position: Position, sections: LoadedSections) -> None:
        trainer = self.trainer
        loaders.restore_evaluated(trainer, sections[TRAINER].get("evaluated", []))
        state.restore(trainer, sections)
        self.session.stand_at(position)
        held = sections[RNG]
        generators = held.get("validation_generators", {})
        rng.restore_generators(loaders.generators(trainer), generators)
        rng.restore(held.get("validation", held["now"]))

    # ---- values, as in FlorCallback

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        self.collector.on_pre_optimizer_step()

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        self.collector.on_optimizer_step()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.collector.on_step_end()

    def on_epoch_end(self, *_: object, **__: object) -> None:
        self.collector.on_epoch_end(self._epoch + 1)

    def on_log(self, *_: object, logs: Mapping[str, Any] | None = None, **__: object) -> None:
        self.collector.on_log(dict(logs or {}))

    def on_evaluate(
        self, *_: object, metrics: Mapping[str, Any] | None = None, **__: object
    ) -> None:
        self.collector.on_evaluate(dict(metrics or {}))
