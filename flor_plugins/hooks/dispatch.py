"""Calling metrics at their moments; the same object serves a recording and a replay."""

from __future__ import annotations

import traceback
from collections import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flor_plugins.errors import HookError
from flor_plugins.hooks.metric import Context, Metric
from flor_plugins.hooks.side_effects import undisturbed
from flor_plugins.records import Position
from flor_plugins.state.rng import RandomGenerator
from flor_plugins.state.tensor_trees import still

RunningHook = abc.Generator[Any, Any, Any]


@dataclass(slots=True)
class HookDispatcher:
    """The metrics of a run or a replay. `failed` hears of each hook that raised; the others go on.

    generators: those that the trainer's loaders own at present, to be put back after a hook.
    """

    metrics: Sequence[Metric] = ()
    failed: Callable[[Metric, Position, HookError], None] | None = None
    generators: Callable[[], dict[str, RandomGenerator]] | None = None
    _started: dict[str, RunningHook] = field(default_factory=dict)
    _batches: dict[str, list[Any]] = field(default_factory=dict)

    def at(self, moment: str) -> list[Metric]:
        """The metrics of that moment."""
        return [metric for metric in self.metrics if metric.at == moment]

    def epoch(self, ctx: Context) -> dict[str, Any]:
        """Values of the epoch metrics, with the weights as they stand."""
        return self._call(self.at("epoch"), ctx, Metric.__call__)

    def before_update(self, ctx: Context) -> None:
        """Run generator metrics up to their yield; ctx.step is the step that the update makes."""
        generators = [metric for metric in self.at("step") if metric.is_generator]
        self._call(generators, ctx, self._start)

    def after_update(self, ctx: Context) -> dict[str, Any]:
        """Values of the step metrics, right after the update."""
        metrics = self.at("step")
        due = [one for one in metrics if one.name in self._started or not one.is_generator]
        return self._call(due, ctx, self._finish)

    def validation_batch(self, ctx: Context) -> None:
        """Collect one validation batch."""
        for name, value in self._call(self.at("validation"), ctx, Metric.__call__).items():
            self._batches.setdefault(name, []).append(value)

    def validation_end(self, position: Position) -> dict[str, Any]:
        """Reduce what was collected and forget it."""
        collected, self._batches = self._batches, {}
        reducers = {metric.name: metric for metric in self.at("validation")}
        found: dict[str, Any] = {}
        for name, values in collected.items():
            try:
                found[name] = _reduce(reducers[name].reduce, values)
            except Exception as error:
                self._report(reducers[name], position, error)
        return found

    def _start(self, metric: Metric, ctx: Context) -> None:
        started = metric(ctx)
        next(started)
        self._started[metric.name] = started

    def _finish(self, metric: Metric, ctx: Context) -> Any:
        started = self._started.pop(metric.name, None)
        return metric(ctx) if started is None else _last_value(started, metric)

    def _call(
        self, metrics: Sequence[Metric], ctx: Context, call: Callable[[Metric, Context], object]
    ) -> dict[str, Any]:
        position = Position(ctx.epoch, ctx.step)
        found: dict[str, Any] = {}
        generators = self.generators() if metrics and self.generators is not None else {}
        for metric in metrics:
            try:
                with undisturbed(ctx.model, metric, position, generators):
                    value = call(metric, ctx)
                    found.update(still({metric.name: value}))  # it may be a part of what is trained
            except Exception as error:
                found.pop(metric.name, None)
                self._report(metric, position, error)
        return found

    def _report(self, metric: Metric, position: Position, error: Exception) -> None:
        if self.failed is None:
            raise error
        if not isinstance(error, HookError):
            frames = traceback.extract_tb(error.__traceback__)
            file = metric.function.__code__.co_filename
            place = next((frame for frame in frames if frame.filename == file), frames[-1])
            wrapped = HookError(
                f"{place.filename}:{place.lineno}: metric {metric.name!r} raised at {position}: "
                f"{type(error).__name__}: {error}"
            )
            wrapped.__cause__ = error
            error = wrapped
        self.failed(metric, position, error)


def _last_value(generator: RunningHook, metric: Metric) -> Any:
    try:
        next(generator)
    except StopIteration as stop:
        return stop.value
    raise HookError(
        f"{metric.place}: metric {metric.name!r} yields twice; one yield marks the update"
    )


def _reduce(how: str | Callable[[Sequence[Any]], Any], values: list[Any]) -> Any:
    if callable(how):
        return how(values)
    total = torch.as_tensor(values[0])
    for value in values[1:]:
        total = total + torch.as_tensor(value)
    return total if how == "sum" else total / len(values)
