"""Trainings that take turns in one process: each goes on for an epoch while the others stand still.

A shared machine changes its speed from minute to minute. Fits that follow each other meet another machine each;
epochs that follow each other meet nearly the same one.
"""

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
    """One training in seconds. begin: to the first step. epochs: each turn but the first and the last one, which begin
    and end in the middle of an epoch. finish: after the last step, set by the training itself.
    """

    begin: float = 0.0
    epochs: list[float] = field(default_factory=list)
    finish: float = 0.0


class Stopped(Exception):
    """Another training has failed; it says why."""


class Turns:
    """Whose turn it is, of the trainings called `names`, for `rounds` turns that count and two that don't."""

    def __init__(self, names: list[str], rounds: int) -> None:
        self.spent = {name: Spent() for name in names}
        self._order = [name for order in orders(names, rounds + 2) for name in order]
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
    """The turns of one training, `steps` to an epoch: they change before the forward pass in the middle of one.

    What an epoch's end sets going is over by then. before: called at the end of each turn.
    """

    def __init__(self, turns: Turns, name: str, steps: int, before: Callable[[], Any] = lambda: None) -> None:
        self.spent = turns.spent[name]
        self._turns, self._name, self._steps, self._before = turns, name, steps, before
        self._count = 0
        self._started = 0.0

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
        if step == self._steps // 2:
            self._before()
            took = self._turns.pass_on()
            if epoch:
                self.spent.epochs.append(took)
            self._turns.wait(self._name)


def interleave(trainings: Mapping[str, Callable[[Turns], Any]], rounds: int) -> dict[str, Spent]:
    """Call each with the turns, in a thread of its own; each has to make a Turn and to train rounds + 1 epochs."""
    turns = Turns(list(trainings), rounds)
    errors: list[BaseException] = []

    def run(training: Callable[[Turns], Any]) -> None:
        try:
            training(turns)
        except Stopped:
            pass
        except BaseException as error:
            turns.fail()
            errors.append(error)

    threads = [threading.Thread(target=run, args=[one], name=name) for name, one in trainings.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return turns.spent
