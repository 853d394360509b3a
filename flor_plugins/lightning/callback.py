"""`FlorCallback` for Lightning: records; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flor_plugins.lightning import state
from flor_plugins.lightning.checkpoint_files import keep_files
from flor_plugins.lightning.collector import MetricCollector
from flor_plugins.lightning.fast_forward import is_boundary, resume_at
from flor_plugins.lightning.obstacles import obstacles_of
from flor_plugins.lightning.params import params_of
from flor_plugins.lightning.rng_history import RngHistory
from flor_plugins.recorder.framework_callback import RunCallback
from flor_plugins.recorder.options import OptionKeywords, lists_options, options_of
from flor_plugins.recorder.recorder import Recorder
from flor_plugins.records import Position
from flor_plugins.state import processes
from flor_plugins.state.method_wrapper import Method
from flor_plugins.state.module import parameter_names


class FlorCallback(RunCallback[MetricCollector], Callback):
    """Records a fit: values, code, and checkpoints from which it can be trained again bit for bit.

    metrics: `@flor.metric` hooks to compute live. every_n_epochs: checkpoints at every n-th
    epoch boundary; before the first batch and after the last always. every_n_steps: also after
    every n-th optimizer update. every_minutes: also inside an epoch, when so many minutes have
    passed since the last checkpoint; None for never (and never where several processes train:
    their clocks differ).
    overhead: the share of the training's time that checkpoints may cost; None for no limit.
    disk: what the run's checkpoints may take ("50GB", or bytes); None for half of what is free
    when the run begins.
    resume: "auto" or a run to go on with. store: a folder; default FLOR_DIR, else `.flor/` at
    the top of the git repository. One fit is one run. A failure of ours is warned about once
    and noted in the run; it never ends the training. Raises HookError or ValueError for
    arguments that make no sense.
    """

    @lists_options
    def __init__(self, name: str | None = None, **options: Unpack[OptionKeywords]) -> None:
        super().__init__(options_of(name, **options))
        self._history = RngHistory()
        self._is_entering = False  # a resumed fit has not come to its State, or has just come to it
        self._handles: list[RemovableHandle] = []

    # ---- begin and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before anything is moved, restored or drawn: the run begins here."""
        # Of processes that torch doesn't know of (XLA) the first one records.
        if stage != "fit" or not (processes.is_one_of_several() or trainer.is_global_zero):
            return
        self._history = RngHistory()  # not that of an earlier fit
        self._begin(
            "lightning",
            partial(params_of, trainer, pl_module),
            partial(parameter_names, pl_module),
            partial(self._attach, trainer),
        )

    def _attach(self, trainer: pl.Trainer, recorder: Recorder) -> None:
        self._collector = MetricCollector(trainer, recorder, self._guard)
        self._collector.attach()
        loop, wrapped, guard, history = trainer.fit_loop, self._wrapped, self._guard, self._history
        wrapped.before(loop, "setup_data", guard, history.set_up, trainer)
        wrapped.before(loop, "_load_combined_loader_states", guard, history.make_iterator, trainer)
        wrapped.before(loop, "advance", guard, self._epoch_boundary, trainer)
        wrapped.before(loop.epoch_loop, "advance", guard, self._step_boundary, trainer)
        wrapped.before(loop, "on_run_end", guard, self._epoch_boundary, trainer, True)
        wrapped.around(loop.epoch_loop.val_loop, "run", self._validation)
        if recorder.resumption is not None:
            self._is_entering, sections = True, recorder.resumption.sections
            keep_files(trainer, sections, wrapped)
            resume_at(trainer, sections, wrapped, partial(self._restored, recorder))

    def _restored(self, recorder: Recorder) -> None:
        """Begin the recording where the interrupted run stood.

        What came before in this process is no part of it.
        """
        assert recorder.resumption is not None
        sections = recorder.resumption.sections
        self._history.resume(sections, recorder.resumption.position.step)
        recorder.go_on()
        sections.clear()  # as large as the model and its optimizer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizers exist from here on."""
        recorder = self._recorder
        if self._collector is None or recorder is None:
            return
        self._guard(recorder.note_obstacles, self._guard(obstacles_of, trainer) or ())
        self._guard(recorder.watch, trainer.optimizers)
        to_come = (trainer.max_epochs or -1) - trainer.current_epoch
        recorder.policy.expects(to_come if to_come > 0 else None)
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After all other hooks of a fit, a test or a validation."""
        if self._recorder is None:
            return
        if stage == "fit":
            self._end("finished", None)
        else:
            self._guard(self._recorder.close_again)
            if self._collector is not None:
                self._collector.detach()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Also called for KeyboardInterrupt and SIGTERM; `teardown` may not follow."""
        self._end("failed", exception)

    def _detach(self) -> None:
        super()._detach()
        while self._handles:
            self._handles.pop().remove()

    # ---- boundaries

    def _epoch_boundary(self, trainer: pl.Trainer, is_last: bool = False) -> None:
        """Entry of FitLoop.advance or on_run_end: an epoch is over, hooks and loggers included."""
        recorder = self._recorder
        assert recorder is not None and self._collector is not None
        if self._is_entering:  # this boundary was recorded before the interruption
            self._is_entering, recorder.timeline.at_epoch_end = False, is_last
            self._history.begin_epoch(trainer)
            recorder.start("epoch")
            return
        recorder.stop("epoch")
        progress: Any = trainer.fit_loop.epoch_progress.current  # declared as its base class
        done = progress.processed
        position = Position(done, trainer.global_step)
        if done and recorder.timeline.position.epoch == done:
            values = recorder.hooks.epoch(self._collector.context())
            recorder.timeline.add(values, "validation", "epoch")
        recorder.timeline.close()
        self._history.begin_epoch(trainer)
        self._history.step = position.step
        if recorder.policy.wants(position, last=is_last):
            recorder.checkpoint(position, partial(self._state, trainer), last=is_last)
        if not is_last:
            recorder.timeline.jump(position)
            recorder.start("epoch")

    def _step_boundary(self, trainer: pl.Trainer) -> None:
        """Entry of `_TrainingEpochLoop.advance`: the last batch is over, its validation too."""
        recorder, history = self._recorder, self._history
        assert recorder is not None
        position = Position(trainer.current_epoch, trainer.global_step)
        if is_boundary(trainer, history.step):
            history.step = position.step
            if recorder.policy.wants_inside(position) and history.is_complete_for(trainer):
                batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
                recorder.checkpoint(position, partial(self._state, trainer, batch))
        # With manual optimization one batch may make any number of updates.
        is_manual = not trainer.lightning_module.automatic_optimization
        history.begin_batch(trainer, is_near=is_manual or recorder.policy.is_near(position))

    def _state(self, trainer: pl.Trainer, batch: int = 0) -> dict[str, Any]:
        assert self._recorder is not None
        if self._recorder.run.is_weights_only:
            return state.only_weights(trainer)
        return state.capture(trainer, self._history, batch=batch)

    def _validation(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        assert self._recorder is not None and self._collector is not None
        self._guard(self._history.begin_validation, self._collector.trainer)
        self._recorder.start("validation")
        try:
            return original(*args, **kwargs)
        finally:
            self._recorder.stop("validation")

    # ---- values

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are complete."""
        self._feed(MetricCollector.on_before_optimizer_step, optimizer)

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self._feed(MetricCollector.after_update, optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """A training step is over."""
        self._feed(MetricCollector.on_train_batch_end, outputs)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation step is over."""
        self._feed(MetricCollector.on_validation_batch_end, outputs, batch)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A test begins, after the fit."""
        self._again(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation begins, in the fit or after it."""
        if trainer.state.fn == "validate":
            self._again(trainer)

    def _again(self, trainer: pl.Trainer) -> None:
        """trainer.test or trainer.validate after the fit: same run, at its last position."""
        recorder = self._recorder
        if recorder is None or self._collector is None or recorder.run.status == "running":
            return
        self._guard(recorder.reopen)
        self._collector.attach()
        recorder.timeline.phase = "test" if trainer.testing else "validation"
