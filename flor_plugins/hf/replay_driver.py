"""Replaying with an HF Trainer that the user's own script has built.

`train` runs as usual up to its first epoch; there, at the entry of `Trainer._run_epoch`, states are
restored and driven, and the call is left by an exception that only `drive` and `pass_over` catch:
`_finalize_training`, which loads the best model and deletes checkpoints, is never reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from flor_plugins.hf import fast_forward, loaders, state
from flor_plugins.hf.collector import MetricCollector
from flor_plugins.hf.intercept import Proceed, silence
from flor_plugins.hooks.hook_files import check_callback
from flor_plugins.records import Position, ReplayPass, TrainingRange
from flor_plugins.replayer.worker_session.session import WorkerSession, guarded
from flor_plugins.state import rng
from flor_plugins.state.method_wrapper import MethodWrapper


class _TrainingLeft(BaseException):
    """Leaves `train`; a BaseException, so that no `except Exception` of a script keeps it."""


class _RangeEnded(BaseException):
    """Leaves an epoch where a stretch ends inside it: nothing of the epoch's end is run."""


def drive(trainer: Trainer, go: Proceed, session: WorkerSession) -> None:
    """Do all passes of the session's task. The trainer's savers and reporters are off."""
    classes = [made for loaded in session.loaded for made in loaded.callbacks]
    for made in classes:
        check_callback(made, TrainerCallback)
    silence(trainer)
    for loaded in session.loaded:
        if loaded.compute_metrics is not None:
            trainer.compute_metrics = loaded.compute_metrics
    driver = _ReplayDriver(trainer, session)
    trainer.add_callback(driver)
    for made in classes:
        trainer.add_callback(made)
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

    def stop(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
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
    """Drives the passes of a session from inside `train`, at its first `_run_epoch`."""

    def __init__(self, trainer: Trainer, session: WorkerSession) -> None:
        self.trainer, self.session = trainer, session
        self.harvest = MetricCollector(
            trainer, session.timeline, session.hooks, session.run.name, guarded
        )
        self._wrapped = MethodWrapper()
        self._epoch = 0  # completed ones
        self._step = 0  # at the last boundary
        self._batch = 0  # batches of the epoch that are drawn
        self.harvest.hooks.metrics = [m for loaded in session.loaded for m in loaded.metrics]
        self.harvest.attach()
        self._wrapped.around(trainer, "_run_epoch", self._drive)
        self._wrapped.around(trainer, "get_batch_samples", self._get_batch_samples)

    def detach(self) -> None:
        """Take every wrapper off again."""
        self._wrapped.undo()
        self.harvest.detach()
        loaders.end_workers(self.trainer)

    def _drive(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """All passes, at the entry of the first epoch; never returns."""
        # what an evaluation before the training brought is no value of a pass
        self.session.timeline.close()
        for one in self.session.passes("state"):
            self._state_pass(one)
        for one in self.session.passes("validate"):
            self._validate_pass(one)
        for one in self.session.passes("train"):
            with self.session.passing(one):
                for stretch in self.session.stretches(one):
                    self._run_again(stretch, original, kwargs)
        raise _TrainingLeft

    # ---- training

    def _run_again(
        self, stretch: TrainingRange, original: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        """From the State at the stretch's start to its end, through as many epochs as lie
        between.
        """
        trainer = self.trainer
        sections: dict[str, Any] | None = self.session.state(stretch.start)
        state.restore(trainer, sections)
        self._epoch, self._step = stretch.start.epoch, stretch.start.step
        while True:
            # User's callbacks hear of the epoch as they did; what they did to the State is
            # overwritten.
            trainer.control = trainer.callback_handler.on_epoch_begin(
                trainer.args, trainer.state, trainer.control
            )
            try:
                self._run_epoch(original, kwargs, sections)
            except _RangeEnded:
                return
            self._epoch, sections = self._epoch + 1, None
            if self._is_reached(epoch_ended=True) or trainer.control.should_training_stop:
                return

    def _run_epoch(
        self,
        original: Callable[..., Any],
        kwargs: Mapping[str, Any],
        sections: dict[str, Any] | None,
    ) -> None:
        self._batch = 0 if sections is None else sections[state.TRAINER].get("batch", 0)
        if not self._batch:
            self.harvest.begin_epoch()
        if sections is None:
            original(**fast_forward.from_the_beginning(kwargs, self._epoch))
        else:
            fast_forward.run_epoch(
                self.trainer, original, kwargs, sections, lambda: self._let_go(sections)
            )

    def _let_go(self, sections: dict[str, Any]) -> None:
        sections.clear()  # calls that last as long as the epoch hold it
        self.session.restored()

    def _get_batch_samples(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Where the loader is exhausted this moment is the epoch's end; it comes when
        # `_run_epoch` returns.
        is_end = loaders.is_exhausted(self.trainer) and self._batch > 0
        if (
            self.trainer.state.global_step != self._step
            and not is_end
            and self._is_reached(epoch_ended=False)
        ):
            raise _RangeEnded
        drawn = original(*args, **kwargs)
        self._batch += len(drawn[0])
        return drawn

    def _is_reached(self, *, epoch_ended: bool) -> bool:
        """All values of the present position are there."""
        self._step = self.trainer.state.global_step
        return self.session.boundary(
            Position(self._epoch, self._step),
            epoch_ended=epoch_ended,
            weights=self._weights,
            context=self.harvest.context,
        )

    def _weights(self) -> Mapping[str, Any]:
        model: Any = self.trainer.model  # declared optional; inside `train` it is there
        return model.state_dict()

    # ---- without training

    def _state_pass(self, one: ReplayPass) -> None:
        with self.session.passing(one):
            for position in one.positions:
                sections = self.session.state(position, only=(state.MODEL,))
                self._stand_at(position)
                state.restore_weights(self.trainer, sections)
                del sections  # so that the next one is read into the same memory
                self.session.restored()
                values = self.session.values_of(self.harvest.context())
                self.session.timeline.add(values, "validation")
                self.session.compare_weights(position, self._weights())
                self.session.position_done(position)

    def _validate_pass(self, one: ReplayPass) -> None:
        with self.session.passing(one):
            for position in one.positions:
                sections = self.session.state(position)
                loaders.restore_evaluated(
                    self.trainer, sections[state.TRAINER].get("evaluated", [])
                )
                state.restore(self.trainer, sections)
                self._stand_at(position)
                held = sections[state.RNG]
                rng.restore_generators(
                    loaders.generators(self.trainer), held.get("validation_generators", {})
                )
                rng.restore(held.get("validation", held["now"]))
                del sections, held
                self.session.restored()
                self.trainer.evaluate()
                self.session.position_done(position)

    def _stand_at(self, position: Position) -> None:
        self.session.timeline.jump(position)
        if self.session.places.is_end(position):
            self.session.timeline.complete_epoch(position.epoch)

    # ---- values, as in FlorCallback

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.harvest.on_pre_optimizer_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.harvest.on_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.harvest.on_step_end()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.harvest.on_epoch_end(self._epoch + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.harvest.on_log(dict(logs or {}))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        self.harvest.on_evaluate(dict(metrics or {}))
