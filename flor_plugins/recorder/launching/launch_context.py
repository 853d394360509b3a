"""How a recording that the script itself begins is to be named.

The process that started the script says so.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from flor_plugins.records import Launch


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """How a training was started, and the names of its runs where the script gives none.

    begun: ids of the runs that came of it.
    """

    launch: Launch
    name: str | None = None
    project: str | None = None
    begun: list[str] = field(default_factory=list)


_expected: ContextVar[LaunchContext | None] = ContextVar("flor_expected", default=None)


def expect(launch: Launch, name: str | None = None, project: str | None = None) -> None:
    """From now on, trainings of this process that record themselves were started so."""
    _expected.set(LaunchContext(launch, name, project))


def expected() -> LaunchContext | None:
    """What was said; None in a process that the user has started."""
    return _expected.get()


def expected_runs() -> tuple[str, ...]:
    """The ids of the runs that came of it so far."""
    said = _expected.get()
    return () if said is None else tuple(said.begun)
