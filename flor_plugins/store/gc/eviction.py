"""Choose which checkpoints are evicted.

The next step is always the one that makes a question dearer by least for a byte.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from flor_plugins.records import Position
from flor_plugins.store.gc.checkpoint_sizes import CheckpointSizes
from flor_plugins.store.gc.replay_cost import CheckpointForm, QuestionCosts, ReachableEpochs
from flor_plugins.store.run_index import RunProgress

# What was agreed to at most: (run_id, position) to the least that is left there.
FormLimits = Mapping[tuple[str, Position], CheckpointForm]

_ORDER: tuple[CheckpointForm, ...] = ("full", "weights", "gone")
_LESS: dict[CheckpointForm, tuple[CheckpointForm, ...]] = {
    "full": ("weights", "gone"),
    "weights": ("gone",),
    "gone": (),
}


@dataclass(frozen=True, slots=True, order=True)
class EvictionStep:
    """A checkpoint of a run is reduced: from "full" to "weights", or from either to "gone"."""

    run_id: str
    position: Position
    now: CheckpointForm
    then: CheckpointForm


@dataclass(slots=True)
class EvictionCandidate:
    """A run while it is decided what it loses.

    sizes: of each process that trained it; the first one's counts.

    fixed: positions that stay as they are. can_train: could what is given up be trained again?
    If not, only what nobody could use is given up: the optimizer.
    """

    run_id: str
    progress: RunProgress
    parts: Sequence[CheckpointSizes]
    fixed: Collection[Position] = ()
    can_train: bool = True
    weights: Mapping[int, float] | None = None
    questions: QuestionCosts = field(init=False)

    def __post_init__(self) -> None:
        forms = self.parts[0].forms
        self.questions = QuestionCosts.of(self.progress, forms, self.weights)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all its processes' checkpoints."""
        return sum(sizes.nbytes for sizes in self.parts)

    @property
    def forms(self) -> Mapping[Position, CheckpointForm]:
        """Return what is there of each checkpoint."""
        return self.parts[0].forms

    @property
    def answers(self) -> ReachableEpochs:
        """Return what can be asked of the run."""
        found = self.questions.answers()
        return found if self.can_train else ReachableEpochs(found.at_once, None, None)

    def steps(self, positions: Collection[Position] | None = None) -> Iterator[EvictionStep]:
        """What could be given up next."""
        for position in self.forms if positions is None else positions:
            now = self.forms.get(position, "gone")
            if position in self.fixed:
                continue
            for then in _LESS[now] if self.can_train else _LESS[now][:1]:
                if self.can_train or then == "weights":
                    yield EvictionStep(self.run_id, position, now, then)

    def freed(self, step: EvictionStep) -> int:
        """Return how many bytes a step frees."""
        return sum(sizes.freed(step.position, form) for sizes, form in self._parts(step.then))

    def increase(self, step: EvictionStep) -> float:
        """By how many seconds the expected cost of a question to this run grows."""
        if not self.can_train:
            return 0.0
        return self.questions.increase(step.position, step.now, step.then)

    def put(self, position: Position, form: CheckpointForm) -> None:
        """Give a checkpoint another form, in all processes' parts."""
        self.questions.take(position, self.forms[position])
        for sizes, one in self._parts(form):
            sizes.put(position, one)
        self.questions.put(position, form)

    def _parts(self, form: CheckpointForm) -> Iterator[tuple[CheckpointSizes, CheckpointForm]]:
        """The other processes' parts have no optimizer: they go with the whole."""
        for number, sizes in enumerate(self.parts):
            yield sizes, form if number == 0 or form == "gone" else "full"


def choose(
    runs: Sequence[EvictionCandidate], excess: int, limits: FormLimits | None = None
) -> list[EvictionStep]:
    """Reduce `runs` until `excess` bytes are freed, or nothing more can be.

    Returns the steps.

    limits: no other checkpoint is reduced, and none of these further. A step that turned out
    not to be needed is taken back at the end.
    """
    by_id = {run.run_id: run for run in runs}
    taken: list[EvictionStep] = []
    while excess > 0:
        queue = _StepQueue(runs, limits)
        found = list(_cheapest(by_id, queue, excess))
        if not found:
            break
        # What freed nothing may free something now: others that needed the same tensors are gone.
        taken += [step for step, _ in found]
        excess -= sum(freed for _, freed in found)
    return _without_needless(by_id, taken, -excess)


class _StepQueue:
    """Steps by price.

    A price may be out of date: what lies around a checkpoint may have been removed since.
    """

    def __init__(self, runs: Iterable[EvictionCandidate], limits: FormLimits | None) -> None:
        self._limits = limits
        self._heap: list[tuple[float, int, EvictionStep]] = []
        self._numbers = count()
        for run in runs:
            self.offer(run)

    def offer(self, run: EvictionCandidate, positions: Collection[Position] | None = None) -> None:
        for step in run.steps(positions):
            price = _price(run, step)
            if price is not None and (self._limits is None or _is_within(step, self._limits)):
                self.put(price, step)

    def put(self, price: float, step: EvictionStep) -> None:
        heapq.heappush(self._heap, (price, next(self._numbers), step))

    def take(self) -> tuple[float, EvictionStep] | None:
        if not self._heap:
            return None
        price, _, step = heapq.heappop(self._heap)
        return price, step

    @property
    def lowest(self) -> float:
        return self._heap[0][0] if self._heap else inf


def _cheapest(
    runs: Mapping[str, EvictionCandidate], queue: _StepQueue, excess: int
) -> Iterator[tuple[EvictionStep, int]]:
    """Take steps until `excess` bytes are freed, each with the bytes that it freed."""
    while excess > 0 and (found := queue.take()) is not None:
        price, step = found
        run = runs[step.run_id]
        now = _price(run, step) if run.forms[step.position] == step.now else None
        if now is None:
            continue
        if price < now and queue.lowest < now:
            queue.put(now, step)
            continue
        owners = {
            owner for sizes in run.parts for owner in sizes.owners(step.position)
        } & run.forms.keys()
        freed = run.freed(step)
        run.put(step.position, step.then)
        excess -= freed
        yield step, freed
        queue.offer(run, {step.position, *owners})  # of an owner more can be freed now


def _price(run: EvictionCandidate, step: EvictionStep) -> float | None:
    """Seconds for a byte; None for a step that frees nothing."""
    freed = run.freed(step)
    return run.increase(step) / freed if freed > 0 else None


def _is_within(step: EvictionStep, limits: FormLimits) -> bool:
    least = limits.get((step.run_id, step.position), "full")
    return _ORDER.index(step.then) <= _ORDER.index(least)


def limits_of(steps: Iterable[EvictionStep]) -> dict[tuple[str, Position], CheckpointForm]:
    """What has been agreed to by agreeing to some steps, in the order in which they are taken."""
    return {(step.run_id, step.position): step.then for step in steps}


def _without_needless(
    runs: Mapping[str, EvictionCandidate], taken: Sequence[EvictionStep], spare: int
) -> list[EvictionStep]:
    """Take back some of the earlier steps.

    The last ones freed more than was asked for.
    """
    kept = []
    for step in reversed(taken):
        run = runs[step.run_id]
        needs = (
            -run.freed(EvictionStep(step.run_id, step.position, step.then, step.now))
            if _is_last(run, step)
            else spare + 1
        )
        if needs <= spare:
            run.put(step.position, step.now)
            spare -= needs
        else:
            kept.append(step)
    return kept[::-1]


def _is_last(run: EvictionCandidate, step: EvictionStep) -> bool:
    return run.forms[step.position] == step.then
