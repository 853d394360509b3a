"""`enumerate(flor.loop(...))`: a counter outside of the loop, which goes on as in a State."""

from __future__ import annotations

import ctypes
import dis
import gc
from types import FrameType
from typing import Any

from flor_plugins.loops.active_loops import ActiveLoop


def is_direct(frame: FrameType) -> bool:
    """Tell whether a `for` asks for the iterator, and no function that was given the loop."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] == "GET_ITER"


def can_go_on_inside(level: ActiveLoop) -> bool:
    """Tell whether nothing around the loop begins anew, where one goes on in its middle.

    Only `enumerate` is known.
    """
    return level.is_direct or _counter(level) is not None


def go_on(level: ActiveLoop, count: int) -> None:
    """The next item is number `count`, from 0, for an `enumerate` around the loop, too."""
    counter = None if level.is_direct or count == level.shown else _counter(level)
    if counter is not None:
        # Objects/enumobject.c: behind the head of every object comes the index of the next item.
        index = ctypes.c_ssize_t.from_address(id(counter) + object.__basicsize__)
        if index.value == counter.__reduce__()[1][1]:
            index.value += count - level.shown
    level.shown = count


def _counter(level: ActiveLoop) -> Any:
    iteration = level.iteration()
    return next((one for one in gc.get_referrers(iteration) if _counts(one, iteration)), None)


def _counts(one: Any, iteration: Any) -> bool:
    return type(one) is enumerate and one.__reduce__()[1][0] is iteration
