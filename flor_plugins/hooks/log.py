"""`flor.log`: a value at the present position of whatever runs: a recording or a replay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread, current_thread
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
Sink = Callable[[str, Any], object]

_sink: ContextVar[Sink | None] = ContextVar("flor_sink")
# What `log` feeds in each thread that trains. A new thread has an empty context: it asks here.
_sinks: WeakKeyDictionary[Thread, Sink] = WeakKeyDictionary()


def log(name: str, value: T) -> T:
    """Log a value at the present position of the training that is recorded; return the value.

    value: int, float, bool, str, nested lists, numpy or torch arrays of them. In a replay the
    value is recomputed and compared. Outside a recording or a replay this does nothing, so
    that the same script runs without the callback, too. A value from a thread that the script
    has started belongs to the position at which it arrives.
    """
    sink = _sink.get(_feed_the_only_training)
    if sink is not None:
        sink(name, value)
    return value


def connect(sink: Sink | None) -> None:
    """From now on `log` feeds `sink`, in this context; None disconnects."""
    _sink.set(sink)
    _note(sink)


@contextmanager
def connected(sink: Sink) -> Iterator[None]:
    """`log` feeds `sink` within the block."""
    token, before = _sink.set(sink), _sinks.get(current_thread())
    _note(sink)
    try:
        yield
    finally:
        _sink.reset(token)
        _note(before)


def _note(sink: Sink | None) -> None:
    if sink is None:
        _sinks.pop(current_thread(), None)
    else:
        _sinks[current_thread()] = sink


def _feed_the_only_training(name: str, value: object) -> None:
    if current_thread() in _sinks:  # an empty context in a thread that trains was made on purpose
        return
    sinks = [sink for thread, sink in list(_sinks.items()) if thread.is_alive()]
    if len(sinks) == 1:
        sinks[0](name, value)
    elif sinks:
        warnings.warn(
            f"flor.log({name!r}) was called in a thread of its own while {len(sinks)} trainings "
            f"are being recorded: the value is left out. Start the thread with "
            f"contextvars.copy_context().run, so that it is known to which it belongs",
            RuntimeWarning,
            stacklevel=3,
        )
