"""Which loops run at present, and who follows them: a recording, a replay, or nobody.

A `for` statement tells nobody that it was left. Its iterator is let go of at once when it is
(CPython clears it off the frame's stack, for `break`, `return` and exceptions alike); where
somebody still holds it, the loop is over when one around it goes on, or one of the same name
begins.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Protocol

from flor_plugins.loops import frame_variables
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.records import Phase

# What a frame does last when it leaves a loop without an exception.
_AT_WILL = ("POP_TOP", "POP_ITER", "END_FOR", "SWAP", "RETURN", "STORE", "DELETE", "COPY")


def _gone() -> None:
    """Stands in for a reference to an iterator."""


@dataclass(slots=True, eq=False)
class ActiveLoop:
    """One loop that runs. count: items it has given. source: its iterator, once it is needed.

    code: of the function whose `for` it is. is_direct: that `for` has the iterator itself.
    iteration: the iterator that it has, if that is still there. shown: items that went through
    it.
    """

    name: str
    iterable: Any
    phase: Phase
    code: CodeType
    count: int = 0
    source: Iterator[Any] | None = None
    is_over: bool = False
    is_direct: bool = True
    iteration: Callable[[], object] = _gone
    shown: int = 0


class LoopObserver(Protocol):
    """Who follows the loops of one run."""

    def next_epoch(self, main: ActiveLoop) -> Any:
        """The main loop's next item; StopIteration when there is none."""

    def begins(self, inner: ActiveLoop) -> None:
        """A loop inside the main one is about to give its first item."""

    def next_item(self, inner: ActiveLoop) -> Any:
        """An inner loop's next item; StopIteration when there is none."""

    def over(self, inner: ActiveLoop) -> None:
        """An inner loop has ended, however."""

    def left(self, main: ActiveLoop, by_error: bool | None, frame: FrameType) -> None:
        """The main loop was left before its end, at `frame`; by_error: None where nobody knows."""

    def block_over(self, error: BaseException | None) -> None:
        """The block of `with flor.checkpoints(...)` has ended, or `flor.commit()` was called."""


@dataclass(slots=True)
class LoopStack:
    """The loops of a thread. begin: asked at each main loop who follows it; None for nobody.

    levels: the loops that run, the main one first. early: what was logged between
    `flor.checkpoints` and the main loop. recent: the recording of the last main loop. alone: the
    last main loop that nobody followed.
    """

    begin: Callable[[LoopStack, ActiveLoop], LoopObserver | None]
    registered: ObjectRegistry = field(default_factory=ObjectRegistry)
    follower: LoopObserver | None = None
    levels: list[ActiveLoop] = field(default_factory=list)
    early: dict[str, Any] = field(default_factory=dict)
    recent: Any = None
    alone: ActiveLoop | None = None

    def enter(self, level: ActiveLoop) -> bool:
        """A loop takes its first item. False: nobody follows it."""
        names = [loop.name for loop in self.levels]
        if level.name in names:
            # A loop is not nested in itself: that one was left, and somebody holds its iterator.
            self._drop(names.index(level.name))
        if not self.levels:
            return self._enter_main(level)
        if self.follower is None:
            return False
        self.levels.append(level)
        self.follower.begins(level)
        return True

    def advance(self, level: ActiveLoop) -> Any:
        """The next item of a loop; those inside it are over."""
        if level not in self.levels or self.follower is None:  # its run has ended
            return next(source_of(level))
        self._drop(self.levels.index(level) + 1)
        is_main = level is self.levels[0]
        try:
            return self.follower.next_epoch(level) if is_main else self.follower.next_item(level)
        except BaseException:
            self.ended(level)
            raise

    def ended(self, level: ActiveLoop) -> None:
        """It has no more items, or its run is over."""
        if level in self.levels:
            self._drop(self.levels.index(level))

    def left(self, level: ActiveLoop, frame: FrameType) -> None:
        """Its iterator was let go of."""
        if level not in self.levels or self.follower is None:
            return
        is_main = level is self.levels[0]
        self.ended(level)
        if is_main:
            # below a generator that went over the loop, as tqdm's
            at = frame_variables.users_frame(frame) or frame
            self.follower.left(level, _by_error(level, at), at)

    def _enter_main(self, level: ActiveLoop) -> bool:
        # A loop inside a main one that nobody follows is no main one itself.
        is_inside_alone = (
            self.alone is not None and not self.alone.is_over and self.alone.name != level.name
        )
        if level.phase != "train" or is_inside_alone:
            return False
        self.follower = self.begin(self, level)
        self.registered.is_used = True
        self.alone = level if self.follower is None else None
        if self.follower is not None:
            self.levels.append(level)
        return self.follower is not None

    def _drop(self, index: int) -> None:
        """The loops from this level on are over."""
        while len(self.levels) > index:
            level = self.levels.pop()
            if self.follower is not None and self.levels:
                self.follower.over(level)


def source_of(level: ActiveLoop) -> Iterator[Any]:
    """Its iterator, made when it is first needed."""
    if level.source is None:
        level.source = iter(level.iterable)
    return level.source


def phase_of(name: str) -> Phase:
    """What a loop of that name does."""
    if name.lower().startswith("test"):
        return "test"
    return "validation" if name.lower().startswith(("val", "eval")) else "train"


def _by_error(level: ActiveLoop, frame: FrameType) -> bool | None:
    """Was it left by an exception? Read off the instruction at which its frame stands."""
    if frame.f_code is not level.code or frame.f_lasti < 0:
        return None
    name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return not name.startswith(_AT_WILL)


def users_code(frame: FrameType) -> CodeType:
    """Of the function whose `for` asks for an item."""
    found = frame_variables.users_frame(frame)
    return (found or sys._getframe(1)).f_code
