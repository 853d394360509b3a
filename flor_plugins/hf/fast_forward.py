"""Going on at a State, also in the middle of an epoch, for replays and for resumed runs.

The trainer runs its own `_run_epoch`, with the counters of a resumed training. What it would do to
resume is replaced: `skip_first_batches` (transformers/trainer.py) leaves out samples without
drawing them, and `_load_rng_state` reads a file. Here batches are drawn, so that workers and
generators are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers.trainer
from transformers import Trainer

from flor_plugins.hf import loaders, state
from flor_plugins.records.sections import RNG, TRAINER, Sections
from flor_plugins.state import loader_iteration
from flor_plugins.state.method_wrapper import Method, MethodWrapper

_MODULE: Any = transformers.trainer  # `_run_epoch` looks `skip_first_batches` up in it
# What `_run_epoch` hears as resume_from_checkpoint; no such file is read.
RESTORED = "<restored by flor>"


def run_epoch(
    trainer: Trainer,
    original: Method,
    kwargs: Mapping[str, Any],
    sections: Sections,
    restored: Callable[[], object],
) -> Any:
    """Call `_run_epoch` so that it goes on from a State; returns when the epoch is over.

    At the first `get_batch_samples` everything is restored, RNG included. restored: called
    then; the State is not needed any more.
    """
    epoch, batch = completed_epochs(sections), sections[TRAINER].get("batch", 0)
    loaders.restore_evaluated(trainer, sections[TRAINER].get("evaluated", []))
    loaders.drain(trainer, sections[RNG].get("epochs", []))
    if not batch:
        state.restore(trainer, sections)
        restored()
        return original(**from_the_beginning(kwargs, epoch))
    loaders.restore(trainer, sections[RNG]["epoch"])
    resumed = {
        "resume_from_checkpoint": RESTORED,
        "epochs_trained": epoch,
        "steps_trained_in_current_epoch": batch,
    }
    with _skipping(trainer, sections, restored):
        return original(**{**kwargs, "epoch": epoch, **resumed})


def from_the_beginning(kwargs: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """The arguments of `_run_epoch` for a whole epoch."""
    whole = {
        "resume_from_checkpoint": None,
        "epochs_trained": 0,
        "steps_trained_in_current_epoch": 0,
    }
    return {**kwargs, "epoch": epoch, **whole}


def completed_epochs(sections: Sections) -> int:
    """The epochs that a State has behind it."""
    held = sections[TRAINER]
    return int(held["epoch"] if "epoch" in held else round(held["state"]["epoch"] or 0))


def completed_steps(sections: Sections) -> int:
    """The optimizer updates that a State has behind it."""
    return int(sections[TRAINER]["state"]["global_step"])


def resume_at(
    trainer: Trainer,
    sections: Sections,
    wrapped: MethodWrapper,
    entering: Callable[[], object],
    restored: Callable[[], object],
) -> None:
    """In `on_train_begin`: let the training begin at a State and go on to its natural end.

    Call it after everything else that is put around `_run_epoch`: the epochs before the State's are
    passed over, and nothing else hears of them. entering: called once, right before the epoch
    in which the training goes on, or before its end where no epoch is left. restored: called
    once, when the State has been put into the trainer and is not needed any more.
    `RngHistory.resume` takes what a recording goes on with. `wrapped.undo()` takes it off.
    """
    entered, completed = False, completed_epochs(sections)
    was_complete = sections[TRAINER]["control"]["should_training_stop"]

    def _run_epoch(original: Method, *args: Any, **kwargs: Any) -> Any:
        nonlocal entered
        if entered:
            return original(*args, **kwargs)
        if was_complete or kwargs["epoch"] < completed:
            trainer.control.should_training_stop = was_complete
            return None
        entered = True
        entering()
        run_epoch(trainer, original, kwargs, sections, restored)
        # Beyond ours where the script asked for a later checkpoint of its own
        # (resume_from_checkpoint).
        for epoch in range(completed + 1, kwargs["epoch"] + 1):
            if trainer.control.should_training_stop:
                return None
            trainer.control = trainer.callback_handler.on_epoch_begin(
                trainer.args, trainer.state, trainer.control
            )
            original(**from_the_beginning(kwargs, epoch))
        return None

    def _finalize_training() -> None:
        if not entered:
            state.restore(trainer, sections)
            entering()
            restored()

    wrapped.around(trainer, "_run_epoch", _run_epoch)
    wrapped.before(trainer, "_finalize_training", _finalize_training)


class _SkippingLoader:
    """Stands in for the training loader: its iterator stands behind the batches that are done."""

    def __init__(
        self,
        loader: Any,
        trainer: Trainer,
        sections: Sections,
        restored: Callable[[], object],
    ) -> None:
        self._loader, self._trainer = loader, trainer
        self._sections, self._restored = sections, restored

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._loader)
        # An update draws its batches at once, and accelerate fetches one more: those of the
        # last update were drawn under the RNG at its entry.
        ahead = self._trainer.args.gradient_accumulation_steps
        batches = self._sections[TRAINER]["batch"]
        loader_iteration.skip(iterator, batches, ahead, self._sections[RNG]["previous"])
        state.restore(self._trainer, self._sections)
        self._restored()
        return iterator


@contextmanager
def _skipping(
    trainer: Trainer, sections: Sections, restored: Callable[[], object]
) -> Iterator[None]:
    """Within the block the trainer's own skipping is replaced, and put back after its first use."""
    wrapped, arguments = MethodWrapper(), trainer.args
    skip, ignored = _MODULE.skip_first_batches, arguments.ignore_data_skip

    def first_batches(loader: Any, num_batches: int = 0) -> Any:
        _MODULE.skip_first_batches = skip
        return _SkippingLoader(loader, trainer, sections, restored)

    wrapped.around(trainer, "_load_rng_state", _pass_over)
    arguments.ignore_data_skip = False
    _MODULE.skip_first_batches = first_batches
    try:
        yield
    finally:
        _MODULE.skip_first_batches = skip
        arguments.ignore_data_skip = ignored
        wrapped.undo()


def _pass_over(original: Method, *args: Any, **kwargs: Any) -> None:
    """Stands in for a method that is not to run."""
