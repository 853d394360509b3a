"""Replaying a hand-written loop in the script that holds it.

Nothing can call the body of a `for`: the script does, once for each item that the main loop
gives. So the passes of a session are a script of their own (a generator), which is gone on with
whenever a loop asks for an item, and which restores States before it gives one. Where a range
ends in the middle of a body, the inner loop is ended there, and the rest of the body runs
unheard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor

from flor_plugins.adapter import Proceed
from flor_plugins.errors import ReplayError
from flor_plugins.hooks.metric import Context
from flor_plugins.loops import loaders, state
from flor_plugins.loops.active_loops import ActiveLoop, LoopObserver, LoopStack, source_of
from flor_plugins.loops.collector import MetricCollector
from flor_plugins.loops.fast_forward import FastForward, rewindable
from flor_plugins.loops.frame_variables import FrameVariables, frames_to
from flor_plugins.loops.intercept import StartedLoop
from flor_plugins.records import Position, TrainingRange
from flor_plugins.records.sections import LoadedSections
from flor_plugins.replayer.execution.launched_fit import RelaunchScript, ReplayDone
from flor_plugins.replayer.worker_session.replay_loop import ReplayLoop
from flor_plugins.replayer.worker_session.session import WorkerSession, guarded

_AT_MAIN: Any = object()  # the passes can go on when the main loop asks for its next item


def drive(trainer: StartedLoop, go: Proceed, session: WorkerSession) -> LoopReplayDriver:
    """Whoever follows the loops from here on; it does all passes of the session's task."""
    return LoopReplayDriver(*trainer, session)


def pass_over(
    trainer: StartedLoop,
    go: Proceed,
    sections: Mapping[str, Any],
    end: Position,
) -> _SkippedLoop:
    """Leave a training as if it had been done: its last State is restored, no iteration is made."""
    return _SkippedLoop(*trainer, sections)


@dataclass(slots=True)
class _ScriptPlace:
    """Where a start of the script stands. number: of inner loops that have begun in this epoch.

    step: at the last boundary. is_gone: out of the main loop. is_leaving: in the rest of a body
    that nobody wants to hear. is_entered: at the first item of an inner loop after a State.
    """

    number: int = 0
    step: int = 0
    is_at_main: bool = True
    is_gone: bool = False
    is_leaving: bool = False
    is_entered: bool = False


