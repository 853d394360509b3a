"""`flor.loop` and `flor.checkpoints`: what a hand-written training says."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, TypeVar

from flor_plugins.hooks import log
from flor_plugins.loops.active_loops import (
    ActiveLoop,
    LoopStack,
    phase_of,
    source_of,
    users_code,
)
from flor_plugins.loops.callback import begin
from flor_plugins.loops.enumerate_counter import is_direct
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.recorder.options import OptionKeywords, options_of

T = TypeVar("T")

OPTIONS = ("name", *OptionKeywords.__annotations__)
_stack: ContextVar[LoopStack | None] = ContextVar("flor_loop_stack", default=None)


def loop_stack() -> LoopStack:
    """Return the loops of this thread."""
    found = _stack.get()
    if found is None:
        found = LoopStack(begin)
        _stack.set(found)
    return found


class loop(Generic[T]):  # noqa: N801  a verb of the public face
    """A loop of the training: `for epoch in flor.loop("epoch", range(n))`.

    The outermost one after `flor.checkpoints` is the main loop: it is one run, and each of its
    iterations an epoch. Loops inside it, in functions that its body calls as well, are training
    loops (steps), or of validation or test where their name begins with val, eval or test. An
    iterable is asked for one item at a time, as `for` would.
    """

    def __init__(self, name: str, iterable: Iterable[T]) -> None:
        self.name, self.iterable = name, iterable

    def __iter__(self) -> Iterator[T]:
        frame = sys._getframe(1)
        level = ActiveLoop(
            self.name,
            self.iterable,
            phase_of(self.name),
            users_code(frame),
            is_direct=is_direct(frame),
        )
        return LoopIterator(loop_stack(), level)

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]


class LoopIterator(Iterator[T]):
    """One pass over a loop. That it is let go of says that the loop was left."""

    def __init__(self, stack: LoopStack, level: ActiveLoop) -> None:
        self._stack, self._level = stack, level
        level.iteration = weakref.ref(self)
        self._is_followed: bool | None = None

    def __next__(self) -> T:
        level = self._level
        if level.is_over:
            raise StopIteration
        try:
            if self._is_followed is None:
                self._is_followed = self._stack.enter(level)
            if not self._is_followed:
                return next(source_of(level))
            item = self._stack.advance(level)
        except BaseException:
            level.is_over = True
            raise
        level.shown += 1
        return item

    def __del__(self) -> None:
        if self._is_followed and not self._level.is_over:
            self._stack.left(self._level, sys._getframe(1))
        elif not self._is_followed:
            self._level.is_over = True


class checkpoints:  # noqa: N801  a verb of the public face
    """Says of what a State consists: `flor.checkpoints(net, optimizer, scheduler=schedule)`.

    Modules, optimizers, schedulers and whatever else has state_dict and load_state_dict; random
    generators and data loaders; lists, dicts, sets, arrays and tensors, whose content is kept;
    environments (gymnasium's) and objects of your own, whose plain attributes are, and those of
    such objects inside them. Objects without a name are called by class and number; `model` or
    `net` is what hooks see as the model, else the first module. val_dataloader: what hooks see
    under that name. The options are those of a FlorCallback: name, project, tags, metrics,
    every_n_epochs, every_n_steps, every_minutes, overhead, disk, resume, store.

    Can be used as `with flor.checkpoints(...):`; the run ends with the block at the latest.
    Raises FlorError for an object of which no State can be taken, ValueError and HookError for
    options.
    """

    def __init__(self, *objects: object, **named: Any) -> None:
        stack = self._stack = loop_stack()
        if stack.follower is None and stack.registered.is_used:
            # a training was followed before: these are the next one's
            stack.registered = ObjectRegistry()
        given = {name: named.pop(name) for name in OPTIONS if name in named}
        options_of(**given)
        registered = stack.registered
        registered.val_dataloader = named.pop("val_dataloader", registered.val_dataloader)
        registered.add(objects, named)
        registered.options |= given
        if stack.follower is None:
            log.connect(stack.early.__setitem__)

    def __enter__(self) -> checkpoints:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        following = self._stack.follower or self._stack.recent
        if following is not None:
            following.block_over(error)
        self._stack.registered = ObjectRegistry()


checkpointing = checkpoints  # FlorDB's name for it


def commit() -> None:
    """End the present run, if one is recorded; else it ends with its main loop."""
    follower = loop_stack().follower
    if follower is not None:
        follower.block_over(None)
