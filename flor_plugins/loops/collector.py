"""Every value of a hand-written loop, once, at its true position.

An epoch is an iteration of the main loop, a step an update of a registered optimizer (torch's
own hooks tell of it); where no optimizer is registered, an iteration of the innermost training
loop. What is logged in an inner training loop belongs to the update that its iteration makes,
what is logged outside of one to the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flor_plugins.hooks import log
from flor_plugins.hooks.metric import Context
from flor_plugins.hooks.step_collector import GuardedCall, StepCollector, ValueReceiver
from flor_plugins.loops import loaders
from flor_plugins.loops.active_loops import ActiveLoop
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.records import Phase
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.rng import RandomGenerator
from flor_plugins.state.tensor_trees import still

Values = dict[Phase, dict[str, Any]]


@dataclass(slots=True)
class _OpenEpoch:
    """first_step: updates before the epoch. values: logged ones that have no row yet."""

    first_step: int = 0
    values: Values = field(default_factory=dict)


class MetricCollector(StepCollector):
    """Feeds a Timeline from the loops of a run, and calls hooks at their moments.

    muted: nothing is counted or logged: what runs only leads to a State that is restored then.
    sources: what the last epoch had to draw from at its beginning.
    """

    def __init__(
        self, registered: ObjectRegistry, receiver: ValueReceiver, guarded: GuardedCall
    ) -> None:
        super().__init__(receiver, guarded)
        self.registered, self.muted, self.step = registered, False, 0
        self.sources: loaders.Sources = {}
        self._optimizers = list(registered.optimizers().items())
        self._handles: list[RemovableHandle] = []
        self._inner: list[ActiveLoop] = []
        # inner loops in whose present iteration another training loop has begun
        self._parents: set[ActiveLoop] = set()
        self._is_updated = False  # has this iteration made an update?
        self._epoch = _OpenEpoch()
        self.hooks.generators = self._generators

    def attach(self) -> None:
        """Hear of every update and of what is logged. Call once, when the main loop begins."""
        for index, (name, optimizer) in enumerate(self._optimizers):
            before = partial(self._before_step, "" if index == 0 else f"{name}/")
            self._handles.append(optimizer.register_step_pre_hook(before))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        log.connect(self.log)

    def detach(self) -> None:
        """Leave optimizers and `flor.log` as they were found."""
        while self._handles:
            self._handles.pop().remove()
        log.connect(None)

    def begin_epoch(self, sources: loaders.Sources) -> None:
        """The main loop is about to give an item."""
        self.sources, self.is_first_batch, self._is_updated = sources, True, False
        self._inner, self._epoch = [], _OpenEpoch(self.step)
        self.forget_batches()

    def trained(self) -> Context:
        """Return the context without its position."""
        model = self.registered.model
        parameter = next(model.parameters(), None)
        return Context(
            model,
            optimizer=self._optimizers[0][1] if self._optimizers else None,
            make_val_dataloader=self._val_dataloader,
            device=torch.device("cpu") if parameter is None else parameter.device,
        )

    # ---- called as the loops go

    def begins(self, inner: ActiveLoop) -> None:
        """A loop inside the main one begins."""
        if inner.phase == "train":
            self._parents.update(self._inner)
        self._inner.append(inner)
        self.timeline.phase = self._phase()

    def drawn(self, inner: ActiveLoop, item: object) -> None:
        """It gives an item."""
        self.batch = item
        self._parents.discard(inner)
        if self.muted or inner.phase != "train":
            return
        self._is_updated = False
        self.guarded(self.see_batch, item)

    def iteration_over(self, inner: ActiveLoop) -> None:
        """Its body is done with an item."""
        if self.muted:
            return
        if inner.phase != "train":
            if self.hooks.at("validation"):
                self.guarded(self._validate)
        elif not self._optimizers and inner not in self._parents:
            self._stepped()

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        if inner not in self._inner:
            return
        del self._inner[self._inner.index(inner) :]
        self.timeline.phase = self._phase()
        if inner.phase != "train" and not self.muted:
            self._add(self.hooks.validation_end(self.timeline.position), inner.phase)

    def epoch_over(self, epoch: int, *, is_complete: bool = True) -> None:
        """`epoch` epochs are done; not is_complete: the present one was cut short by an error."""
        if not self._optimizers and self.step == self._epoch.first_step and is_complete:
            # nothing inside the main loop is followed: its iterations are the steps
            self._stepped()
        epoch_values, self._epoch = self._epoch.values, _OpenEpoch(self._epoch.first_step)
        left, values = self.timeline.take_coming(), dict(epoch_values)
        if left:
            values["train"] = {**left, **values.get("train", {})}
        if is_complete:
            self.timeline.complete_epoch(epoch)
        for phase, named in values.items():
            self.timeline.add(named, phase, "epoch" if is_complete else "step")
        self.forget_batches()

    # ---- values

    def log(self, name: str, value: object) -> None:
        """`flor.log` in the main loop."""
        if not self.muted:
            self._add(still({name: value}), self.timeline.phase)

    def values(self) -> dict[str, Any]:
        """Return what of the epoch is not in a row yet, for a State."""
        return {phase: dict(named) for phase, named in self._epoch.values.items()}

    def go_on(self, inner: ActiveLoop, step: int, values: Mapping[str, Any]) -> None:
        """A State inside an epoch is restored: `inner` is the loop in which it was taken."""
        self.muted, self.step, self.is_first_batch, self._is_updated = False, step, False, True
        self._inner = [inner]
        self._epoch.values = {cast(Phase, phase): dict(named) for phase, named in values.items()}
        self.forget_batches()
        self.timeline.phase = self._phase()

    def loss(self) -> Any:
        """Return what the script has logged as the loss of the update."""
        return self.timeline.coming.get("loss")

    def see_batch(self, batch: object) -> None:
        """Count an item, if it is a batch: a number or a name is none."""
        checksum = fingerprints.checksum(batch)
        if isinstance(checksum, torch.Tensor):
            self.add_checksum(batch, checksum)

    # ---- inside

    def _phase(self) -> Phase:
        phases: list[Phase] = [loop.phase for loop in self._inner if loop.phase != "train"]
        return phases[0] if phases else "train"

    def _add(self, values: Mapping[str, Any], phase: Phase) -> None:
        """Where it belongs: to the epoch, to the update to come, or to the one that was made."""
        if not any(loop.phase == "train" for loop in self._inner):
            self._epoch.values.setdefault(phase, {}).update(values)
        elif phase == "train" and not self._is_updated:
            self.timeline.add_coming(values)
        else:
            self.timeline.add(values, phase, "step")

    def _before_step(self, prefix: str, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.muted:
            self.guarded(self.before_update, optimizer, prefix)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.muted:
            self.guarded(self.after_update, optimizer)
            self._stepped()

    def _stepped(self) -> None:
        self.step += 1
        self.updated(self.step, {}, None)
        self._is_updated = True

    def _validate(self) -> None:
        self.hooks.validation_batch(self.context(batch=self.batch))

    def _val_dataloader(self) -> Any:
        return self.registered.val_dataloader

    def _generators(self) -> dict[str, RandomGenerator]:
        return loaders.generators(self.sources)
