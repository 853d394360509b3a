"""What recorder and replayer ask of a framework's package, and the only place that finds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from flor_plugins.records import Launch, Position

PACKAGES = {
    "lightning": "flor_plugins.lightning",
    "hf": "flor_plugins.hf",
    "loop": "flor_plugins.loops",
}
Proceed = Callable[[], object]  # goes on with the user's own call of fit or train
TrainerT = TypeVar("TrainerT", contravariant=True)
SessionT = TypeVar("SessionT", contravariant=True)


class Adapter(Protocol):
    """A framework's module `intercept`: where its trainings are met."""

    def intercept(self, arrived: Callable[[object, Proceed], object], *, inject: bool) -> None:
        """Send every recorded training of this process to `arrived(trainer, go)`."""

    def train_alone(self) -> None:
        """Let no training of this process share its work with other processes."""


class TrainerAdapter(Adapter, Protocol):
    """The same of a framework that has a trainer, which takes a callback."""

    def train(self, built: object, callback: Any) -> None:
        """Train what a recipe's function returned, with the callback on, if there is one."""

    def put_on(self, callback: Callable[[], Any]) -> None:
        """Give every trainer of this process that has no FlorCallback one."""


class RecordingCallback(Protocol):
    """A FlorCallback, as far as the core sets it up. launch: how the process was started."""

    launch: Launch | None


class CallbackFactory(Protocol):
    """The class FlorCallback of a framework."""

    def __call__(self, name: str | None = None, *, project: str | None = None) -> RecordingCallback:
        """Make the callback of a run."""
        ...


class LoopFollower(Protocol[TrainerT]):
    """Replays a hand-written loop whose body only the script can run."""

    is_done: bool
    wants_again: bool

    def begin_again(self, trainer: TrainerT) -> None:
        """Go on: the script was started once more, and has come to the same loop."""


class ReplayDriver(Protocol[TrainerT, SessionT]):
    """A framework's module `replay_driver`: how a replay moves a trainer that the script built."""

    def drive(
        self, trainer: TrainerT, go: Proceed, session: SessionT
    ) -> LoopFollower[TrainerT] | None:
        """Do all passes of the session's task, or return who does them as the script runs."""

    def pass_over(
        self, trainer: TrainerT, go: Proceed, sections: Mapping[str, Any], end: Position
    ) -> object:
        """Leave a training as if it had been done: restore its last State, make no step."""


def callback_class(framework: str) -> CallbackFactory:
    """Return a framework's FlorCallback. Raises MissingDependency where it is not installed."""
    return _module(framework).FlorCallback


def adapter_of(framework: str) -> Adapter:
    """Return where trainings of a framework are met. Raises MissingDependency."""
    return cast(Adapter, _module(framework, ".intercept"))


def trainer_adapter_of(framework: str) -> TrainerAdapter:
    """Return the same of a framework that has a trainer. Raises MissingDependency."""
    return cast(TrainerAdapter, _module(framework, ".intercept"))


def replay_driver_of(framework: str) -> ReplayDriver[object, object]:
    """Return a framework's replay driver. Raises MissingDependency."""
    return cast("ReplayDriver[object, object]", _module(framework, ".replay_driver"))


def _module(framework: str, name: str = "") -> ModuleType:
    return import_module(PACKAGES[framework] + name)
