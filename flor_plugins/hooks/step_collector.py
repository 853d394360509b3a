"""What the collectors of the three adapters have in common.

These are the values of the update that is being made, the fingerprints of its batches, and the
moments of step hooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Context
from flor_plugins.records import Phase, Run
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.method_wrapper import Method
from flor_plugins.state.tensor_trees import still
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH
from flor_plugins.store.metrics.timeline import Timeline


class GuardedCall(Protocol):
    """Runs a part of ours: where it fails, the training goes on."""

    def __call__(self, act: Callable[..., object], /, *args: object) -> Any:
        """Call it with these arguments."""


class ValueReceiver(Protocol):
    """What values go to: a recording or a replay."""

    timeline: Timeline
    hooks: HookDispatcher

    @property
    def run(self) -> Run:
        """The run that is recorded or replayed."""
        ...


class StepCollector(ABC):
    """Feeds a Timeline with the values of updates, and calls step hooks at their moments.

    losses: of the micro-batches of the present update, as shares of its mean. batch: the one
    that is being computed. is_first_batch: is the next batch the first of an epoch?
    """

    def __init__(self, receiver: ValueReceiver, guarded: GuardedCall) -> None:
        self.timeline, self.hooks = receiver.timeline, receiver.hooks
        self.run, self.guarded = receiver.run.name, guarded
        self.losses: list[torch.Tensor] = []
        self.batch: object = None
        self.is_first_batch = False
        self._checksums: list[torch.Tensor | int] = []

    @abstractmethod
    def trained(self) -> Context:
        """Return the context without its position: model, optimizer, device, validation data."""

    def context(self, **fields: Any) -> Context:
        """Return a hook's context at the present position."""
        epoch, step = self.timeline.position.epoch, self.timeline.position.step
        return replace(self.trained(), **{"run": self.run, "epoch": epoch, "step": step, **fields})

    # ---- an update

    def see_batch(self, batch: object) -> None:
        """Count a batch of the update."""
        self.batch = batch
        self.add_checksum(batch, fingerprints.checksum(batch))

    def add_checksum(self, batch: object, checksum: torch.Tensor | int) -> None:
        """Each batch counts by its place in the update.

        No synchronisation but for one batch an epoch.
        """
        if self.is_first_batch:
            self.is_first_batch = False
            self.timeline.add_coming({FIRST_BATCH: fingerprints.sha256(batch)})
        self._checksums.append(checksum)

    def before_update(self, optimizer: Optimizer, prefix: str = "") -> None:
        """Gradients are complete; weights and learning rate are those before the update."""
        for index, group in enumerate(optimizer.param_groups):
            name = "lr" if index == 0 else f"lr.{index}"
            self.timeline.add_coming(still({prefix + name: group["lr"]}))
        if self.hooks.at("step"):
            self.hooks.before_update(self._update_context(optimizer))

    def after_update(self, optimizer: Optimizer) -> None:
        """The update is made; gradients are still there."""
        if self.hooks.at("step"):
            self.timeline.add_coming(self.hooks.after_update(self._update_context(optimizer)))

    def loss(self) -> torch.Tensor | None:
        """Return the loss of the update so far."""
        if len(self.losses) > 1:
            return torch.stack(self.losses).sum()
        return self.losses[0] if self.losses else None

    def updated(self, step: int, values: Mapping[str, Any], loss: torch.Tensor | None) -> None:
        """`step` updates are done: open that position with the values of the last one."""
        values = {**values, **self.timeline.take_coming()}
        if loss is not None:
            values["loss"] = loss
        if self._checksums:
            values[BATCH] = fingerprints.by_place(self._checksums)
        self.losses, self._checksums = [], []
        self.timeline.step(step, values)

    def forget_batches(self) -> None:
        """What was pending belongs to no update."""
        self.losses, self.batch, self._checksums = [], None, []

    def _update_context(self, optimizer: Optimizer) -> Context:
        # Of the update that is being made; the timeline still stands at the one before.
        step = self.timeline.position.step + 1
        return self.context(optimizer=optimizer, batch=self.batch, loss=self.loss(), step=step)

    # ---- what user code logs

    def log_coming(self, name: str, value: object) -> None:
        """`flor.log` while an update is being made: the value belongs to it."""
        self.timeline.add_coming(still({name: value}))

    def in_phase(self, phase: Phase) -> Method:
        """While the wrapped method runs, what `flor.log` brings belongs to that phase."""

        def wrapper(original: Method, *args: Any, **kwargs: Any) -> Any:
            with self.timeline.during(phase):
                return original(*args, **kwargs)

        return wrapper
