"""`FlorCallback` for Lightning: records; decides nothing (see record/recorder.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from flor_plugins.hooks.metric import Metric
from flor_plugins.lightning import capture
from flor_plugins.lightning.harvest import Harvest
from flor_plugins.lightning.params import params_of
from flor_plugins.record import recorder as recording
from flor_plugins.record.begin import begin
from flor_plugins.record.options import options_of
from flor_plugins.records import Launch, Position
from flor_plugins.state import rng
from flor_plugins.state.wrapped import Wrapped


class FlorCallback(Callback):
    """Records a fit: every logged value, the code, and a checkpoint at every epoch boundary.

    metrics: `@flor.metric` hooks to compute live. every_n_epochs: checkpoints at every n-th
    boundary; before the first batch and after the last always. store: a folder; default FLOR_DIR,
    else `.flor/` at the top of the git repository. One fit is one run. A failure of ours is
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
        self._handles: list[Any] = []

    # ---- begin and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before anything is moved, restored or drawn: the run begins here."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        self._harvest, self._moments = None, {}  # those of an earlier fit with this callback
        self._recorder = begin(
            "lightning", self.options, lambda: params_of(trainer, pl_module), self.launch
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
        self._harvest = Harvest(trainer, recorder.timeline, recorder.hooks, recorder.run.name, self._ours)
        self._harvest.attach()
        loop = trainer.fit_loop
        self._wrapped.before(loop, "setup_data", lambda: self._moments.setdefault("setup", rng.capture()))
        self._wrapped.before(loop, "advance", lambda: self._ours(lambda: self._boundary(trainer)))
        self._wrapped.before(
            loop, "on_run_end", lambda: self._ours(lambda: self._boundary(trainer, last=True))
        )
        self._wrapped.around(loop.epoch_loop.val_loop, "run", self._validation)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Optimizers exist from here on."""
        if self._harvest is None:
            return
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
        recorder.stop("epoch")
        progress: Any = trainer.fit_loop.epoch_progress.current  # declared as its base class
        done = progress.processed
        position = Position(done, trainer.global_step)
        if done and recorder.timeline.position.epoch == done:
            values = recorder.hooks.epoch(self._harvest.context())
            recorder.timeline.add(values, "validation", "epoch")
        recorder.timeline.close()
        if last or recorder.wants_checkpoint(position):
            recorder.checkpoint(position, capture.capture(trainer, self._moments))
        if not last:
            recorder.timeline.jump(position)
            recorder.start("epoch")

    def _validation(self, original: Callable[[], Any]) -> Any:
        recorder = self._recorder
        assert recorder is not None
        self._moments["validation"] = rng.capture()
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

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._feed(lambda harvest: harvest.on_train_batch_start(batch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
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

    def _feed(self, act: Callable[[Harvest], Any]) -> None:
        if self._harvest is not None:
            harvest = self._harvest
            self._ours(lambda: act(harvest))

    def _ours(self, act: Callable[[], Any]) -> Any:
        assert self._recorder is not None
        return recording.harmless(self._recorder, act)
