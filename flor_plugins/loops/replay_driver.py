"""Replaying a hand-written loop in the script that holds it.

Nothing can call the body of a `for`: the script does, once for each item that the main loop
gives. So the passes of a session are a script of their own (a generator), which is gone on with
whenever a loop asks for an item, and which restores States before it gives one. Where a stretch
ends in the middle of a body, the inner loop is ended there, and the rest of the body runs
unheard."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from flor_plugins.adapter import Proceed
from flor_plugins.errors import ReplayError
from flor_plugins.loops import loaders, state
from flor_plugins.loops.active_loops import ActiveLoop, LoopStack, source_of
from flor_plugins.loops.collector import MetricCollector
from flor_plugins.loops.fast_forward import FastForward, rewindable
from flor_plugins.loops.frame_variables import FrameVariables, frames_to
from flor_plugins.loops.intercept import StartedLoop
from flor_plugins.records import Position, ReplayPass, TrainingRange
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
    return _SkippedLoop(*trainer, dict(sections))


class LoopReplayDriver:
    """Follows the loops of the run that is replayed (see `stage.Follower`)."""

    def __init__(self, on: LoopStack, main: ActiveLoop, session: WorkerSession) -> None:
        self._session = session
        self._bind(on, main)
        self._passes = self._all_passes()
        self._done = self._again = StopIteration
        self.is_done = self.wants_again = False

    def _bind(self, on: LoopStack, main: ActiveLoop) -> None:
        session, self._stage, self._main = self._session, on, main
        self._registered = on.registered
        self._harvest = MetricCollector(
            on.registered, session.timeline, session.hooks, session.run.name, guarded
        )
        self._variables = FrameVariables(frames_to(main.code), state.known_parts(on.registered))
        self._entry: FastForward | None = None
        self._number = 0  # of inner loops that have begun in this epoch
        self._step = 0  # at the last boundary
        self._is_at_main, self._is_gone = True, False
        self._is_leaving = False  # the rest of a body that nobody wants to hear
        self._is_entered = False
        self.wants_again = False
        main.iterable = rewindable(main.iterable)

    def ends_with(self, done: type[BaseException], again: type[BaseException]) -> None:
        """What ends the script once all passes are done; and what does where it has to be
        started once more.
        """
        self._done, self._again = done, again

    def begin_again(self, trainer: StartedLoop) -> None:
        """The script was started once more, and has come to the same loop."""
        self._harvest.detach()
        self._bind(*trainer)
        self._harvest.attach()

    # ---- as the loops ask

    def next_epoch(self, main: ActiveLoop) -> Any:
        """Entry: the body is done with the item before."""
        self._is_at_main, self._is_leaving = True, False
        item = self._go_on()
        while item is _AT_MAIN:
            item = self._go_on()
        return item

    def begins(self, inner: ActiveLoop) -> None:
        """It is about to give its first item."""
        self._harvest.begins(inner)
        if len(self._stage.levels) != 2:
            return
        self._number += 1
        if self._entry is not None and self._entry.is_at(self._number):
            entry, self._entry = self._entry, None
            variables = FrameVariables(
                frames_to(self._main.code), state.known_parts(self._registered)
            )
            self._harvest.sources = entry.at_inner(self._main, inner, variables)
            self._harvest.go_on(inner, self._step, entry.values())
            self._is_entered = True
            entry.let_go()
            self._session.restored()

    def next_item(self, inner: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and the next one is not drawn."""
        if self._is_leaving:
            raise StopIteration
        if inner.count and not self._is_entered:
            self._harvest.iteration_over(inner)
        self._is_entered = False
        is_inner = (
            len(self._stage.levels) == 2 and inner.phase == "train" and not self._harvest.muted
        )
        if is_inner and self._harvest.step != self._step and self._is_reached(epoch_ended=False):
            self._leave()
        item = next(source_of(inner))
        inner.count += 1
        self._harvest.drawn(inner, item)
        return item

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        self._harvest.over(inner)

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """The script has left the main loop by itself: as it did when it was recorded, or
        because it diverged.
        """
        self._stage.follower = None
        self._is_at_main, self._is_gone = not by_error, True
        if by_error and not self._is_leaving:
            self._harvest.epoch_over(self._main.count - 1, is_complete=False)
            if not self._is_reached(epoch_ended=False):
                return  # an error that the recorded training did not have: it is said
        try:
            self.is_done = not self._is_leaving and next(self._passes, None) is None
            self.wants_again = not self.is_done
            end: BaseException = self._done() if self.is_done else self._again()
        except ReplayError as error:
            end = error
        if not by_error:
            _raise_in(frame, end)

    def block_over(self, error: BaseException | None) -> None:
        """The script's block ends, which it did not before all was done."""

    # ---- the passes

    def _go_on(self) -> Any:
        try:
            return next(self._passes)
        except StopIteration:
            self.is_done = True
            raise self._done from None

    def _leave(self) -> None:
        """The stretch ends in the middle of a body; there may be others."""
        self._is_at_main = False
        assert self._go_on() is _AT_MAIN
        self._is_leaving = self._harvest.muted = True
        raise StopIteration

    def _all_passes(self) -> Iterator[Any]:
        session = self._session
        session.timeline.close()
        self._harvest.hooks.metrics = [m for loaded in session.loaded for m in loaded.metrics]
        self._harvest.attach()
        for one in session.passes("state"):
            self._state_pass(one)
        for one in session.passes("train"):
            with session.passing(one):
                for stretch in session.stretches(one):
                    yield from self._run_again(stretch)
        self._harvest.detach()
        loaders.end_workers(self._harvest.sources)

    def _run_again(self, stretch: TrainingRange) -> Iterator[Any]:
        """From the State at the stretch's start to its end, through as many epochs as lie
        between.
        """
        if self._is_gone or not self._is_at_main:
            yield _AT_MAIN
        self._enter(stretch.start)
        while True:
            try:
                item = next(source_of(self._main))
            except (
                StopIteration
            ):  # sooner than when it was recorded: the comparison says what is missing
                return
            self._main.count += 1
            yield item
            if not self._is_at_main:  # an inner loop has come to the stretch's end
                return
            self._harvest.epoch_over(self._main.count)
            if self._is_reached(epoch_ended=True):
                return
            if self._is_gone:
                raise ReplayError(
                    f"the script left its loop {self._main.name!r} at epoch "
                    f"{self._main.count}, and it is to be "
                    f"replayed to {stretch.end}; does it look at a clock, or at files?"
                )
            self._begin_epoch(loaders.sources(self._registered, frames_to(self._main.code)))

    def _enter(self, start: Position) -> None:
        sections = self._session.state(start)
        entry = FastForward(self._registered, self._variables, sections)
        found = entry.at_main(self._main)
        self._harvest.step = self._step = start.step
        self._begin_epoch(found)
        self._harvest.muted = entry.is_inside
        if entry.is_inside:
            self._entry = entry
        else:
            entry.let_go()
            self._session.restored()

    def _begin_epoch(self, found: loaders.Sources) -> None:
        self._number = 0
        self._harvest.begin_epoch(found)

    def _is_reached(self, *, epoch_ended: bool) -> bool:
        """All values of the present position are there."""
        self._step = self._harvest.step
        epoch = self._main.count if epoch_ended else self._main.count - 1
        return self._session.boundary(
            Position(epoch, self._step),
            epoch_ended=epoch_ended,
            weights=self._weights,
            context=self._harvest.context,
        )

    def _weights(self) -> Mapping[str, Any]:
        return self._registered.model.state_dict()

    # ---- without training

    def _state_pass(self, one: ReplayPass) -> None:
        session = self._session
        with session.passing(one):
            for position in one.positions:
                sections = session.state(position, only=(state.MODEL,))
                self._stand_at(position)
                state.restore_weights(self._registered, sections)
                del sections  # so that the next one is read into the same memory
                session.restored()
                session.timeline.add(session.values_of(self._harvest.context()), "validation")
                session.compare_weights(position, self._weights())
                session.position_done(position)

    def _stand_at(self, position: Position) -> None:
        self._session.timeline.jump(position)
        if self._session.places.is_end(position):
            self._session.timeline.complete_epoch(position.epoch)


