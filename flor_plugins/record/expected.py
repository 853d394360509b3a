"""What a recording that the script itself begins is to be called: said by the process that started the script."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from flor_plugins.records import Launch


@dataclass(frozen=True, slots=True)
class Expected:
    """launch: how the training was started. name, project: of its runs, where the script does not say."""

    launch: Launch
    name: str | None = None
    project: str | None = None


_expected: ContextVar[Expected | None] = ContextVar("flor_expected", default=None)


def expect(launch: Launch, name: str | None = None, project: str | None = None) -> None:
    """From now on, trainings of this process that record themselves were started so."""
    _expected.set(Expected(launch, name, project))


def expected() -> Expected | None:
    """What was said; None in a process that the user has started."""
    return _expected.get()
