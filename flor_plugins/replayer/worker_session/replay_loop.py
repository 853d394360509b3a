"""The loop over the passes of a task, for all frameworks: their drivers move the training."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import torch

from flor_plugins.hooks.metric import Context
from flor_plugins.records import Position, TrainingRange
from flor_plugins.records.sections import MODEL, LoadedSections
from flor_plugins.replayer.worker_session.batch_cache import BatchCache
from flor_plugins.replayer.worker_session.session import WorkerSession, say


class RangeEnd(BaseException):
    """Leaves an epoch where a range ends inside it: nothing of the epoch's end is run."""


class ReplayLoop:
    """Does the passes of a session with a training that a driver moves.

    context: of a hook, at the present position. weights: as a checkpoint would hold them now.
    restore_weights: puts those of a State into the model.
    """

    def __init__(
        self,
        session: WorkerSession,
        *,
        context: Callable[[], Context],
        weights: Callable[[], Mapping[str, torch.Tensor]],
        restore_weights: Callable[[LoadedSections], object],
    ) -> None:
        self.session = session
        self._context, self._weights, self._restore = context, weights, restore_weights

    def evaluate(self) -> None:
        """Do the passes that need only weights: restore them, call the hooks."""
        session = self.session
        for replay_pass in session.passes("state"):
            with session.passing(replay_pass):
                batches = BatchCache(say)
                for position in replay_pass.positions:
                    sections = session.state(position, only=(MODEL,))
                    session.stand_at(position)
                    self._restore(sections)
                    del sections  # so that the next one is read into the same memory
                    session.read_ahead()
                    context = self._context()
                    session.timeline.add(self._values(context, batches), "validation")
                    session.compare_weights(position, context.model.state_dict())
                    session.position_done(position)

    def validate(
        self, restore: Callable[[Position, LoadedSections], None], run: Callable[[], object]
    ) -> None:
        """Do the passes that validate.

        restore: puts a State into the trainer, and stands where the validation began.
        """
        session = self.session
        for replay_pass in session.passes("validate"):
            with session.passing(replay_pass):
                for position in replay_pass.positions:
                    sections = session.state(position)
                    restore(position, sections)
                    del sections
                    session.read_ahead()
                    run()
                    session.position_done(position)

    def ranges(self) -> Generator[TrainingRange, None, None]:
        """Give what is to be trained again, one range after the other."""
        for replay_pass in self.session.passes("train"):
            with self.session.passing(replay_pass):
                yield from self.session.ranges()

    def boundary(self, position: Position, *, epoch_ended: bool) -> bool:
        """Take what there is at a position of a range, whose values are in the timeline.

        True: the range ends here.
        """
        session, progress = self.session, self.session.present
        assert progress.range is not None
        if not progress.is_second:
            if position in progress.replay_pass.positions:
                values = session.hooks.epoch(self._context())
                session.timeline.add(values, "validation", "epoch" if epoch_ended else "step")
            if position in session.weights.saved:
                session.compare_weights(position, self._weights())
            if epoch_ended:
                session.position_done(position)
        return position >= progress.range.end

    def _values(self, context: Context, batches: BatchCache) -> dict[str, Any]:
        """What the hooks give. Where several calls go through the same data, it is loaded once."""
        hooks, make = self.session.hooks, context.make_val_dataloader
        calls = len(self.session.present.replay_pass.positions) * len(hooks.metrics)
        if make is None or calls < 2:
            return hooks.epoch(context)
        batches.begin()
        return hooks.epoch(replace(context, make_val_dataloader=lambda: batches.of(make())))
