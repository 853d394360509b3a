"""What it costs to reach a position of a run again.

It costs nothing where a checkpoint is, else training from the one before.

Two questions are asked of a run, equally often. "The weights after epoch e" is answered at once
by any checkpoint there. "What happened from this moment on" is answered from a checkpoint from
which training can go on. Either takes training from the nearest earlier one otherwise. All
epochs are equally likely, unless weights say something else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, inf
from typing import Literal

from flor_plugins.records import Position
from flor_plugins.store.run_index import RunProgress

# How much of a checkpoint is there: training can go on from it; its weights and the rest; nothing.
CheckpointForm = Literal["full", "weights", "gone"]

MOMENTS = 64  # at least so many are looked at in a run that has checkpoints inside its epochs


@dataclass(frozen=True, slots=True)
class ReachableEpochs:
    """What can be asked of a run. at_once: epochs whose weights are there.

    mean_s, worst_s: seconds of training until a question is answered; None of a run that can't
    be trained again.
    """

    at_once: tuple[int, ...] = ()
    mean_s: float | None = 0.0
    worst_s: float | None = 0.0


@dataclass(slots=True)
class QuestionCosts:
    """The questions to one run and what answers them now. Costs are in seconds.

    starts: progress at the checkpoints from which training goes on, ascending. saved: epochs
    whose weights are there.
    """

    progress: RunProgress
    starts: list[float] = field(default_factory=list)
    saved: set[int] = field(default_factory=set)
    _moments: list[float] = field(default_factory=list)  # from which one may want to train
    _sums: list[float] = field(default_factory=list)  # of their weights, up to each
    _weights: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        progress: RunProgress,
        forms: Mapping[Position, CheckpointForm],
        weights: Mapping[int, float] | None = None,
    ) -> QuestionCosts:
        """weights: how likely each epoch is asked for; default: all equally."""
        found = cls(progress)
        epochs = progress.epochs
        likely = {epoch: (weights or {}).get(epoch, 0.0 if weights else 1.0) for epoch in epochs}
        whole = sum(likely.values()) or 1.0
        found._weights = {epoch: one / whole / 2 for epoch, one in likely.items()}
        has_inside = any(not progress.is_end(position) for position in forms)
        parts = max(2, ceil(MOMENTS / max(len(epochs), 1))) if has_inside else 1
        moments = [
            (epoch - 1 + part / parts, found._weights[epoch] / parts)
            for epoch in epochs
            for part in range(parts)
        ]
        if not epochs and has_inside:  # the first epoch is not over
            moments = [(part / parts, 0.5 / parts) for part in range(parts)]
        found._moments = [moment for moment, _ in moments]
        found._sums = [0.0, *accumulate(weight for _, weight in moments)]
        for position, form in forms.items():
            found.put(position, form)
        return found

    def put(self, position: Position, form: CheckpointForm) -> None:
        """A checkpoint is there now."""
        if form == "full":
            insort(self.starts, self.progress.epochs_done(position))
        if form != "gone" and self.progress.is_end(position):
            self.saved.add(position.epoch)

    def take(self, position: Position, form: CheckpointForm) -> None:
        """The inverse of `put`."""
        if form == "full":
            self.starts.remove(self.progress.epochs_done(position))
        if form != "gone" and self.progress.is_end(position):
            self.saved.discard(position.epoch)

    def increase(self, position: Position, now: CheckpointForm, then: CheckpointForm) -> float:
        """Return by how much the expected cost of a question grows.

        A checkpoint is reduced to another form.
        """
        here, grows = self.progress.epochs_done(position), 0.0
        if now == "full":
            number = bisect_left(self.starts, here)
            end = self.starts[number + 1] if number + 1 < len(self.starts) else inf
            asked = (
                self._sums[bisect_left(self._moments, end)]
                - self._sums[bisect_left(self._moments, here)]
            )
            asked += sum(self._weights[one] for one in self._unsaved(here, end))
            grows += asked * (here - self._before(number))
        if then == "gone" and self.progress.is_end(position) and position.epoch in self._weights:
            start = bisect_right(self.starts, here) - (1 if now == "full" else 0)
            grows += self._weights[position.epoch] * (here - self._before(start))
        return grows * self.progress.epoch_s

    @property
    def mean(self) -> float:
        """The expected cost of a question."""
        return sum(weight * cost for weight, cost in self._costs()) * self.progress.epoch_s

    def answers(self) -> ReachableEpochs:
        """All questions together."""
        worst = max((cost for weight, cost in self._costs() if weight), default=0.0)
        return ReachableEpochs(tuple(sorted(self.saved)), self.mean, worst * self.progress.epoch_s)

    def _costs(self) -> list[tuple[float, float]]:
        costs = [
            (self._weights[epoch], self._cost(epoch))
            for epoch in self.progress.epochs
            if epoch not in self.saved
        ]
        for number, moment in enumerate(self._moments):
            costs.append((self._sums[number + 1] - self._sums[number], self._cost(moment)))
        return costs

    def _cost(self, moment: float) -> float:
        return moment - self._before(bisect_right(self.starts, moment))

    def _before(self, number: int) -> float:
        # Where there is none before, training begins at the beginning.
        return self.starts[number - 1] if number > 0 else 0.0

    def _unsaved(self, first: float, end: float) -> Iterable[int]:
        last = max(self._weights, default=0)
        ending = last if end == inf else min(last, ceil(end) - 1)
        return (
            one
            for one in range(ceil(first), ending + 1)
            if one in self._weights and one not in self.saved
        )
