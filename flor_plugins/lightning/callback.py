"""`FlorCallback` for Lightning: records; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from flor_plugins.lightning import state
from flor_plugins.lightning.checkpoint_files import keep_files
from flor_plugins.lightning.collector import MetricCollector
from flor_plugins.lightning.fast_forward import is_boundary, resume_at
from flor_plugins.lightning.obstacles import obstacles_of
from flor_plugins.lightning.params import params_of
from flor_plugins.lightning.rng_history import RngHistory
from flor_plugins.recorder import recorder as recording
from flor_plugins.recorder.distributed import begin_together
from flor_plugins.recorder.options import OptionKeywords, lists_options, options_of
from flor_plugins.records import Launch, Position
from flor_plugins.state import processes
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.state.module import parameter_names


class FlorCallback(Callback):
    """Records a fit: every logged value, the code, and checkpoints from which it can be trained
    again bit for bit.

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
    arguments that make no sense."""

    @lists_options
    def __init__(self, name: str | None = None, **options: Unpack[OptionKeywords]) -> None:
        self.options = options_of(name, **options)
        self.launch: Launch | None = None
        self._recorder: recording.Recorder | None = None
        self._harvest: MetricCollector | None = None
        self._wrapped = MethodWrapper()
        self._trail = RngHistory()
        self._stepped = 0
        self._is_entering = False  # a resumed fit has not come to its State, or has just come to it
        self._handles: list[Any] = []

    # ---- begin and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before anything is moved, restored or drawn: the run begins here."""
        # Of processes that torch doesn't know of (XLA) the first one records.
        if stage != "fit" or not (processes.is_one_of_several() or trainer.is_global_zero):
            return
        self._harvest, self._trail = (
            None,
            RngHistory(),
        )  # those of an earlier fit with this callback
        self._recorder = begin_together(
            "lightning",
            self.options,
            lambda: params_of(trainer, pl_module),
            self.launch,
            lambda: parameter_names(pl_module),
        )
        if self._recorder is None:
            return
        recorder = self._recorder
        try:
            self._attach(trainer, recorder)
        except Exception as error:  # a version of Lightning whose loops are built otherwise
            recorder.warn(f"this Trainer can't be recorded: {type(error).__name__}: {error}")
            self._end("failed", error)
            self._harvest = self._recorder = None

    def _attach(self, trainer: pl.Trainer, recorder: recording.Recorder) -> None:
        self._harvest = MetricCollector(
            trainer, recorder.timeline, recorder.hooks, recorder.run.name, self._ours
        )
        self._harvest.attach()
        loop, wrapped, ours = trainer.fit_loop, self._wrapped, self._ours
        wrapped.before(loop, "setup_data", lambda: ours(lambda: self._trail.set_up(trainer)))
        wrapped.before(
            loop,
            "_load_combined_loader_states",
            lambda: ours(lambda: self._trail.make_iterator(trainer)),
        )
        wrapped.before(loop, "advance", lambda: ours(lambda: self._boundary(trainer)))
        wrapped.before(
            loop.epoch_loop, "advance", lambda: ours(lambda: self._step_boundary(trainer))
        )
        wrapped.before(loop, "on_run_end", lambda: ours(lambda: self._boundary(trainer, last=True)))
        wrapped.around(
            loop.epoch_loop.val_loop, "run", lambda original: self._validation(trainer, original)
        )
        if recorder.resumption is not None:
            self._is_entering = True
            keep_files(trainer, recorder.resumption.sections, wrapped)
            resume_at(
                trainer, recorder.resumption.sections, wrapped, lambda: self._restored(recorder)
            )

    def _restored(self, recorder: recording.Recorder) -> None:
        """The trainer stands where the interrupted run stood: what came before in this
        process is no part of it.
        """
        assert recorder.resumption is not None
        self._trail, self._stepped = (
            RngHistory.of(recorder.resumption.sections),
            recorder.resumption.position.step,
        )
        recorder.go_on()
        recorder.resumption.sections.clear()  # as large as the model and its optimizer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizers exist from here on."""
        recorder = self._recorder
        if self._harvest is None or recorder is None:
            return
        self._ours(lambda: recorder.note_obstacles(obstacles_of(trainer)))
        self._ours(lambda: recorder.watch(trainer.optimizers))
        to_come = (trainer.max_epochs or -1) - trainer.current_epoch
        recorder.policy.expects(to_come if to_come > 0 else None)
        for optimizer in trainer.optimizers:
            handle = optimizer.register_step_post_hook(
                lambda o, *_: self._ours(lambda: self._harvest and self._harvest.on_after_step(o))
            )
            self._handles.append(handle)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After all other hooks of a fit, a test or a validation."""
        if self._recorder is None:
            return
        if stage == "fit":
            self._end("finished", None)
        else:
            self._ours(self._recorder.close_again)
            if self._harvest is not None:
                self._harvest.detach()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Also called for KeyboardInterrupt and SIGTERM; `teardown` may not follow."""
        if self._recorder is not None and self._recorder.run.status == "running":
            self._end("failed", exception)

    def _end(self, status: Any, error: BaseException | None) -> None:
        recorder = self._recorder
        if recorder is None or recorder.run.status != "running":
            return
        self._wrapped.undo()
        if self._harvest is not None:
            self._harvest.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._ours(lambda: recorder.finish(status, error))

    # ---- boundaries

    def _boundary(self, trainer: pl.Trainer, *, last: bool = False) -> None:
        """Entry of FitLoop.advance or on_run_end: an epoch is over, hooks and loggers included."""
        recorder = self._recorder
        assert recorder is not None and self._harvest is not None
        if self._is_entering:  # this boundary was recorded before the interruption
            self._is_entering, recorder.timeline.at_epoch_end = False, last
            self._trail.begin_epoch(trainer)
            recorder.start("epoch")
            return
        recorder.stop("epoch")
        progress: Any = trainer.fit_loop.epoch_progress.current  # declared as its base class
        done = progress.processed
        position = Position(done, trainer.global_step)
        if done and recorder.timeline.position.epoch == done:
            values = recorder.hooks.epoch(self._harvest.context())
            recorder.timeline.add(values, "validation", "epoch")
        recorder.timeline.close()
        self._trail.begin_epoch(trainer)
        self._stepped = position.step
        if recorder.policy.wants(position, last=last):
            recorder.checkpoint(position, lambda: self._state(trainer), last=last)
        if not last:
            recorder.timeline.jump(position)
            recorder.start("epoch")

    def _step_boundary(self, trainer: pl.Trainer) -> None:
        """Entry of `_TrainingEpochLoop.advance`: what came with the last batch, validation
        too, is over.
        """
        recorder, trail = self._recorder, self._trail
        assert recorder is not None
        position = Position(trainer.current_epoch, trainer.global_step)
        if is_boundary(trainer, self._stepped):
            self._stepped = position.step
            if recorder.policy.wants_inside(position) and trail.is_complete(trainer):
                batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
                recorder.checkpoint(position, lambda: self._state(trainer, batch))
        # With manual optimization one batch may make any number of updates.
        is_near = not trainer.lightning_module.automatic_optimization or recorder.policy.is_near(
            position
        )
        trail.step(trainer, is_near=is_near)

    def _state(self, trainer: pl.Trainer, batch: int = 0) -> dict[str, Any]:
        assert self._recorder is not None
        if self._recorder.run.is_weights_only:
            return state.only_weights(trainer)
        return state.capture(trainer, self._trail.section(batch), batch=batch)

    def _validation(self, trainer: pl.Trainer, original: Callable[[], Any]) -> Any:
        recorder = self._recorder
        assert recorder is not None
        self._ours(lambda: setattr(self._trail, "validation", state.moment(trainer)))
        recorder.start("validation")
        try:
            return original()
        finally:
            recorder.stop("validation")

    # ---- values

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        self._feed(lambda harvest: harvest.on_before_optimizer_step(optimizer))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._feed(lambda harvest: harvest.on_train_batch_end(outputs))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._feed(lambda harvest: harvest.on_validation_batch_end(outputs, batch))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._again(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._again(trainer)

    def _again(self, trainer: pl.Trainer) -> None:
        """trainer.test or trainer.validate after the fit: same run, at its last position."""
        if (
            self._recorder is not None
            and self._harvest is not None
            and self._recorder.run.status != "running"
        ):
            self._ours(self._recorder.reopen)
            self._harvest.attach()
            self._recorder.timeline.phase = "test" if trainer.testing else "validation"

    def _feed(self, act: Callable[[MetricCollector], Any]) -> None:
        if self._harvest is not None:
            harvest = self._harvest
            self._ours(lambda: act(harvest))

    def _ours(self, act: Callable[[], Any]) -> Any:
        assert self._recorder is not None
        return recording.harmless(self._recorder, act)
