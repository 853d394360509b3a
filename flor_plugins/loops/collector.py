"""Every value of a hand-written loop, once, at its true position.

An epoch is an iteration of the main loop, a step an update of a registered optimizer (torch's
own hooks tell of it); where no optimizer is registered, an iteration of the innermost training
loop. What is logged in an inner training loop belongs to the update that its iteration makes,
what is logged outside of one to the epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Context
from flor_plugins.loops import loaders
from flor_plugins.loops.active_loops import ActiveLoop
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.records import Phase
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.still import still
from flor_plugins.store.metrics.reserved_names import BATCH, FIRST_BATCH
from flor_plugins.store.metrics.timeline import Timeline

# Where a value of ours fails to be read, the training goes on: `guarded` runs our part.
GuardedCall = Callable[[Callable[[], Any]], Any]


class MetricCollector:
    """Feeds a Timeline from the loops of a run, and calls step and validation hooks at their
    moments.

    muted: nothing is counted or logged: what runs only leads to a State that is restored then.
    """

    def __init__(
        self,
        registered: ObjectRegistry,
        timeline: Timeline,
        hooks: HookDispatcher,
        run: str,
        guarded: GuardedCall,
    ) -> None:
        self.registered, self.timeline, self.hooks, self.run = registered, timeline, hooks, run
        self.guarded, self.muted, self.step = guarded, False, 0
        self._optimizers = list(registered.optimizers().items())
        self._handles: list[Any] = []
        self._levels: list[ActiveLoop] = []  # inner loops
        self._parents: set[ActiveLoop] = (
            set()
        )  # inner loops in whose present iteration another training loop has begun
        self._is_updated = False  # has this iteration made an update?
        self._began_at = 0  # steps at the epoch's beginning
        self._first = False  # is the next batch the first of an epoch?
        self._batch: Any = None
        self._checksums: list[torch.Tensor] = []  # of the batches of the present update
        self._of_epoch: dict[Phase, dict[str, Any]] = {}
        self.sources: loaders.Sources = {}  # those of the last epoch's beginning
        hooks.generators = lambda: loaders.generators(self.sources)

    def attach(self) -> None:
        """Values and updates are heard of from now on."""
        for index, (name, one) in enumerate(self._optimizers):
            prefix = "" if index == 0 else f"{name}/"
            self._handles.append(one.register_step_pre_hook(self._before(prefix)))
            self._handles.append(one.register_step_post_hook(self._after))
        log.connect(self.log)

    def detach(self) -> None:
        """... and no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        log.connect(None)

    # ---- loops

    def begin_epoch(self, sources: loaders.Sources) -> None:
        """The main loop is about to give an item."""
        self.sources, self._first, self._is_updated, self._began_at = (
            sources,
            True,
            False,
            self.step,
        )
        self._levels, self._of_epoch, self._checksums, self._batch = [], {}, [], None

    def begins(self, inner: ActiveLoop) -> None:
        """A loop inside the main one begins."""
        if inner.phase == "train":
            self._parents.update(self._levels)
        self._levels.append(inner)
        self.timeline.phase = self._phase()

    def drawn(self, inner: ActiveLoop, item: Any) -> None:
        """It gives an item."""
        self._batch = item
        self._parents.discard(inner)
        if self.muted or inner.phase != "train":
            return
        self._is_updated = False
        self.guarded(lambda: self._fingerprint(item))

    def iteration_over(self, inner: ActiveLoop) -> None:
        """Its body is done with an item."""
        if self.muted:
            return
        if inner.phase != "train":
            if self.hooks.at("validation"):
                self.guarded(lambda: self.hooks.validation_batch(self.context(batch=self._batch)))
        elif not self._optimizers and inner not in self._parents:
            self._stepped({})

    def over(self, inner: ActiveLoop) -> None:
        """It has ended, however."""
        if inner not in self._levels:
            return
        del self._levels[self._levels.index(inner) :]
        self.timeline.phase = self._phase()
        if inner.phase != "train" and not self.muted:
            self._add(self.hooks.validation_end(self.timeline.position), inner.phase)

    def epoch_over(self, epoch: int, *, is_complete: bool = True) -> None:
        """`epoch` epochs are done; not is_complete: the present one was cut short by an error."""
        if not self._optimizers and self.step == self._began_at and is_complete:
            self._stepped(
                {}
            )  # nothing inside the main loop is followed: its iterations are the steps
        left, values = self.timeline.take_coming(), self._of_epoch
        if left:
            values["train"] = {**left, **values.get("train", {})}
        if is_complete:
            self.timeline.complete_epoch(epoch)
        for phase, named in values.items():
            self.timeline.add(named, phase, "epoch" if is_complete else "step")
        self._of_epoch, self._checksums = {}, []

    # ---- values

    def log(self, name: str, value: Any) -> None:
        """`flor.log` in the main loop."""
        if not self.muted:
            self._add(still({name: value}), self.timeline.phase)

    def values(self) -> dict[str, Any]:
        """What of the epoch is not in a row yet, for a State."""
        return {phase: dict(named) for phase, named in self._of_epoch.items()}

    def go_on(self, inner: ActiveLoop, step: int, values: Mapping[str, Any]) -> None:
        """A State inside an epoch is restored: `inner` is the loop in which it was taken."""
        self.muted, self.step, self._first, self._is_updated = False, step, False, True
        self._levels, self._checksums = [inner], []
        self._of_epoch = {cast(Phase, phase): dict(named) for phase, named in values.items()}
        self.timeline.phase = self._phase()

    def context(self, **fields: Any) -> Context:
        """A hook's context at the present position."""
        position, model = self.timeline.position, self.registered.model
        parameter = next(model.parameters(), None)
        return Context(
            **{
                "model": model,
                "optimizer": self._optimizers[0][1] if self._optimizers else None,
                "make_val_dataloader": lambda: self.registered.val_dataloader,
                "device": torch.device("cpu") if parameter is None else parameter.device,
                "run": self.run,
                "epoch": position.epoch,
                "step": position.step,
                **fields,
            }
        )

    # ---- inside

    def _phase(self) -> Phase:
        phases: list[Phase] = [one.phase for one in self._levels if one.phase != "train"]
        return phases[0] if phases else "train"

    def _add(self, values: Mapping[str, Any], phase: Phase) -> None:
        """Where it belongs: to the epoch, to the update to come, or to the one that was made."""
        if not any(one.phase == "train" for one in self._levels):
            self._of_epoch.setdefault(phase, {}).update(values)
        elif phase == "train" and not self._is_updated:
            self.timeline.coming.update(values)
        else:
            self.timeline.add(values, phase, "step")

    def _before(self, prefix: str) -> Callable[..., None]:
        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            if not self.muted:
                self.guarded(lambda: self._about_to_update(optimizer, prefix))

        return before

    def _about_to_update(self, optimizer: Any, prefix: str) -> None:
        """Gradients are complete; weights and learning rate are those before the update."""
        for index, group in enumerate(optimizer.param_groups):
            lr, name = group["lr"], "lr" if index == 0 else f"lr.{index}"
            self.timeline.coming[prefix + name] = (
                lr.detach().clone() if isinstance(lr, torch.Tensor) else lr
            )
        if self.hooks.at("step"):
            self.hooks.before_update(self._update_context(optimizer))

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.muted:
            return
        found = self.guarded(lambda: self._computed(optimizer)) if self.hooks.at("step") else None
        self._stepped(found or {})

    def _computed(self, optimizer: Any) -> dict[str, Any]:
        """The update is made; gradients are still there."""
        return self.hooks.after_update(self._update_context(optimizer))

    def _stepped(self, values: Mapping[str, Any]) -> None:
        self.step += 1
        named = {**self.timeline.take_coming(), **values}
        if self._checksums:
            named[BATCH] = fingerprints.by_place(self._checksums)
            self._checksums = []
        self.timeline.step(self.step, named)
        self._is_updated = True

    def _update_context(self, optimizer: Any) -> Context:
        loss = self.timeline.coming.get("loss")
        step = self.timeline.position.step + 1
        return self.context(batch=self._batch, loss=loss, optimizer=optimizer, step=step)

    def _fingerprint(self, item: Any) -> None:
        """Each batch counts by its place in the update.

        No synchronisation but for one batch an epoch.
        """
        found = fingerprints.checksum(item)
        if not isinstance(found, torch.Tensor):  # no batch: a number, a name
            return
        if self._first:
            self._first = False
            self.timeline.coming[FIRST_BATCH] = fingerprints.sha256(item)
        self._checksums.append(found)
