"""What the callbacks of both frameworks have in common: a run from its begin to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

from flor_plugins.recorder.distributed import begin_together
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.recorder import Recorder, harmless
from flor_plugins.records import Framework, Launch, RunStatus
from flor_plugins.state.method_wrapper import MethodWrapper


class Collector(Protocol):
    """Wraps what values pass through, and takes the wrappers off again."""

    def detach(self) -> None:
        """Leave the trainer as it was found."""


T = TypeVar("T")
CollectorT = TypeVar("CollectorT", bound=Collector)


class RunCallback(Generic[CollectorT]):
    """A callback that records one run for each training that it is on."""

    def __init__(self, options: RecordOptions) -> None:
        self.options = options
        self.launch: Launch | None = None
        self._recorder: Recorder | None = None
        self._collector: CollectorT | None = None
        self._wrapped = MethodWrapper()

    def _begin(
        self,
        framework: Framework,
        params: Callable[[], Mapping[str, Any]],
        parameters: Callable[[], Collection[str]],
        attach: Callable[[Recorder], None],
    ) -> None:
        """Begin a run, if one can be recorded; attach: wraps the trainer's methods."""
        self._collector = None  # not that of an earlier training
        recorder = begin_together(framework, self.options, params, self.launch, parameters)
        self._recorder = recorder
        if recorder is None:
            return
        try:
            attach(recorder)
        except Exception as error:  # a version of the framework that is built otherwise
            recorder.warn(f"this Trainer can't be recorded: {type(error).__name__}: {error}")
            self._end("failed", error)
            self._collector = self._recorder = None

    def _is_recording(self) -> bool:
        return self._recorder is not None and self._recorder.run.status == "running"

    def _end(self, status: RunStatus, error: BaseException | None) -> None:
        if self._recorder is not None and self._is_recording():
            self._detach()
            self._guard(self._recorder.finish, status, error)

    def _detach(self) -> None:
        self._wrapped.undo()
        if self._collector is not None:
            self._collector.detach()

    def _feed(self, act: Callable[..., object], *args: object) -> None:
        """Call a method of the collector, if there is one."""
        if self._collector is not None:
            self._guard(act, self._collector, *args)

    def _guard(self, act: Callable[..., T], *args: object) -> T | None:
        """Do something of ours; a failure is a gap of the run."""
        assert self._recorder is not None
        return harmless(self._recorder, act, *args)
