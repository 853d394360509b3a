"""Records a hand-written loop; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from flor_plugins.hooks import log
from flor_plugins.loops import loaders, state
from flor_plugins.loops.active_loops import ActiveLoop, LoopStack, source_of
from flor_plugins.loops.after_training import AfterTraining
from flor_plugins.loops.collector import MetricCollector
from flor_plugins.loops.enumerate_counter import can_go_on_inside
from flor_plugins.loops.fast_forward import FastForward
from flor_plugins.loops.frame_variables import Frames, FrameVariables, frames_to
from flor_plugins.loops.obstacles import obstacles_of, of_outgrown
from flor_plugins.loops.params import params_of
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.loops.rng_history import RngHistory
from flor_plugins.recorder.distributed import begin_together
from flor_plugins.recorder.launching.launch_context import expected
from flor_plugins.recorder.options import options_of
from flor_plugins.recorder.recorder import Recorder, harmless
from flor_plugins.recorder.resumption import Resumption
from flor_plugins.records import Obstacle, Position, RunStatus
from flor_plugins.state.module import parameter_names

T = TypeVar("T")

BEGINS_ANEW = (range, list, tuple)  # nothing is drawn to go over these


def begin(stack: LoopStack, main: ActiveLoop) -> LoopRecorder | None:
    """At the first item of a main loop: a run begins. None where nothing can be recorded."""
    context, registered = expected(), stack.registered
    labels: dict[str, Any] = {"name": context.name, "project": context.project} if context else {}
    options = options_of(**{**labels, **registered.options})
    launch = context.launch if context else None
    if stack.recent is not None:
        stack.recent.close()
    recorder = begin_together(
        "loop",
        options,
        partial(params_of, launch),
        launch,
        partial(_parameter_names, registered),
    )
    if recorder is None:
        log.connect(None)
        return None
    if context is not None:
        context.begun.append(recorder.run.run_id)
    stack.recent = recording = LoopRecorder(stack, main, recorder)
    return recording


def _parameter_names(registered: ObjectRegistry) -> set[str]:
    return parameter_names(registered.model)


@dataclass(slots=True)
class _InnerLoop:
    """The training loop right inside the main one, while it runs.

    variables: as it began; None where no State is taken inside it. is_entered: is its next item
    the first after a State?
    """

    level: ActiveLoop
    variables: FrameVariables | None
    is_entered: bool = False


class LoopRecorder:
    """Follows the loops of one run (see `active_loops.LoopObserver`).

    variables: as the main loop began; None before.
    """

    def __init__(self, stack: LoopStack, main: ActiveLoop, recorder: Recorder) -> None:
        self.recorder, self._stack, self._main = recorder, stack, main
        self._collector = MetricCollector(stack.registered, recorder, self._guard)
        self._history = RngHistory()
        self._entry: FastForward | None = None
        self._variables: FrameVariables | None = None
        self._inner: _InnerLoop | None = None
        self._has_inner = False  # has a training loop begun inside the main one?
        self._after = AfterTraining(recorder, self._failed)

    # ---- begin and end

    def _attach(self) -> None:
        recorder = self.recorder
        self._after.watch()
        try:
            self._variables = self._present_variables()
            self._collector.attach()
            self._guard(recorder.note_obstacles, self._guard(self._obstacles) or ())
            self._guard(recorder.watch, self.registered.optimizers().values())
            self._guard(self._expect)
            early, self._stack.early = self._stack.early, {}
            recorder.timeline.add(early, "train", "epoch")
            if recorder.resumption is not None:
                self._resume(recorder.resumption)
                return
            if not isinstance(self._main.iterable, BEGINS_ANEW):
                self._history.main = loaders.capture(self._sources())
                source_of(self._main)  # before the first State: it may draw
            self._epoch_boundary()
        except Exception as error:
            if recorder.resumption is not None:
                raise
            recorder.warn(f"this loop can't be recorded: {type(error).__name__}: {error}")
            self._end("failed", error)

    def _expect(self) -> None:
        """Say how many epochs are to come, where the main loop has a length."""
        resumption, iterable = self.recorder.resumption, self._main.iterable
        with suppress(TypeError):
            done = 0 if resumption is None else resumption.position.epoch
            self.recorder.policy.expects(len(iterable) - done)

    def _resume(self, resumption: Resumption) -> None:
        """The main loop will stand where the interrupted run stood."""
        assert self._variables is not None
        self._history.resume(resumption.sections, resumption.position.step)
        self._entry = FastForward(self.registered, self._variables, resumption.sections)
        self._collector.begin_epoch(self._entry.at_main(self._main))
        if self._entry.is_inside:
            self._collector.muted = True
        else:
            self._begin_epoch(self._sources())
            self._restored()

    def _restored(self) -> None:
        """The loops stand where the interrupted run stood."""
        assert self._entry is not None
        self._collector.step = self._history.step
        self.recorder.go_on()
        self._entry.let_go()
        self._entry = None

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """An iteration that was left at will is done; one that an error cut short is not."""
        self._after.was_left = by_error
        self.recorder.stop("epoch")
        if by_error:
            self._guard(self._cut_short, self._history.epoch)
            self._end("failed", None)
        else:
            self._guard(self._epoch_over)
            self._guard(self._last_boundary)
            self._end("finished", None)

    def block_over(self, error: BaseException | None) -> None:
        """A main loop that somebody still holds is left now."""
        self._stack.levels.clear()
        if self.recorder.run.status != "running":
            self._after.failed(error)
        elif error is None:
            self._guard(self._collector.epoch_over, self._main.count)
            self._end("finished", None)
        else:
            self._guard(self._cut_short, self._main.count)
            self._end("failed", error)

    def close(self) -> None:
        """Another run begins."""
        self._after.close()

    def _failed(self, error: BaseException | None) -> None:
        self._end("failed", error)

    def _end(self, status: RunStatus, error: BaseException | None) -> None:
        if self.recorder.run.status != "running":
            return
        self._collector.detach()
        self._stack.follower = None
        self._guard(self.recorder.finish, status, error)
        self._after.listen()

    # ---- boundaries of the main loop

    def next_epoch(self, main: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and nothing of the next one is drawn."""
        if self._variables is None:
            self._attach()
        else:
            self.recorder.stop("epoch")
            self._guard(self._epoch_over)
            self._guard(self._epoch_boundary)
        try:
            item = next(source_of(main))
        except StopIteration:
            self._guard(self._last_boundary)
            self._end("finished", None)
            raise
        except BaseException as error:
            self._end("failed", error)
            raise
        main.count += 1
        self.recorder.start("epoch")
        return item

    def _epoch_boundary(self) -> None:
        main, recorder, registered = self._main, self.recorder, self.registered
        assert self._variables is not None
        position = Position(main.count, self._collector.step)
        recorder.timeline.jump(position)
        self._history.step = position.step
        wants = bool(registered.objects) and recorder.policy.wants(position)
        if not (wants or self._has_inner or main.count == 0):
            # of a loop of single steps nobody asks for their middle
            self._history.begin_epoch(main.count, {}, {})
            self._collector.begin_epoch(self._collector.sources)
            return
        sources = self._sources()
        self._collector.begin_epoch(sources)
        self._begin_epoch(sources)
        recorder.note_obstacles(of_outgrown(registered, self._variables, self._frames()))
        if wants:
            recorder.checkpoint(position, self._state)

    def _begin_epoch(self, sources: loaders.Sources) -> None:
        assert self._variables is not None
        changed = self._variables.changed(self._frames())
        self._history.begin_epoch(self._main.count, loaders.capture(sources), changed)

    def _epoch_over(self) -> None:
        recorder, collector = self.recorder, self._collector
        collector.epoch_over(self._main.count)
        recorder.timeline.add(recorder.hooks.epoch(collector.context()), "validation", "epoch")

    def _cut_short(self, epoch: int) -> None:
        self._collector.epoch_over(epoch, is_complete=False)

    def _last_boundary(self) -> None:
        position = Position(self._main.count, self._collector.step)
        is_trained = bool(self.registered.objects) and position.epoch
        if is_trained and self.recorder.policy.wants(position, last=True):
            self._history.begin_epoch(position.epoch, {}, {})
            self.recorder.checkpoint(position, self._state, last=True)

    # ---- loops inside it

    def begins(self, inner: ActiveLoop) -> None:
        """It is about to give its first item."""
        history, entry = self._history, self._entry
        self._collector.begins(inner)
        if inner.phase != "train":
            self.recorder.start("validation")
        if len(self._stack.levels) != 2:
            return
        history.inner, history.batch = history.inner + 1, 0
        if inner.phase == "train":
            schedule = self.recorder.options.schedule
            is_asked = schedule.every_n_steps or schedule.every_minutes or entry is not None
            self._has_inner = True
            self._inner = _InnerLoop(inner, self._present_variables() if is_asked else None)
        if entry is not None and entry.is_at(history.inner):
            assert self._inner is not None and self._inner.variables is not None
            entry.at_inner(self._main, inner, self._inner.variables)
            self._collector.go_on(inner, history.step, entry.values())
            history.batch, self._inner.is_entered = inner.count, True
            self._restored()

    def next_item(self, inner: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and the next one is not drawn."""
        training = self._training(inner)
        if training is not None and training.is_entered:
            training.is_entered = False
        elif inner.count:
            self._collector.iteration_over(inner)
        source = source_of(inner)  # before the RNG is kept: it may draw
        if training is not None:
            self._guard(self._step_boundary, inner)
        item = next(source)
        inner.count += 1
        if training is not None:
            self._history.batch = inner.count
        self._collector.drawn(inner, item)
        return item

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        self._collector.over(inner)
        if inner.phase != "train":
            self.recorder.stop("validation")
        if self._training(inner) is not None:
            self._inner, self._history.batch = None, 0

    def _training(self, inner: ActiveLoop) -> _InnerLoop | None:
        return self._inner if self._inner is not None and self._inner.level is inner else None

    def _step_boundary(self, inner: ActiveLoop) -> None:
        history, recorder = self._history, self.recorder
        if self._collector.muted or not self.registered.objects or _is_exhausted(inner):
            return  # the last of these moments is the epoch's end
        position = Position(history.epoch, self._collector.step)
        is_known = history.has_moved(position.step) and history.beginning and history.previous
        if is_known and can_go_on_inside(inner) and recorder.policy.wants_inside(position):
            recorder.checkpoint(position, self._state)
        history.enter_step(is_near=recorder.policy.is_near(position))

    # ---- a State

    @property
    def registered(self) -> ObjectRegistry:
        """The objects that a State holds."""
        return self._collector.registered

    def _state(self) -> dict[str, Any]:
        frames = self._frames()
        variables = self._variables
        if self._inner is not None and self._history.batch:
            variables = self._inner.variables
        changed = {} if variables is None else variables.changed(frames)
        sources, values = loaders.sources(self.registered, frames), self._collector.values()
        return state.capture(self.registered, sources, self._history, changed, values)

    def _frames(self) -> Frames:
        return frames_to(self._main.code)

    def _present_variables(self) -> FrameVariables:
        return FrameVariables(self._frames(), state.known_parts(self.registered))

    def _sources(self) -> loaders.Sources:
        return loaders.sources(self.registered, self._frames())

    def _obstacles(self) -> list[Obstacle]:
        return obstacles_of(self.registered, self._frames())

    def _guard(self, act: Callable[..., T], *args: object) -> T | None:
        return harmless(self.recorder, act, *args)


def _is_exhausted(inner: ActiveLoop) -> bool:
    """Tell whether it is known to have given all its items."""
    try:
        return inner.count > 0 and inner.count >= len(inner.iterable)
    except TypeError:
        return False
