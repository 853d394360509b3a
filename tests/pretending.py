"""A training that is made up: a clock, what a checkpoint costs, and what it takes on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy
from flor_plugins.recorder.options import CheckpointSchedule
from flor_plugins.records import Position

START = Position(0, 0)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def made(
    every_n_epochs: int = 1,
    every_n_steps: int | None = None,
    every_minutes: float | None = None,
    overhead: float | None = 0.02,
    clock: Callable[[], float] | None = None,
    **budget: Any,
) -> CheckpointPolicy:
    asked = CheckpointSchedule(every_n_epochs, every_n_steps, every_minutes, overhead)
    return CheckpointPolicy(asked, clock=clock or Clock(), **budget)


@dataclass
class Training:
    """Epochs of `epoch_s`, each checkpoint costs `costs` seconds and takes its bytes on disk at
    once.

    light: the share of those seconds that one without the optimizer's state costs.
    """

    asked: CheckpointPolicy
    clock: Clock
    weights: int = 0
    optimizer: int = 0
    taken: list[Position] = field(default_factory=list)
    full: list[Position] = field(default_factory=list)
    used: int = 0
    light: float = 1.0

    def boundary(self, position: Position, cost: float = 0.0, *, last: bool = False) -> bool:
        if not self.asked.wants(position, last=last):
            return False
        self.take(position, cost)
        return True

    def take(self, position: Position, cost: float = 0.0) -> None:
        is_full = self.asked.takes_optimizer(position)
        optimizer = self.optimizer if is_full and position.step else 0
        self.asked.saved(position)
        cost *= 1.0 if is_full else self.light
        self.clock.now += cost
        self.asked.spent(cost)
        self.asked.wrote(position, self.weights, optimizer)
        self.used += self.weights + optimizer
        self.taken.append(position)
        self.full += [position] if is_full else []

    def run(
        self, epochs: int, epoch_s: float = 0.0, costs: Iterator[float] | None = None
    ) -> Training:
        self.boundary(START, next(costs) if costs else 0.0)
        for epoch in range(1, epochs + 1):
            self.clock.now += epoch_s
            self.boundary(
                Position(epoch, 10 * epoch), next(costs) if costs else 0.0, last=epoch == epochs
            )
        return self


def training(
    weights: int = 0, optimizer: int = 0, expects: int | None = None, **given: Any
) -> Training:
    clock = Clock()
    asked = made(clock=clock, **given)
    asked.expects(expects)
    return Training(asked, clock, weights, optimizer)


def same(cost: float) -> Iterator[float]:
    while True:
        yield cost