class LoopReplayDriver(LoopObserver):
    """Follows the loops of the run that is replayed (see `LoopObserver`)."""

    def __init__(self, on: LoopStack, main: ActiveLoop, session: WorkerSession) -> None:
        self._loop = ReplayLoop(
            session,
            context=self._context,
            weights=self._weights,
            restore_weights=self._restore_weights,
        )
        self._bind(on, main)
        self._passes = self._all_passes()
        self.is_done = self.wants_again = False

    def _bind(self, on: LoopStack, main: ActiveLoop) -> None:
        session, self._stage, self._main = self._loop.session, on, main
        self._collector = MetricCollector(on.registered, session, guarded)
        self._variables = self._frame_variables()
        self._entry: FastForward | None = None
        self._place = _ScriptPlace()
        self.wants_again = False
        main.iterable = rewindable(main.iterable)

    def begin_again(self, trainer: StartedLoop) -> None:
        """The script was started once more, and has come to the same loop."""
        self._collector.detach()
        self._bind(*trainer)
        self._collector.attach()

    # ---- as the loops ask

    def next_epoch(self, main: ActiveLoop) -> Any:
        """Entry: the body is done with the item before."""
        self._place.is_at_main, self._place.is_leaving = True, False
        item = self._go_on()
        while item is _AT_MAIN:
            item = self._go_on()
        return item

    def begins(self, inner: ActiveLoop) -> None:
        """It is about to give its first item."""
        self._collector.begins(inner)
        if len(self._stage.levels) != 2:
            return
        self._place.number += 1
        if self._entry is not None and self._entry.is_at(self._place.number):
            entry, self._entry = self._entry, None
            self._collector.sources = entry.at_inner(self._main, inner, self._frame_variables())
            self._collector.go_on(inner, self._place.step, entry.values())
            self._place.is_entered = True
            self._let_go(entry)

    def next_item(self, inner: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and the next one is not drawn."""
        place, collector = self._place, self._collector
        if place.is_leaving:
            raise StopIteration
        if inner.count and not place.is_entered:
            collector.iteration_over(inner)
        place.is_entered = False
        is_inner = len(self._stage.levels) == 2 and inner.phase == "train" and not collector.muted
        if is_inner and collector.step != place.step and self._is_end(epoch_ended=False):
            self._leave()
        item = next(source_of(inner))
        inner.count += 1
        collector.drawn(inner, item)
        return item

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        self._collector.over(inner)

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """The script has left the main loop: as when it was recorded, or because it diverged."""
        self._stage.follower = None
        place = self._place
        place.is_at_main, place.is_gone = not by_error, True
        if by_error and not place.is_leaving:
            self._collector.epoch_over(self._main.count - 1, is_complete=False)
            if not self._is_end(epoch_ended=False):
                return  # an error that the recorded training did not have: it is said
        try:
            self.is_done = not place.is_leaving and next(self._passes, None) is None
            self.wants_again = not self.is_done
            end: BaseException = ReplayDone() if self.is_done else RelaunchScript()
        except ReplayError as error:
            end = error
        if not by_error:
            _raise_in(frame, end)

    # ---- the passes

    def _go_on(self) -> Any:
        try:
            return next(self._passes)
        except StopIteration:
            self.is_done = True
            raise ReplayDone from None

    def _leave(self) -> None:
        """The range ends in the middle of a body; there may be others."""
        self._place.is_at_main = False
        assert self._go_on() is _AT_MAIN
        self._place.is_leaving = self._collector.muted = True
        raise StopIteration

    def _all_passes(self) -> Iterator[Any]:
        self._loop.session.timeline.close()
        self._collector.attach()
        self._loop.evaluate()
        for trained in self._loop.ranges():
            yield from self._run_again(trained)
        self._collector.detach()
        loaders.end_workers(self._collector.sources)

    def _run_again(self, trained: TrainingRange) -> Iterator[Any]:
        """Train from the State at the range's start to its end, through all epochs between."""
        if self._place.is_gone or not self._place.is_at_main:
            yield _AT_MAIN
        self._enter(trained.start)
        while True:
            try:
                item = next(source_of(self._main))
            except (
                StopIteration
            ):  # sooner than when it was recorded: the comparison says what is missing
                return
            self._main.count += 1
            yield item
            if not self._place.is_at_main:  # an inner loop has come to the range's end
                return
            self._collector.epoch_over(self._main.count)
            if self._is_end(epoch_ended=True):
                return
            if self._place.is_gone:
                raise ReplayError(
                    f"the script left its loop {self._main.name!r} at epoch "
                    f"{self._main.count}, and it is to be "
                    f"replayed to {trained.end}; does it look at a clock, or at files?"
                )
            frames = frames_to(self._main.code)
            self._begin_epoch(loaders.sources(self._stage.registered, frames))

    def _enter(self, start: Position) -> None:
        sections = self._loop.session.state(start)
        entry = FastForward(self._stage.registered, self._variables, sections)
        sources = entry.at_main(self._main)
        self._collector.step = self._place.step = start.step
        self._begin_epoch(sources)
        self._collector.muted = entry.is_inside
        if entry.is_inside:
            self._entry = entry
        else:
            self._let_go(entry)

    def _let_go(self, entry: FastForward) -> None:
        entry.let_go()
        self._loop.session.read_ahead()

    def _begin_epoch(self, sources: loaders.Sources) -> None:
        self._place.number = 0
        self._collector.begin_epoch(sources)

    def _is_end(self, *, epoch_ended: bool) -> bool:
        """All values of the present position are there."""
        step = self._place.step = self._collector.step
        epoch = self._main.count if epoch_ended else self._main.count - 1
        return self._loop.boundary(Position(epoch, step), epoch_ended=epoch_ended)

    # ---- the objects of this start of the script

    def _context(self) -> Context:
        return self._collector.context()

    def _weights(self) -> Mapping[str, Tensor]:
        return self._stage.registered.model.state_dict()

    def _restore_weights(self, sections: LoadedSections) -> None:
        state.restore_weights(self._stage.registered, sections)

    def _frame_variables(self) -> FrameVariables:
        known = state.known_parts(self._stage.registered)
        return FrameVariables(frames_to(self._main.code), known)


class _SkippedLoop(LoopObserver):
    """Follows a loop that is not run."""

    def __init__(self, on: LoopStack, main: ActiveLoop, sections: Mapping[str, Any]) -> None:
        self._stage = on
        variables = FrameVariables(frames_to(main.code), state.known_parts(on.registered))
        self._entry = FastForward(on.registered, variables, dict(sections))

    def next_epoch(self, main: ActiveLoop) -> Any:
        """There is none: its last State is restored."""
        self._entry.at_main(main)
        self._stage.follower = None
        raise StopIteration

    def next_item(self, inner: ActiveLoop) -> Any:
        """No body is run."""
        raise StopIteration


def _raise_in(frame: FrameType, error: BaseException) -> None:
    """Let a running frame raise at its next line.

    From the end of an iterator's life nothing can be raised.
    """

    def trace(at: FrameType, event: str, argument: Any) -> Any:
        sys.settrace(None)
        frame.f_trace = None
        raise error

    frame.f_trace = trace
    sys.settrace(trace)
