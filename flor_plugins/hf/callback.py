"""`FlorCallback` for Hugging Face Trainer: records; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from transformers import Trainer, TrainerCallback

from flor_plugins.errors import FlorError
from flor_plugins.hf import fast_forward, loaders, state
from flor_plugins.hf.collector import MetricCollector
from flor_plugins.hf.obstacles import obstacles_of
from flor_plugins.hf.params import params_of
from flor_plugins.hf.rng_history import RngHistory
from flor_plugins.recorder import recorder as recording
from flor_plugins.recorder.distributed import begin_together
from flor_plugins.recorder.options import OptionKeywords, lists_options, options_of
from flor_plugins.records import Launch, Position
from flor_plugins.state import processes
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.state.module import parameter_names


class FlorCallback(TrainerCallback):
    """Records a training: every logged value, the code, and checkpoints from which it can be
    replayed.

    metrics: `@flor.metric` hooks to compute live. every_n_epochs: checkpoints at every n-th epoch
    boundary; before the first batch and after the last always. every_n_steps: also inside an
    epoch, at every n-th optimizer update. every_minutes: also inside an epoch, when so many
    minutes have passed since the last checkpoint; None for never (and never where several
    processes train: their clocks differ). overhead: the share of the training's time that
    checkpoints may cost; None for no limit.
    disk: what the run's checkpoints may take ("50GB", or bytes); None for half of what is free
    when the run begins. resume: "auto" or a run to go on with. store: a folder; default
    FLOR_DIR, else `.flor/` at the top of the git repository. One `train()` is one run. A
    failure of ours is warned about once and noted in the run; it never ends the training."""

    @lists_options
    def __init__(self, name: str | None = None, **options: Unpack[OptionKeywords]) -> None:
        self.options = options_of(name, **options)
        self.launch: Launch | None = None
        self._recorder: recording.Recorder | None = None
        self._harvest: MetricCollector | None = None
        self._wrapped = MethodWrapper()
        self._trail = RngHistory()
        self._step = 0  # at the last boundary
        self._has_trained = False
        self._is_evaluating = False

    # ---- begin and end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Model, optimizer and loader are prepared; no epoch has begun."""
        # Of processes that torch doesn't know of (XLA) the first one records.
        if not (processes.is_one_of_several() or state.is_world_process_zero):
            return
        trainer = calling_trainer()
        model: Any = trainer.model
        self._harvest, self._trail, self._step = (
            None,
            RngHistory(),
            0,
        )  # not those of an earlier training
        self._has_trained = False
        self._recorder = begin_together(
            "hf",
            self.options,
            lambda: params_of(trainer),
            self.launch,
            lambda: parameter_names(model),
        )
        if self._recorder is None:
            return
        recorder = self._recorder
        try:
            self._attach(trainer, recorder)
        except Exception as error:  # a version of transformers whose Trainer is built otherwise
            recorder.warn(f"this Trainer can't be recorded: {type(error).__name__}: {error}")
            self._end("failed", error)
            self._harvest = self._recorder = None

    def _attach(self, trainer: Trainer, recorder: recording.Recorder) -> None:
        self._harvest = MetricCollector(
            trainer, recorder.timeline, recorder.hooks, recorder.run.name, self._ours
        )
        self._harvest.attach()
        self._ours(lambda: recorder.note_obstacles(obstacles_of(trainer)))
        self._ours(lambda: recorder.watch([trainer.optimizer]))
        done = 0 if recorder.resumption is None else recorder.resumption.position.epoch
        recorder.policy.expects(trainer.state.num_train_epochs - done)
        self._wrapped.around(trainer, "_run_epoch", self._run_epoch)
        self._wrapped.around(trainer, "get_batch_samples", self._get_batch_samples)
        self._wrapped.around(trainer, "evaluate", self._evaluate)
        self._wrapped.before(
            trainer, "_finalize_training", lambda: self._ours(lambda: self._last(trainer))
        )
        if recorder.resumption is not None:
            state = recorder.resumption.sections
            # When it is restored it is let go: it is as large as the model and its optimizer.
            fast_forward.resume_at(
                trainer, state, self._wrapped, lambda: self._enter(recorder), state.clear
            )
        self._wrapped.around(trainer, "_finalize_training", self._outside_epochs)
        self._wrapped.around(trainer.callback_handler, "on_epoch_begin", self._outside_epochs)

    def _enter(self, recorder: recording.Recorder) -> None:
        """The trainer will stand where the interrupted run stood: what came before is no
        part of it.
        """
        assert recorder.resumption is not None
        self._trail, self._step = (
            RngHistory.of(recorder.resumption.sections),
            recorder.resumption.position.step,
        )
        recorder.go_on()

    def _outside_epochs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ends the training there: no event tells of it."""
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            self._end("failed", error)
            raise

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last log; a best model may be loaded by now: the last State was taken
        before.
        """
        if self._recorder is not None:
            self._end("finished", None)

    def _end(self, status: Any, error: BaseException | None) -> None:
        recorder = self._recorder
        if recorder is None or recorder.run.status != "running":
            return
        self._wrapped.undo()
        if self._harvest is not None:
            self._harvest.detach()
        self._ours(lambda: recorder.finish(status, error))

    # ---- boundaries

    def _run_epoch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Entry: the epoch before is over. Return: this one is, its log and evaluation included."""
        assert self._recorder is not None and self._harvest is not None
        recorder, trainer = self._recorder, self._harvest.trainer
        self._ours(lambda: self._epoch_begins(trainer, kwargs))
        recorder.start("epoch")
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            self._end("failed", error)
            raise
        recorder.stop("epoch")
        self._ours(lambda: self._epoch_over(trainer))
        return result

    def _epoch_begins(self, trainer: Trainer, kwargs: Mapping[str, Any]) -> None:
        recorder, harvest = self._recorder, self._harvest
        assert recorder is not None and harvest is not None
        epoch, position = kwargs["epoch"], Position(kwargs["epoch"], trainer.state.global_step)
        skipped = (
            kwargs["steps_trained_in_current_epoch"] if epoch == kwargs["epochs_trained"] else 0
        )
        if skipped and kwargs["resume_from_checkpoint"] == fast_forward.RESTORED:
            return  # in the middle of an epoch; whoever restores it sets trail and timeline
        recorder.timeline.jump(position)
        self._step = position.step
        self._trail.begin_epoch(trainer, epoch)
        if skipped and kwargs["resume_from_checkpoint"] is not None:
            # The trainer leaves samples out without drawing them: nobody can come to this
            # moment again.
            self._trail.beginning = None
            recorder.warn(
                f"epoch {epoch + 1} was resumed in its middle by the Trainer: it can't be replayed"
            )
            return
        harvest.begin_epoch()
        if recorder.policy.wants(position):
            recorder.checkpoint(position, lambda: self._state(trainer))

    def _epoch_over(self, trainer: Trainer) -> None:
        recorder, harvest = self._recorder, self._harvest
        assert recorder is not None and harvest is not None
        self._trail.end_epoch(trainer)
        recorder.timeline.add(recorder.hooks.epoch(harvest.context()), "validation", "epoch")
        self._has_trained = True

    def _last(self, trainer: Trainer) -> None:
        """Entry of `_finalize_training`: no epoch follows, and a best model is not loaded yet."""
        recorder = self._recorder
        assert recorder is not None
        position = Position(self._trail.epoch, trainer.state.global_step)
        if self._has_trained and recorder.policy.wants(position, last=True):
            recorder.checkpoint(position, lambda: self._state(trainer), last=True)

    def _get_batch_samples(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Entry: the update before is logged and evaluated.

        Return: the batches of the next one are drawn.
        """
        assert self._recorder is not None and self._harvest is not None
        trainer = self._harvest.trainer
        if self._recorder.resumption is not None:
            # restored by now, and as large as the model and its optimizer
            self._recorder.resumption.sections.clear()
        self._ours(lambda: self._at_step(trainer))
        drawn = original(*args, **kwargs)
        self._trail.batch += len(drawn[0])
        return drawn

    def _at_step(self, trainer: Trainer) -> None:
        recorder = self._recorder
        assert recorder is not None
        if loaders.is_exhausted(trainer) and self._trail.batch:
            return  # this moment is the epoch's end
        position = Position(self._trail.epoch, trainer.state.global_step)
        is_new, self._step = position.step != self._step, position.step
        if is_new and self._trail.is_complete and recorder.policy.wants_inside(position):
            recorder.checkpoint(position, lambda: self._state(trainer))
        self._trail.step(is_near=recorder.policy.is_near(position))

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        assert self._recorder is not None
        if self._recorder.run.is_weights_only:
            return state.only_weights(trainer)
        return state.capture(trainer, self._trail)

    def _evaluate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_evaluating:  # of several data sets `evaluate` calls itself for each
            return original(*args, **kwargs)
        assert self._recorder is not None and self._harvest is not None
        trainer, self._is_evaluating = self._harvest.trainer, True
        self._ours(lambda: self._trail.evaluate(trainer))
        self._recorder.start("validation")
        try:
            return original(*args, **kwargs)
        finally:
            self._recorder.stop("validation")
            self._is_evaluating = False

    # ---- values

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_pre_optimizer_step())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_optimizer_step())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_step_end())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_epoch_end(self._trail.epoch + 1))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._is_recording():
            self._feed(lambda harvest: harvest.on_log(dict(logs or {})))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        self._afterwards(lambda harvest: harvest.on_evaluate(dict(metrics or {})))

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        self._afterwards(lambda harvest: harvest.on_predict(dict(metrics or {})))

    def _is_recording(self) -> bool:
        return self._recorder is not None and self._recorder.run.status == "running"

    def _afterwards(self, act: Callable[[MetricCollector], Any]) -> None:
        """evaluate and predict may come after the training: same run, at its last position."""
        if self._is_recording() or self._recorder is None:
            self._feed(act)
            return
        recorder = self._recorder
        self._ours(recorder.reopen)
        self._feed(act)
        self._ours(recorder.close_again)

    def _feed(self, act: Callable[[MetricCollector], Any]) -> None:
        if self._harvest is not None:
            harvest = self._harvest
            self._ours(lambda: act(harvest))

    def _ours(self, act: Callable[[], Any]) -> Any:
        assert self._recorder is not None
        return recording.harmless(self._recorder, act)


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
