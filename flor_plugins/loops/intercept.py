"""Meeting a hand-written loop at its first item: to replay it, or to leave it alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flor_plugins.adapter import Proceed
from flor_plugins.hooks import log
from flor_plugins.loops.active_loops import ActiveLoop, LoopObserver, LoopStack
from flor_plugins.loops.api import loop_stack
from flor_plugins.loops.registry import ObjectRegistry

StartedLoop = tuple[LoopStack, ActiveLoop]


def intercept(arrived: Callable[[StartedLoop, Proceed], Any], *, inject: bool) -> None:
    """From now on every recorded main loop of this process goes to `arrived((stage, loop), go)`.

    It returns who follows the loop, or None. inject: of no meaning here: a script names its
    loops itself. Called once.
    """

    def begin(on: LoopStack, main: ActiveLoop) -> LoopObserver | None:
        return arrived((on, main), lambda: None)

    loop_stack().begin = begin


def listen(begins: Callable[[ObjectRegistry], Any], *, is_recorded: bool) -> None:
    """From now on `begins(registered)` is called when a main loop of this thread begins.

    is_recorded: else nobody follows the loops, and `flor.log` does nothing, as in a script
    without any of this.
    """
    on = loop_stack()
    original = on.begin

    def begin(on: LoopStack, main: ActiveLoop) -> LoopObserver | None:
        begins(on.registered)
        if is_recorded:
            return original(on, main)
        log.connect(None)
        return None

    on.begin = begin


def train_alone() -> None:
    """From now on no script of this process trains with others: it is told that it is alone."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        del os.environ[name]  # `accelerate launch` says so what it was told to use
