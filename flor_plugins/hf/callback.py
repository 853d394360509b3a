"""`FlorCallback` for Hugging Face Trainer: records; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Unpack

from transformers import Trainer, TrainerCallback, TrainerState

from flor_plugins.errors import FlorError
from flor_plugins.hf import loaders, state
from flor_plugins.hf.collector import MetricCollector
from flor_plugins.hf.fast_forward import RESTORED, resume_at
from flor_plugins.hf.obstacles import obstacles_of
from flor_plugins.hf.params import params_of
from flor_plugins.hf.rng_history import RngHistory
from flor_plugins.recorder.framework_callback import RunCallback
from flor_plugins.recorder.options import OptionKeywords, lists_options, options_of
from flor_plugins.recorder.recorder import Recorder
from flor_plugins.records import Position
from flor_plugins.state import processes
from flor_plugins.state.method_wrapper import Method
from flor_plugins.state.module import parameter_names

Logged = dict[str, Any] | None


class FlorCallback(RunCallback[MetricCollector], TrainerCallback):
    """Records a training: values, code, and checkpoints from which it can be replayed bit for bit.

    metrics: `@flor.metric` hooks to compute live. every_n_epochs: checkpoints at every n-th epoch
    boundary; before the first batch and after the last always. every_n_steps: also inside an
    epoch, at every n-th optimizer update. every_minutes: also inside an epoch, when so many
    minutes have passed since the last checkpoint; None for never (and never where several
    processes train: their clocks differ). overhead: the share of the training's time that
    checkpoints may cost; None for no limit.
    disk: what the run's checkpoints may take ("50GB", or bytes); None for half of what is free
    when the run begins. resume: "auto" or a run to go on with. store: a folder; default
    FLOR_DIR, else `.flor/` at the top of the git repository. One `train()` is one run. A
    failure of ours is warned about once and noted in the run; it never ends the training.
    """

    @lists_options
    def __init__(self, name: str | None = None, **options: Unpack[OptionKeywords]) -> None:
        super().__init__(options_of(name, **options))
        self._history = RngHistory()
        self._has_trained = False
        self._is_evaluating = False

    # ---- begin and end

    def on_train_begin(
        self, args: object, state: TrainerState, control: object, **kwargs: object
    ) -> None:
        """Model, optimizer and loader are prepared; no epoch has begun."""
        # Of processes that torch doesn't know of (XLA) the first one records.
        if not (processes.is_one_of_several() or state.is_world_process_zero):
            return
        trainer = calling_trainer()
        model: Any = trainer.model
        # not those of an earlier training
        self._history, self._has_trained = RngHistory(), False
        self._begin(
            "hf",
            partial(params_of, trainer),
            partial(parameter_names, model),
            partial(self._attach, trainer),
        )

    def _attach(self, trainer: Trainer, recorder: Recorder) -> None:
        self._collector = MetricCollector(trainer, recorder, self._guard)
        self._collector.attach()
        self._guard(recorder.note_obstacles, self._guard(obstacles_of, trainer) or ())
        self._guard(recorder.watch, [trainer.optimizer])
        done = 0 if recorder.resumption is None else recorder.resumption.position.epoch
        recorder.policy.expects(trainer.state.num_train_epochs - done)
        wrapped = self._wrapped
        wrapped.around(trainer, "_run_epoch", self._run_epoch)
        wrapped.around(trainer, "get_batch_samples", self._get_batch_samples)
        wrapped.around(trainer, "evaluate", self._validation)
        wrapped.before(trainer, "_finalize_training", self._guard, self._last_boundary, trainer)
        if recorder.resumption is not None:
            sections = recorder.resumption.sections
            # When it is restored it is let go: it is as large as the model and its optimizer.
            resume_at(trainer, sections, wrapped, partial(self._entering, recorder), sections.clear)
        wrapped.around(trainer, "_finalize_training", self._outside_epochs)
        wrapped.around(trainer.callback_handler, "on_epoch_begin", self._outside_epochs)

    def _entering(self, recorder: Recorder) -> None:
        """Begin the recording where the interrupted run stood.

        What came before is no part of it.
        """
        assert recorder.resumption is not None
        self._history.resume(recorder.resumption.sections, recorder.resumption.position.step)
        recorder.go_on()

    def _outside_epochs(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """What ends the training there: no event tells of it."""
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            self._end("failed", error)
            raise

    def on_train_end(self, *_: object, **__: object) -> None:
        """After the last log; a best model may be loaded by now: the last State is taken."""
        self._end("finished", None)

    # ---- boundaries

    def _run_epoch(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """Entry: the epoch before is over. Return: this one is, its log and evaluation included."""
        assert self._recorder is not None and self._collector is not None
        recorder, trainer = self._recorder, self._collector.trainer
        self._guard(self._epoch_boundary, trainer, kwargs)
        recorder.start("epoch")
        result = self._outside_epochs(original, *args, **kwargs)
        recorder.stop("epoch")
        self._guard(self._epoch_over, trainer)
        return result

    def _epoch_boundary(self, trainer: Trainer, kwargs: Mapping[str, Any]) -> None:
        recorder, collector, history = self._recorder, self._collector, self._history
        assert recorder is not None and collector is not None
        epoch, position = kwargs["epoch"], Position(kwargs["epoch"], trainer.state.global_step)
        is_first, resumed_from = epoch == kwargs["epochs_trained"], kwargs["resume_from_checkpoint"]
        skipped = kwargs["steps_trained_in_current_epoch"] if is_first else 0
        if skipped and resumed_from == RESTORED:
            return  # in the middle of an epoch; whoever restores it sets history and timeline
        recorder.timeline.jump(position)
        history.step = position.step
        history.begin_epoch(trainer, epoch)
        if skipped and resumed_from is not None:
            # The trainer leaves samples out without drawing them: nobody can come to this
            # moment again.
            history.begin(None)
            recorder.warn(
                f"epoch {epoch + 1} was resumed in its middle by the Trainer: it can't be replayed"
            )
            return
        collector.begin_epoch()
        if recorder.policy.wants(position):
            recorder.checkpoint(position, partial(self._state, trainer))

    def _epoch_over(self, trainer: Trainer) -> None:
        recorder, collector = self._recorder, self._collector
        assert recorder is not None and collector is not None
        self._history.end_epoch(trainer)
        recorder.timeline.add(recorder.hooks.epoch(collector.context()), "validation", "epoch")
        self._has_trained = True

    def _last_boundary(self, trainer: Trainer) -> None:
        """Entry of `_finalize_training`: no epoch follows, and a best model is not loaded yet."""
        recorder = self._recorder
        assert recorder is not None
        position = Position(self._history.epoch, trainer.state.global_step)
        if self._has_trained and recorder.policy.wants(position, last=True):
            recorder.checkpoint(position, partial(self._state, trainer), last=True)

    def _get_batch_samples(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """Entry: the update before is logged and evaluated.

        Return: the batches of the next one are drawn.
        """
        assert self._recorder is not None and self._collector is not None
        if self._recorder.resumption is not None:
            # restored by now, and as large as the model and its optimizer
            self._recorder.resumption.sections.clear()
        self._guard(self._step_boundary, self._collector.trainer)
        drawn = original(*args, **kwargs)
        self._history.batch += len(drawn[0])
        return drawn

    def _step_boundary(self, trainer: Trainer) -> None:
        recorder, history = self._recorder, self._history
        assert recorder is not None
        if loaders.is_exhausted(trainer) and history.batch:
            return  # this moment is the epoch's end
        position = Position(history.epoch, trainer.state.global_step)
        is_known = history.has_moved(position.step) and history.is_complete
        if is_known and recorder.policy.wants_inside(position):
            recorder.checkpoint(position, partial(self._state, trainer))
        history.enter_step(is_near=recorder.policy.is_near(position))

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        assert self._recorder is not None
        if self._recorder.run.is_weights_only:
            return state.only_weights(trainer)
        return state.capture(trainer, self._history)

    def _validation(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        if self._is_evaluating:  # of several data sets `evaluate` calls itself for each
            return original(*args, **kwargs)
        assert self._recorder is not None and self._collector is not None
        self._is_evaluating = True
        self._guard(self._history.begin_validation, self._collector.trainer)
        self._recorder.start("validation")
        try:
            return original(*args, **kwargs)
        finally:
            self._recorder.stop("validation")
            self._is_evaluating = False

    # ---- values

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """Gradients are complete."""
        self._feed(MetricCollector.on_pre_optimizer_step)

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """The update is made."""
        self._feed(MetricCollector.on_optimizer_step)

    def on_step_end(self, *_: object, **__: object) -> None:
        """The step is counted."""
        self._feed(MetricCollector.on_step_end)

    def on_epoch_end(self, *_: object, **__: object) -> None:
        """The epoch is over, but for its log and evaluation."""
        self._feed(MetricCollector.on_epoch_end, self._history.epoch + 1)

    def on_log(self, *_: object, logs: Logged = None, **__: object) -> None:
        """Values were logged."""
        if self._is_recording():
            self._feed(MetricCollector.on_log, logs or {})

    def on_evaluate(self, *_: object, metrics: Logged = None, **__: object) -> None:
        """An evaluation is over, in the training or after it."""
        self._feed_again(MetricCollector.on_evaluate, metrics or {})

    def on_predict(self, *_: object, metrics: Logged = None, **__: object) -> None:
        """A prediction is over."""
        self._feed_again(MetricCollector.on_predict, metrics or {})

    def _feed_again(self, act: Callable[..., object], metrics: Mapping[str, Any]) -> None:
        """Evaluate and predict may come after the training: same run, at its last position."""
        recorder = self._recorder
        if recorder is None or self._is_recording():
            self._feed(act, metrics)
            return
        self._guard(recorder.reopen)
        self._feed(act, metrics)
        self._guard(recorder.close_again)


def calling_trainer() -> Trainer:
    """The Trainer whose callback event is being handled.

    Events do not pass the trainer, but they are called synchronously: Trainer method ->
    CallbackHandler.on_x -> call_event -> here (transformers/trainer_callback.py).
    """
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    raise FlorError("FlorCallback was called, but not by a transformers.Trainer")
