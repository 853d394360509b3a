"""Records a hand-written loop; decides nothing (see recorder/recorder.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

from flor_plugins.hooks import log
from flor_plugins.loops import loaders, state
from flor_plugins.loops.active_loops import ActiveLoop, LoopStack, source_of
from flor_plugins.loops.after_training import AfterTraining
from flor_plugins.loops.collector import MetricCollector
from flor_plugins.loops.enumerate_counter import can_go_on_inside
from flor_plugins.loops.fast_forward import FastForward
from flor_plugins.loops.frame_variables import FrameVariables, frames_to
from flor_plugins.loops.obstacles import obstacles_of, of_nothing, of_outgrown
from flor_plugins.loops.rng_history import RngHistory
from flor_plugins.recorder import recorder as recording
from flor_plugins.recorder.distributed import begin_together
from flor_plugins.recorder.launch_environment import flatten
from flor_plugins.recorder.launching.launch_context import expected
from flor_plugins.recorder.options import options_of
from flor_plugins.records import Position
from flor_plugins.state import rng
from flor_plugins.state.module import parameter_names

BEGINS_ANEW = (range, list, tuple)  # nothing is drawn to go over these


def begin(on: LoopStack, main: ActiveLoop) -> LoopRecorder | None:
    """At the first item of a main loop: a run begins. None where nothing can be recorded."""
    said = expected()
    labels: dict[str, Any] = {"name": said.name, "project": said.project} if said else {}
    options = options_of(**{**labels, **on.options})
    registered, launch = on.registered, said.launch if said else None
    if on.recent is not None:
        on.recent.close()
    params = (
        {} if launch is None else flatten("", launch.params)
    )  # of a recipe; those of flor.arg come by themselves
    recorder = begin_together(
        "loop", options, lambda: params, launch, lambda: parameter_names(registered.model)
    )
    if recorder is None:
        log.connect(None)
        return None
    if said is not None:
        said.begun.append(recorder.run.run_id)
    found = LoopRecorder(on, main, recorder)
    on.recent = found
    return found


class LoopRecorder:
    """Follows the loops of one run (see `stage.Follower`)."""

    def __init__(self, on: LoopStack, main: ActiveLoop, recorder: recording.Recorder) -> None:
        self.recorder, self.registered = recorder, on.registered
        self._stage, self._main = on, main
        self._harvest = MetricCollector(
            on.registered, recorder.timeline, recorder.hooks, recorder.run.name, self._ours
        )
        self._trail = RngHistory()
        self._entry: FastForward | None = None
        self._variables: FrameVariables | None = None  # as the main loop began
        self._inner: ActiveLoop | None = None  # the training loop right inside the main one
        self._inner_variables: FrameVariables | None = None
        self._has_inner = self._is_attached = False
        self._is_entered = False  # the next item of the inner loop is the first after a State
        self._step = 0  # at the last boundary
        self._afterwards = AfterTraining(recorder, lambda error: self._end("failed", error))

    # ---- the main loop

    def next_epoch(self, main: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and nothing of the next one is drawn."""
        if not self._is_attached:
            self._attach()
        else:
            self.recorder.stop("epoch")
            self._ours(self._epoch_over)
            self._ours(self._boundary)
        try:
            item = next(source_of(main))
        except StopIteration:
            self._ours(self._last)
            self._end("finished", None)
            raise
        except BaseException as error:
            self._end("failed", error)
            raise
        main.count += 1
        self.recorder.start("epoch")
        return item

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """An iteration that was left at will is done; one that an error cut short is not."""
        self._afterwards.was_left = by_error
        self.recorder.stop("epoch")
        if by_error:
            self._ours(lambda: self._harvest.epoch_over(self._trail.epoch, is_complete=False))
            self._end("failed", None)
        else:
            self._ours(self._epoch_over)
            self._ours(self._last)
            self._end("finished", None)

    def block_over(self, error: BaseException | None) -> None:
        """A main loop that somebody still holds is left now."""
        self._stage.levels.clear()
        if self.recorder.run.status != "running":
            self._afterwards.failed(error)
            return
        self._ours(lambda: self._harvest.epoch_over(self._main.count, is_complete=error is None))
        self._end("failed" if error else "finished", error)

    def close(self) -> None:
        """Another run begins."""
        self._afterwards.close()

    def _attach(self) -> None:
        recorder, self._is_attached = self.recorder, True
        self._afterwards.watch()
        try:
            self._variables = FrameVariables(
                frames_to(self._main.code), state.known_parts(self.registered)
            )
            self._harvest.attach()
            self._ours(lambda: recorder.note_obstacles(self._obstacles()))
            self._ours(lambda: recorder.watch(self.registered.optimizers().values()))
            self._ours(lambda: recorder.policy.expects(self._to_come()))
            early, self._stage.early = self._stage.early, {}
            recorder.timeline.add(early, "train", "epoch")
            if recorder.resumption is None:
                if not isinstance(self._main.iterable, BEGINS_ANEW):
                    self._trail.main = loaders.capture(self._sources())
                    source_of(self._main)  # before the first State: it may draw
                self._boundary()
            else:
                self._resume()
        except Exception as error:
            if recorder.resumption is not None:
                raise
            recorder.warn(f"this loop can't be recorded: {type(error).__name__}: {error}")
            self._end("failed", error)

    def _resume(self) -> None:
        """The main loop will stand where the interrupted run stood."""
        resumption = self.recorder.resumption
        assert resumption is not None and self._variables is not None
        self._trail, self._step = RngHistory.of(resumption.sections), resumption.position.step
        self._trail.inner = self._trail.batch = 0
        self._entry = FastForward(self.registered, self._variables, resumption.sections)
        self._harvest.begin_epoch(self._entry.at_main(self._main))
        if self._entry.is_inside:
            self._harvest.muted = True
        else:
            self._trail.begin_epoch(
                self._main.count, loaders.capture(self._sources()), self._changed()
            )
            self._go_on()

    def _go_on(self) -> None:
        assert self._entry is not None
        self._harvest.step = self._step
        self.recorder.go_on()
        self._entry.let_go()
        self._entry = None

    def _epoch_over(self) -> None:
        recorder, harvest = self.recorder, self._harvest
        harvest.epoch_over(self._main.count)
        recorder.timeline.add(recorder.hooks.epoch(harvest.context()), "validation", "epoch")

    def _boundary(self) -> None:
        main, recorder = self._main, self.recorder
        assert self._variables is not None
        position = Position(main.count, self._harvest.step)
        recorder.timeline.jump(position)
        self._step = position.step
        wants = bool(self.registered.objects) and recorder.policy.wants(position)
        if not (
            wants or self._has_inner or main.count == 0
        ):  # of a loop of single steps nobody asks for their middle
            self._trail.begin_epoch(main.count, {}, {})
            self._harvest.begin_epoch(self._harvest.sources)
            return
        found = self._sources()
        self._harvest.begin_epoch(found)
        self._trail.begin_epoch(main.count, loaders.capture(found), self._changed())
        self.recorder.note_obstacles(
            of_outgrown(self.registered, self._variables, frames_to(main.code))
        )
        if wants:
            recorder.checkpoint(position, self._state)

    def _last(self) -> None:
        position = Position(self._main.count, self._harvest.step)
        if (
            self.registered.objects
            and position.epoch
            and self.recorder.policy.wants(position, last=True)
        ):
            self._trail.begin_epoch(position.epoch, {}, {})
            self.recorder.checkpoint(position, self._state, last=True)

    # ---- loops inside it

    def begins(self, inner: ActiveLoop) -> None:
        """It is about to give its first item."""
        self._harvest.begins(inner)
        if inner.phase != "train":
            self.recorder.start("validation")
        if len(self._stage.levels) != 2:
            return
        self._trail.inner, self._trail.batch = self._trail.inner + 1, 0
        if inner.phase == "train":
            self._inner, self._has_inner = inner, True
            schedule = self.recorder.options.schedule
            if schedule.every_n_steps or schedule.every_minutes or self._entry is not None:
                self._inner_variables = FrameVariables(
                    frames_to(self._main.code), state.known_parts(self.registered)
                )
        if self._entry is not None and self._entry.is_at(self._trail.inner):
            self._enter(inner, self._entry)

    def _enter(self, inner: ActiveLoop, entry: FastForward) -> None:
        assert self._inner_variables is not None
        entry.at_inner(self._main, inner, self._inner_variables)
        self._harvest.go_on(inner, self._step, entry.values())
        self._trail.batch, self._is_entered = inner.count, True
        self._go_on()

    def next_item(self, inner: ActiveLoop) -> Any:
        """Entry: the body is done with the item before, and the next one is not drawn."""
        if inner.count and not self._is_entered:
            self._harvest.iteration_over(inner)
        self._is_entered = False
        source = source_of(inner)  # before the RNG is kept: it may draw
        if inner is self._inner:
            self._ours(lambda: self._at_step(inner))
        item = next(source)
        inner.count += 1
        if inner is self._inner:
            self._trail.batch = inner.count
        self._harvest.drawn(inner, item)
        return item

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        self._harvest.over(inner)
        if inner.phase != "train":
            self.recorder.stop("validation")
        if inner is self._inner:
            self._inner, self._trail.batch = None, 0

    def _at_step(self, inner: ActiveLoop) -> None:
        trail, recorder = self._trail, self.recorder
        if self._harvest.muted or not self.registered.objects or _is_exhausted(inner):
            return  # the last of these moments is the epoch's end
        position = Position(trail.epoch, self._harvest.step)
        is_new, self._step = position.step != self._step, position.step
        is_known = is_new and trail.beginning and trail.previous and can_go_on_inside(inner)
        if is_known and recorder.policy.wants_inside(position):
            recorder.checkpoint(position, self._state)
        trail.previous = rng.capture() if recorder.policy.is_near(position) else None

    # ---- a State

    def _state(self) -> dict[str, Any]:
        frames = frames_to(self._main.code)
        variables = self._inner_variables if self._trail.batch else self._variables
        changed = {} if variables is None else variables.changed(frames)
        found = loaders.sources(self.registered, frames)
        return state.capture(self.registered, found, self._trail, changed, self._harvest.values())

    def _sources(self) -> loaders.Sources:
        return loaders.sources(self.registered, frames_to(self._main.code))

    def _changed(self) -> dict[str, Any]:
        assert self._variables is not None
        return self._variables.changed(frames_to(self._main.code))

    def _obstacles(self) -> list[Any]:
        if not self.registered.objects:
            return [of_nothing()]
        return obstacles_of(self.registered, frames_to(self._main.code))

    def _to_come(self) -> int | None:
        try:
            done = (
                0 if self.recorder.resumption is None else self.recorder.resumption.position.epoch
            )
            return len(self._main.iterable) - done
        except TypeError:
            return None

    # ---- the end

    def _end(self, status: Any, error: BaseException | None) -> None:
        if self.recorder.run.status != "running":
            return
        self._harvest.detach()
        self._stage.follower = None
        self._ours(lambda: self.recorder.finish(status, error))
        self._afterwards.listen()

    def _ours(self, act: Callable[[], Any]) -> Any:
        return recording.harmless(self.recorder, act)


def _is_exhausted(inner: ActiveLoop) -> bool:
    """Is it known that it has given all its items?"""
    try:
        return inner.count > 0 and inner.count >= len(inner.iterable)
    except TypeError:
        return False
