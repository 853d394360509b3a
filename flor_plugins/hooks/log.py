"""`flor.log`: a value at the present position of whatever runs: a recording or a replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_sink: ContextVar[Callable[[str, Any], None] | None] = ContextVar("flor_sink", default=None)


def log(name: str, value: T) -> T:
    """Log a value at the present position of the training that is being recorded; returns the
    value.

    value: int, float, bool, str, nested lists, numpy or torch arrays of them. In a replay the
    value is recomputed and compared. Outside a recording or a replay this does nothing, so
    that the same script runs without the callback, too.
    """
    sink = _sink.get()
    if sink is not None:
        sink(name, value)
    return value


def connect(sink: Callable[[str, Any], None] | None) -> None:
    """From now on `log` feeds `sink`, in this context; None disconnects."""
    _sink.set(sink)


@contextmanager
def connected(sink: Callable[[str, Any], None]) -> Iterator[None]:
    """`log` feeds `sink` within the block."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
