"""`FlorCallback` for Hugging Face Trainer: records; decides nothing (see record/recorder.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from flor_plugins.errors import FlorError
from flor_plugins.hf import capture
from flor_plugins.hf.harvest import Harvest
from flor_plugins.hf.params import params_of
from flor_plugins.hooks.metric import Metric
from flor_plugins.record import recorder as recording
from flor_plugins.record.begin import begin
from flor_plugins.record.options import options_of
from flor_plugins.records import Launch, Position
from flor_plugins.state import rng
from flor_plugins.state.wrapped import Wrapped


class FlorCallback(TrainerCallback):
    """Records a training: every logged value, the code, and a checkpoint at every epoch boundary.

    metrics: `@flor.metric` hooks to compute live. every_n_epochs: checkpoints at every n-th
    boundary; before the first batch and after the last always. store: a folder; default FLOR_DIR,
    else `.flor/` at the top of the git repository. One `train()` is one run. A failure of ours is
    warned about once and noted in the run; it never ends the training.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        project: str | None = None,
        tags: Sequence[str] = (),
        metrics: Sequence[Metric] = (),
        every_n_epochs: int = 1,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        self.options = options_of(name, project, tags, metrics, every_n_epochs, store)
        self.launch: Launch | None = None
        self._recorder: recording.Recorder | None = None
        self._harvest: Harvest | None = None
        self._wrapped = Wrapped()
        self._moments: dict[str, Any] = {}
        self._epoch = 0

    # ---- begin and end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Model, optimizer and loader are prepared; no epoch has begun."""
        if not state.is_world_process_zero:
            return
        trainer = calling_trainer()
        self._epoch = 0
        self._harvest, self._moments = None, {}  # those of an earlier training with this callback
        self._recorder = begin("hf", self.options, lambda: params_of(trainer), self.launch)
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
        self._harvest = Harvest(trainer, recorder.timeline, recorder.hooks, recorder.run.name, self._ours)
        self._harvest.attach()
        self._wrapped.around(trainer, "_run_epoch", self._run_epoch)
        self._wrapped.around(trainer, "evaluate", self._evaluate)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last log; a best model may be loaded by now: the last State was taken before."""
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
        self._epoch = kwargs["epoch"]
        self._ours(lambda: self._save(trainer, self._epoch))
        recorder.start("epoch")
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            self._end("failed", error)
            raise
        recorder.stop("epoch")
        self._ours(lambda: self._epoch_over(trainer))
        return result

    def _epoch_over(self, trainer: Trainer) -> None:
        recorder, harvest = self._recorder, self._harvest
        assert recorder is not None and harvest is not None
        recorder.timeline.add(recorder.hooks.epoch(harvest.context()), "validation", "epoch")
        last = trainer.control.should_training_stop or trainer.state.global_step >= trainer.state.max_steps
        if last:
            # `_finalize_training` follows at once and may load the best model.
            recorder.checkpoint(
                Position(self._epoch + 1, trainer.state.global_step), capture.capture(trainer, self._moments)
            )

    def _save(self, trainer: Trainer, epoch: int) -> None:
        recorder = self._recorder
        assert recorder is not None
        position = Position(epoch, trainer.state.global_step)
        recorder.timeline.jump(position)
        if recorder.wants_checkpoint(position):
            recorder.checkpoint(position, capture.capture(trainer, self._moments))

    def _evaluate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self._recorder is not None
        self._moments["validation"] = rng.capture()
        self._recorder.start("validation")
        try:
            return original(*args, **kwargs)
        finally:
            self._recorder.stop("validation")

    # ---- values

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_pre_optimizer_step())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_optimizer_step())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_step_end())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._feed(lambda harvest: harvest.on_epoch_end(self._epoch + 1))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._is_recording():
            self._feed(lambda harvest: harvest.on_log(dict(logs or {})))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._afterwards(lambda harvest: harvest.on_evaluate(dict(metrics or {})))

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._afterwards(lambda harvest: harvest.on_predict(dict(metrics or {})))

    def _is_recording(self) -> bool:
        return self._recorder is not None and self._recorder.run.status == "running"

    def _afterwards(self, act: Callable[[Harvest], Any]) -> None:
        """evaluate and predict may come after the training: same run, at its last position."""
        if self._is_recording() or self._recorder is None:
            self._feed(act)
            return
        recorder = self._recorder
        self._ours(recorder.reopen)
        self._feed(act)
        self._ours(recorder.close_again)

    def _feed(self, act: Callable[[Harvest], Any]) -> None:
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
