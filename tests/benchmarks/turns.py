"""Trainings that take turns in one process: each goes on for an epoch, or a part of one, while
the others stand still.

A shared machine changes its speed from second to second. Fits that follow each other meet
another machine each; what takes turns of a few seconds meets nearly the same one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks.ratios import orders


@dataclass(slots=True)
class Spent:
    """One training in seconds. begin: to the first step. epochs: from the middle of each to
    that of the next; what is before the first and after the last middle does not count. finish:
    after the last step, set by the training itself."""

    begin: float = 0.0
    epochs: list[float] = field(default_factory=list)
    finish: float = 0.0


class Stopped(Exception):
    """Another training has failed; it says why."""


class Turns:
    """Whose turn it is, of the trainings called `names`, for `rounds` epochs that count;
    each has `parts` turns.
    """

    def __init__(self, names: list[str], rounds: int, parts: int = 1) -> None:
        self.spent = {name: Spent() for name in names}
        self.parts = parts
        self._order = [name for order in orders(names, (rounds + 1) * parts + 1) for name in order]
        self._changed = threading.Condition()
        self._failed = False
        self._begun = 0.0

    def wait(self, name: str) -> None:
        """Stand still until it is this one's turn. Raises Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._order[:1] == [name])
            if self._failed:
                raise Stopped
            self._begun = time.perf_counter()

    def pass_on(self) -> float:
        """The next one's turn; returns how long this one was."""
        with self._changed:
            took = time.perf_counter() - self._begun
            self._order.pop(0)
            self._changed.notify_all()
            return took

    def fail(self) -> None:
        """Nobody shall wait for this one."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()


class Turn:
    """The turns of one training, `steps` to an epoch: they change before a forward pass, first
    in the middle of one.

    Not at its beginning, if it has an odd number of turns of two steps or more: what an epoch's
    end sets going in the training's own process is over by then. What goes on in others must be
    held: rest is called at the end of each turn, go_on at the beginning of the next one.
    middle: called in the middle of each epoch, before that."""

    def __init__(
        self,
        turns: Turns,
        name: str,
        steps: int,
        *,
        middle: Callable[[], Any] = lambda: None,
        rest: Callable[[], Any] = lambda: None,
        go_on: Callable[[], Any] = lambda: None,
    ) -> None:
        self.spent = turns.spent[name]
        self._turns, self._name, self._steps = turns, name, steps
        self._at_middle, self._rest, self._go_on = middle, rest, go_on
        self._middle = steps // 2
        self._changes = {
            (self._middle + part * steps // turns.parts) % steps for part in range(turns.parts)
        }
        self._count = 0
        self._started = self._sum = 0.0

    def run(self, model: torch.nn.Module, train: Callable[[], Any]) -> None:
        """Train, turn by turn."""
        handle = model.register_forward_pre_hook(self._tick)
        try:
            self._turns.wait(self._name)
            self._started = time.perf_counter()
            train()
            self._turns.pass_on()
        except BaseException:
            self._turns.fail()
            raise
        finally:
            handle.remove()

    def _tick(self, model: torch.nn.Module, _: Any) -> None:
        if not model.training:
            return
        epoch, step = divmod(self._count, self._steps)
        if self._count == 0:
            self.spent.begin = time.perf_counter() - self._started
        self._count += 1
        if step not in self._changes:
            return
        if step == self._middle:
            self._at_middle()
        self._rest()
        try:
            self._sum += self._turns.pass_on()
            if step == self._middle:
                if epoch:
                    self.spent.epochs.append(self._sum)
                self._sum = 0.0
            self._turns.wait(self._name)
        finally:
            self._go_on()


def interleave(
    trainings: Mapping[str, Callable[[Turns], Any]], rounds: int, parts: int = 1
) -> dict[str, Spent]:
    """Call each with the turns, in a thread of its own; each has to make a Turn and to train
    rounds + 1 epochs.
    """
    turns = Turns(list(trainings), rounds, parts)
    errors: list[BaseException] = []

    def run(training: Callable[[Turns], Any]) -> None:
        try:
            training(turns)
        except Stopped:
            pass
        except BaseException as error:
            turns.fail()
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=[one], name=name) for name, one in trainings.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return turns.spent