class _SkippedLoop:
    """Follows a loop that is not run."""

    def __init__(self, on: LoopStack, main: ActiveLoop, sections: dict[str, Any]) -> None:
        self._stage, self._main = on, main
        self._sections = sections
        self._variables = FrameVariables(frames_to(main.code), state.known_parts(on.registered))

    def ends_with(self, done: type[BaseException], again: type[BaseException]) -> None:
        """It does not end the script."""

    def next_epoch(self, main: ActiveLoop) -> Any:
        """There is none."""
        FastForward(self._stage.registered, self._variables, self._sections).at_main(main)
        self._stage.follower = None
        raise StopIteration

    def begins(self, inner: ActiveLoop) -> None:
        """No body is run."""

    def next_item(self, inner: ActiveLoop) -> Any:
        """No body is run."""
        raise StopIteration

    def over(self, inner: ActiveLoop) -> None:
        """No body is run."""

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """No body is run."""

    def block_over(self, error: BaseException | None) -> None:
        """No body is run."""


def _raise_in(frame: FrameType, error: BaseException) -> None:
    """Let a running frame raise at its next line: from the end of an iterator's life nothing
    can be raised.
    """

    def trace(at: FrameType, event: str, argument: Any) -> Any:
        sys.settrace(None)
        frame.f_trace = None
        raise error

    frame.f_trace = trace
    sys.settrace(trace)
