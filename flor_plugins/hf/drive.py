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

from flor_plugins.hf import capture
from flor_plugins.hf.harvest import Harvest
from flor_plugins.hf.intercept import Go, silence
from flor_plugins.hooks.load import check_callback
from flor_plugins.records import Pass, Position
from flor_plugins.replay.session import Session
from flor_plugins.state import rng
from flor_plugins.state.wrapped import Wrapped


class _Done(BaseException):
    """Leaves `train`; a BaseException, so that no `except Exception` of a script keeps it."""


def drive(trainer: Trainer, go: Go, session: Session) -> None:
    """Do all passes of the session's task. The trainer's savers and reporters are off."""
    classes = [made for loaded in session.loaded for made in loaded.callbacks]
    for made in classes:
        check_callback(made, TrainerCallback)
    silence(trainer)
    for loaded in session.loaded:
        if loaded.compute_metrics is not None:
            trainer.compute_metrics = loaded.compute_metrics
    driver = _Driver(trainer, session)
    trainer.add_callback(driver)
    for made in classes:
        trainer.add_callback(made)
    try:
        go()
    except _Done:
        pass
    finally:
        driver.detach()


def pass_over(trainer: Trainer, go: Go, sections: Mapping[str, Any], end: Position) -> TrainOutput:
    """Leave a training as if it had been done: its last State is restored, no step is made."""
    silence(trainer)
    wrapped = Wrapped()

    def enter(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        capture.restore(trainer, sections)
        raise _Done

    wrapped.around(trainer, "_run_epoch", enter)
    try:
        go()
    except _Done:
        trainer.is_in_train = False
    finally:
        wrapped.undo()
    return TrainOutput(end.step, 0.0, {})


class _Driver(TrainerCallback):
    """Drives the passes of a session from inside `train`."""

    def __init__(self, trainer: Trainer, session: Session) -> None:
        self.trainer, self.session = trainer, session
        self.harvest = Harvest(trainer, session.timeline, session.hooks, session.run.name, lambda act: act())
        self._wrapped = Wrapped()
        self._wrapped.around(trainer, "_run_epoch", self._run_epoch)
        self._epochs = [(one, epoch) for one in session.passes("train") for epoch in one.epochs]
        self._context: Any = None
        self._epoch = 0
        self._begun = False
        self.harvest.hooks.metrics = [m for loaded in session.loaded for m in loaded.metrics]
        self.harvest.attach()

    def detach(self) -> None:
        """Take every wrapper off again."""
        self.harvest.detach()
        self._wrapped.undo()

    # ---- between epochs

    def _model(self) -> Any:
        return self.trainer.model  # declared optional; inside `train` it is there

    def _run_epoch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._begun = True
            for one in self.session.passes("state"):
                self._state_pass(one)
            for one in self.session.passes("validate"):
                self._validate_pass(one)
        if not self._epochs:
            raise _Done
        one, epoch = self._epochs[0]
        if kwargs["epoch"] != epoch - 1:
            return
        if self._context is None:
            self._context = self.session.passing(one)
            self._context.__enter__()
        self._epoch = epoch - 1
        if self.session.has_state(epoch - 1):
            position, sections = self.session.state(epoch - 1)
            self.session.timeline.jump(position)
            capture.restore(self.trainer, sections)
        original(*args, **kwargs)
        self._epoch_over(epoch)

    def _epoch_over(self, epoch: int) -> None:
        """A re-run epoch is over, its log and evaluation included: compare where it ended."""
        self._epochs.pop(0)
        self.session.epoch_done(epoch)
        self.session.compare_weights(epoch, self._model().state_dict())
        self.trainer.control.should_training_stop = False
        if not self._epochs:
            self._context.__exit__(None, None, None)
            raise _Done

    # ---- without training

    def _state_pass(self, one: Pass) -> None:
        with self.session.passing(one):
            for epoch in one.epochs:
                position, sections = self.session.state(epoch, only=(capture.MODEL,))
                self.session.timeline.jump(position)
                self.session.timeline.complete_epoch(epoch)
                capture.restore_weights(self.trainer, sections)
                values = self.session.hooks.epoch(self.harvest.context())
                self.session.timeline.add(values, "validation", "epoch")
                self.session.compare_weights(epoch, self._model().state_dict())
                self.session.epoch_done(epoch)

    def _validate_pass(self, one: Pass) -> None:
        with self.session.passing(one):
            for epoch in one.epochs:
                position, sections = self.session.state(epoch)
                capture.restore(self.trainer, sections)
                self.session.timeline.jump(position)
                self.session.timeline.complete_epoch(epoch)
                rng.restore(sections[capture.RNG].get("validation", sections[capture.RNG]["now"]))
                self.trainer.evaluate()
                self.session.epoch_done(epoch)

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

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.harvest.on_evaluate(dict(metrics or {}))
