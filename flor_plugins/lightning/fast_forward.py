"""Going on at a State, also in the middle of an epoch, for replays and for resumed runs.

Three entries of the trainer's own loops are needed, in this order: `FitLoop.on_advance_start`,
`FitLoop.advance` and `_TrainingEpochLoop.advance`. Lightning's restart flags stay off: they
change control flow and data order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import StochasticWeightAveraging

from flor_plugins.lightning import loaders, state
from flor_plugins.lightning.rng_history import beginning_of
from flor_plugins.records.sections import RNG, TRAINER, Sections
from flor_plugins.state import rng
from flor_plugins.state.epoch_rng import Moment
from flor_plugins.state.loader_iteration import end_workers, once, skip
from flor_plugins.state.method_wrapper import Method, MethodWrapper


class FastForward:
    """Takes a trainer to a State.

    Of the three moments the first may be left out where the trainer stands after it.
    """

    def __init__(self, trainer: pl.Trainer, sections: Sections) -> None:
        self.trainer, self.sections = trainer, sections
        held = sections[TRAINER]
        self.epoch = completed_epochs(sections)
        self.batch = int(held.get("batch", 0))
        self._is_inside = False

    def before_epoch(self) -> None:
        """Entry of `FitLoop.on_advance_start`: counters stand before the epoch."""
        self._make_loaders()
        state.restore_progress(self.trainer, self.sections, self.epoch)

    def at_epoch(self) -> None:
        """Entry of `FitLoop.advance`: what the hooks of the epoch's start did is overwritten."""
        self._open_data()
        beginning = beginning_of(self.sections)
        state.restore_progress(self.trainer, self.sections, self.epoch, has_begun=True)
        state.restore(self.trainer, self.sections)
        loaders.restore(self.trainer, beginning)

    def at_batch(self) -> None:
        """Entry of `_TrainingEpochLoop.advance`: at the first one, draw what is done."""
        if self._is_inside or not self.batch:
            return
        self._is_inside = True
        held = self.sections[RNG]
        self._skip(self.batch, held["epoch"], held.get("previous"))
        state.restore_progress(self.trainer, self.sections, self.epoch, has_begun=True)
        state.restore(self.trainer, self.sections)

    # ---- data

    def _make_loaders(self) -> None:
        """Make the loaders of the epoch in which they had been made last.

        Needed with `reload_dataloaders_every_n_epochs`.
        """
        loop = self.trainer.fit_loop
        every = cast(Any, self.trainer).reload_dataloaders_every_n_epochs
        made = self.sections[TRAINER].get("loaders_of_epoch")
        if every and made is not None:
            state.restore_progress(self.trainer, self.sections, int(made))
            rng.restore(self.sections[RNG]["setup"])
            loop._combined_loader = None
            loop.setup_data()

    def _open_data(self) -> None:
        """Make the iterator of the epoch, except for what Lightning does itself.

        That is what `_TrainingEpochLoop.on_run_start` does.

        Workers that persist are seeded when they start, and never again: they draw the data of
        all epochs before.
        """
        beginning = beginning_of(self.sections)
        earlier = self.sections[RNG].get("epochs", ())
        if not earlier and beginning["iterator"] is None:
            return
        for loader in loaders.training_loaders(self.trainer):
            end_workers(loader)
        for epoch in earlier:
            self._begin_iterator(epoch)
            self._draw(epoch)
        self._begin_iterator(beginning)
        self._set_sampler_epoch(self.epoch)

    def _begin_iterator(self, beginning: Moment) -> None:
        if beginning["iterator"] is not None:
            loaders.restore(self.trainer, beginning["iterator"])
            self._make_iterator()

    def _draw(self, epoch: Moment) -> None:
        """Draw the data of an earlier epoch again."""
        self._set_sampler_epoch(epoch["epoch"])
        loaders.restore(self.trainer, epoch)
        if epoch["epoch"] > 0:
            self._make_iterator()
        self._skip(epoch["batches"], epoch, None)

    def _make_iterator(self) -> None:
        iter(cast(Any, self.trainer.fit_loop._data_fetcher))

    def _set_sampler_epoch(self, epoch: int) -> None:
        for loader in loaders.training_loaders(self.trainer):
            _set_sampler_epoch(loader, epoch)

    def _skip(self, batches: int, beginning: Moment, previous: Moment | None) -> None:
        fetcher: Any = self.trainer.fit_loop._data_fetcher
        ahead, turns = int(loaders.fetches_ahead(self.trainer)), beginning["turns"]
        for number in range(batches):
            if number in turns:
                rng.restore(turns[number])
            skip(fetcher, 1, ahead if number == batches - 1 else 0, previous)


