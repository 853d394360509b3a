"""Meeting a hand-written loop at its first item: in a worker process to replay it, elsewhere
to leave it alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flor_plugins.hooks import log
from flor_plugins.loops.active_loops import ActiveLoop, LoopObserver, LoopStack, stage
from flor_plugins.loops.registry import ObjectRegistry

StartedLoop = tuple[LoopStack, ActiveLoop]


def intercept(arrived: Callable[[StartedLoop, Callable[[], Any]], Any], *, inject: bool) -> None:
    """From now on every recorded main loop of this process goes to `arrived((stage, loop), go)`.

    It returns who follows the loop, or None. inject: of no meaning here: a script names its
    loops itself. Called once."""

    def begin(on: LoopStack, main: ActiveLoop) -> LoopObserver | None:
        return arrived((on, main), lambda: None)

    stage().begin = begin


def listen(begins: Callable[[ObjectRegistry], Any], *, is_recorded: bool) -> None:
    """From now on `begins(what was registered)` is called when a main loop of this thread takes
    its first item.

    is_recorded: else nobody follows the loops, and `flor.log` does nothing, as in a script
    without any of this."""
    on = stage()
    original = on.begin

    def begin(on: LoopStack, main: ActiveLoop) -> LoopObserver | None:
        begins(on.registered)
        if is_recorded:
            return original(on, main)
        log.connect(None)
        return None

    on.begin = begin


def train_alone() -> None:
    """From now on no script of this process trains with others: what it is told is that it
    is alone.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        del os.environ[name]  # `accelerate launch` says so what it was told to use
