"""`flor.loop` and `flor.checkpoints`: what a hand-written training says."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from flor_plugins.hooks import log
from flor_plugins.loops.active_loops import (
    ActiveLoop,
    LoopStack,
    phase_of,
    source_of,
    stage,
    users_code,
)
from flor_plugins.loops.enumerate_counter import is_direct
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.recorder.options import OptionKeywords, options_of

T = TypeVar("T")

OPTIONS = ("name", *OptionKeywords.__annotations__)


class loop(Generic[T]):  # a verb of the public face; `for` makes an object of it
    """A loop of the training: `for epoch in flor.loop("epoch", range(n))`.

    The outermost one after `flor.checkpoints` is the main loop: it is one run, and each of its
    iterations an epoch. Loops inside it, in functions that its body calls as well, are training
    loops (steps), or of validation or test where their name begins with val, eval or test. An
    iterable is asked for one item at a time, as `for` would."""

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
        return LoopIterator(stage(), level)

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]


class LoopIterator(Iterator[T]):
    """One pass over a loop. That it is let go of says that the loop was left."""

    def __init__(self, on: LoopStack, level: ActiveLoop) -> None:
        self._stage, self._level = on, level
        level.iteration = weakref.ref(self)
        self._is_followed: bool | None = None

    def __next__(self) -> T:
        level = self._level
        if level.is_over:
            raise StopIteration
        try:
            if self._is_followed is None:
                self._is_followed = self._stage.enter(level)
            if not self._is_followed:
                return next(source_of(level))
            item = self._stage.advance(level)
        except BaseException:
            level.is_over = True
            raise
        level.shown += 1
        return item

    def __del__(self) -> None:
        if self._is_followed and not self._level.is_over:
            self._stage.left(self._level, sys._getframe(1))
        elif not self._is_followed:
            self._level.is_over = True


class checkpoints:  # see `loop`
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
    options."""

    def __init__(self, *objects: Any, **named: Any) -> None:
        on = self._stage = stage()
        if (
            on.follower is None and on.calls
        ):  # a training was followed before: these are the next one's
            on.registered, on.options, on.calls = ObjectRegistry(), {}, 0
        given = {name: named.pop(name) for name in OPTIONS if name in named}
        options_of(**given)
        on.registered.val_dataloader = named.pop("val_dataloader", on.registered.val_dataloader)
        on.registered.add(objects, named)
        on.options |= given
        if on.follower is None:
            log.connect(lambda name, value: on.early.update({name: value}))

    def __enter__(self) -> checkpoints:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        on = self._stage
        following = on.follower or on.recent
        if following is not None:
            following.block_over(error)
        on.registered, on.options = ObjectRegistry(), {}


checkpointing = checkpoints  # FlorDB's name for it


def commit() -> None:
    """The present run ends here, if one is recorded; without this call it ends with its main
    loop.
    """
    follower = stage().follower
    if follower is not None:
        follower.block_over(None)
