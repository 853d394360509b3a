"""Which checkpoints are given up: always the step next that makes a question dearer by least
for a byte.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from flor_plugins.records import Position
from flor_plugins.store.gc.checkpoint_sizes import Shelf
from flor_plugins.store.gc.replay_cost import Answers, Course, Form, Questions

# What was agreed to at most: (run_id, position) to the least that is left there.
Limits = Mapping[tuple[str, Position], Form]

_ORDER: tuple[Form, ...] = ("full", "weights", "gone")
_LESS: dict[Form, tuple[Form, ...]] = {
    "full": ("weights", "gone"),
    "weights": ("gone",),
    "gone": (),
}


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """A checkpoint of a run is reduced: from "full" to "weights", or from either to "gone"."""

    run_id: str
    position: Position
    now: Form
    then: Form


@dataclass(slots=True)
class Standing:
    """A run while it is decided what it gives up. shelves: of each process that trained it; the
    first one's counts.

    fixed: positions that stay as they are. can_train: could what is given up be trained again?
    If not, only what nobody could use is given up: the optimizer."""

    run_id: str
    course: Course
    shelves: Sequence[Shelf]
    fixed: Collection[Position] = ()
    can_train: bool = True
    weights: Mapping[int, float] | None = None
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        forms = self.shelves[0].forms
        self.questions = Questions.of(self.course, forms, self.weights)

    @property
    def nbytes(self) -> int:
        return sum(shelf.nbytes for shelf in self.shelves)

    @property
    def forms(self) -> Mapping[Position, Form]:
        return self.shelves[0].forms

    @property
    def answers(self) -> Answers:
        found = self.questions.answers()
        return found if self.can_train else Answers(found.at_once, None, None)

    def steps(self, positions: Collection[Position] | None = None) -> Iterator[Step]:
        """What could be given up next."""
        for position in self.forms if positions is None else positions:
            now = self.forms.get(position, "gone")
            if position in self.fixed:
                continue
            for then in _LESS[now] if self.can_train else _LESS[now][:1]:
                if self.can_train or then == "weights":
                    yield Step(self.run_id, position, now, then)

    def freed(self, step: Step) -> int:
        return sum(shelf.freed(step.position, form) for shelf, form in self._parts(step.then))

    def increase(self, step: Step) -> float:
        """By how many seconds the expected cost of a question to this run grows."""
        if not self.can_train:
            return 0.0
        return self.questions.increase(step.position, step.now, step.then)

    def put(self, position: Position, form: Form) -> None:
        self.questions.take(position, self.forms[position])
        for shelf, one in self._parts(form):
            shelf.put(position, one)
        self.questions.put(position, form)

    def _parts(self, form: Form) -> Iterator[tuple[Shelf, Form]]:
        """The other processes' parts have no optimizer: they go with the whole."""
        for number, shelf in enumerate(self.shelves):
            yield shelf, form if number == 0 or form == "gone" else "full"


def choose(runs: Sequence[Standing], excess: int, limits: Limits | None = None) -> list[Step]:
    """Reduce `runs` until `excess` bytes are freed, or nothing more can be. Returns what is
    given up.

    limits: no other checkpoint is reduced, and none of these further. A step that turned out
    not to be needed is taken back at the end."""
    by_id = {run.run_id: run for run in runs}
    taken: list[Step] = []
    while excess > 0:
        queue = _Queue(runs, limits)
        found = list(_cheapest(by_id, queue, excess))
        if not found:
            break
        # What freed nothing may free something now: others that needed the same tensors are gone.
        taken += [step for step, _ in found]
        excess -= sum(freed for _, freed in found)
    return _without_needless(by_id, taken, -excess)


class _Queue:
    """Steps by price.

    A price may be out of date: what lies around a checkpoint may have been removed since.
    """

    def __init__(self, runs: Iterable[Standing], limits: Limits | None) -> None:
        self._limits = limits
        self._heap: list[tuple[float, int, Step]] = []
        self._numbers = count()
        for run in runs:
            self.offer(run)

    def offer(self, run: Standing, positions: Collection[Position] | None = None) -> None:
        for step in run.steps(positions):
            price = _price(run, step)
            if price is not None and (self._limits is None or _is_within(step, self._limits)):
                self.put(price, step)

    def put(self, price: float, step: Step) -> None:
        heapq.heappush(self._heap, (price, next(self._numbers), step))

    def take(self) -> tuple[float, Step] | None:
        if not self._heap:
            return None
        price, _, step = heapq.heappop(self._heap)
        return price, step

    @property
    def lowest(self) -> float:
        return self._heap[0][0] if self._heap else inf


def _cheapest(
    runs: Mapping[str, Standing], queue: _Queue, excess: int
) -> Iterator[tuple[Step, int]]:
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
            owner for shelf in run.shelves for owner in shelf.owners(step.position)
        } & run.forms.keys()
        freed = run.freed(step)
        run.put(step.position, step.then)
        excess -= freed
        yield step, freed
        queue.offer(run, {step.position, *owners})  # of an owner more can be freed now


def _price(run: Standing, step: Step) -> float | None:
    """Seconds for a byte; None for a step that frees nothing."""
    freed = run.freed(step)
    return run.increase(step) / freed if freed > 0 else None


def _is_within(step: Step, limits: Limits) -> bool:
    least = limits.get((step.run_id, step.position), "full")
    return _ORDER.index(step.then) <= _ORDER.index(least)


def limits_of(steps: Iterable[Step]) -> dict[tuple[str, Position], Form]:
    """What has been agreed to by agreeing to some steps, in the order in which they are taken."""
    return {(step.run_id, step.position): step.then for step in steps}


def _without_needless(
    runs: Mapping[str, Standing], taken: Sequence[Step], spare: int
) -> list[Step]:
    """The last steps freed more than was asked for, so that some of the earlier ones can be
    taken back.
    """
    kept = []
    for step in reversed(taken):
        run = runs[step.run_id]
        needs = (
            -run.freed(Step(step.run_id, step.position, step.then, step.now))
            if _is_last(run, step)
            else spare + 1
        )
        if needs <= spare:
            run.put(step.position, step.now)
            spare -= needs
        else:
            kept.append(step)
    return kept[::-1]


def _is_last(run: Standing, step: Step) -> bool:
    return run.forms[step.position] == step.then