def prepare(trainer: pl.Trainer, sections: Sections | None, wrapped: MethodWrapper) -> None:
    """In `setup` of a fit: show a State to Lightning's own restore functions.

    They see it before callbacks' on_fit_start.

    sections: None where only weights will be restored. A ckpt_path of the script is ignored in
    any case.
    """
    connector = trainer._checkpoint_connector
    # `resume_start(None)` leaves `_loaded_checkpoint` alone and `restore_model` and its
    # siblings use it (checkpoint_connector.py): callbacks that act on restored state
    # (BaseFinetuning adds param groups) find it in on_fit_start. A ckpt_path of the script must
    # not replace it.
    wrapped.around(connector, "resume_start", _pass_over)
    if sections is None:
        return
    connector._loaded_checkpoint = state.as_checkpoint(sections)
    setup = sections[RNG].get("setup")
    if setup is not None:
        # At the first call only: later iterators belong to restored epochs.
        wrapped.before(trainer.fit_loop, "setup_data", once(partial(rng.restore, setup)))


def _pass_over(original: Method, *args: Any, **kwargs: Any) -> None:
    """Stands in for a method that is not to run."""


def resume_at(
    trainer: pl.Trainer,
    sections: Sections,
    wrapped: MethodWrapper,
    restored: Callable[[], object],
) -> None:
    """In `setup` of a fit: let it begin at a State and go on to its natural end.

    Call it after everything else that is put around the same entries, so that nothing else
    hears of them before the State is there. restored: called once when it is: at the entry of
    `FitLoop.advance`, inside an epoch of `_TrainingEpochLoop.advance`, of a training that was
    complete of `on_advance_start`; only from then on may a recording go on with its history
    (`RngHistory.resume`), because making the first loaders begins a new one. `wrapped.undo()`
    takes it off.
    """
    entry, loop = FastForward(trainer, sections), trainer.fit_loop

    def before_epoch() -> None:
        entry.before_epoch()
        trainer.should_stop = sections[TRAINER]["should_stop"]
        if loop.done:  # nothing is left to train
            _begin_last_epoch(trainer, sections)
            state.restore(trainer, sections)
            restored()
            raise StopIteration  # FitLoop.run takes it as its end

    def at_epoch() -> None:
        entry.at_epoch()
        if not entry.batch:
            restored()

    def at_batch() -> None:
        entry.at_batch()
        if entry.batch:
            restored()

    prepare(trainer, sections, wrapped)
    wrapped.before(loop, "on_advance_start", once(before_epoch))
    wrapped.before(loop, "advance", once(at_epoch))
    wrapped.before(loop.epoch_loop, "advance", once(at_batch))


def _begin_last_epoch(trainer: pl.Trainer, sections: Sections) -> None:
    """Let StochasticWeightAveraging note what it puts back at the fit's end, and saves nowhere."""
    completed = completed_epochs(sections)
    for callback in state.callbacks_of(trainer):
        if isinstance(callback, StochasticWeightAveraging) and completed:
            state.restore_progress(trainer, sections, completed - 1, has_begun=True)
            callback.on_train_epoch_start(trainer, trainer.lightning_module)
            state.restore_progress(trainer, sections, completed)


def is_boundary(trainer: pl.Trainer, since: int) -> bool:
    """Tell whether updates were made since step `since`, and none is half done.

    Asked at the entry of `_TrainingEpochLoop.advance`.
    """
    batch = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    if not batch or trainer.global_step == since:
        return False
    return (
        not trainer.lightning_module.automatic_optimization
        or batch % trainer.accumulate_grad_batches == 0
    )


def completed_epochs(sections: Sections) -> int:
    """The epochs that a State has behind it."""
    progress = sections[TRAINER]["checkpoint"]["loops"]["fit_loop"]["epoch_progress"]
    return int(progress["current"]["processed"])


def completed_steps(sections: Sections) -> int:
    """The optimizer updates that a State has behind it."""
    return int(sections[TRAINER]["checkpoint"]["global_step"])
