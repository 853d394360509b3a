"""What a bench has measured, and what follows from it: what bench.json holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field

from flor_plugins.bench.ratios import LEAST_PAIRS, Interval, interval, pair_ratios

FORMAT = 1
NAME = "flor-hf bench"
# The best one first. A value that nothing could be compared with is no proof of anything.
_GRADES = ("exact", "close", "unverified", "diverged")

Series = tuple[tuple[int, Any], ...]  # (epoch, value)


class ResultRecord(BaseModel):
    """Frozen; what is computed of it is written to the file and not read back."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BenchTraining(ResultRecord):
    """One process that has trained one version.

    train_s, cpu_s: of the training alone, by the clock and of the processor (all threads);
    process_s: from the start of the process to its end. load: the machine's, of the last
    minute. run_ids: what was recorded.
    """

    version: str
    pair: int
    is_recorded: bool
    train_s: float
    cpu_s: float
    process_s: float
    load: float | None = None
    parameters: int = 0
    device: str = "cpu"
    run_ids: tuple[str, ...] = ()


class StoredSizes(ResultRecord):
    """What one run left in the store.

    checkpoint_bytes: of the largest one; all_bytes: of all together.

    recording_s: what the recorder itself has counted of the training's time. objective: by epoch.
    """

    version: str
    run_id: str
    checkpoints: int
    checkpoint_bytes: int
    all_bytes: int
    recording_s: float | None = None
    objective: Series = ()


class BenchQuestion(ResultRecord):
    """One metric, asked alone of all versions.

    process_s: of the process that answered; asked_s: in it, from the request to the dataframe.
    ways: how it was replayed. values: by version and epoch. count: of all values.
    """

    metric: str
    process_s: float = 0.0
    asked_s: float = 0.0
    ways: tuple[str, ...] = ()
    verdict: str | None = None
    count: int = 0
    values: Mapping[str, Series] = {}
    error: str | None = None


class MeasuredRecipe(ResultRecord):
    """The recipe that a result is of. measured_at: UTC, when measuring it began."""

    recipe: str
    path: str
    measured_at: str = ""
    versions: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    objective: str | None = None
    objective_metric: str | None = None


class RecipeResult(MeasuredRecipe):
    """What measuring one recipe gave. error: why it is not whole."""

    trainings: tuple[BenchTraining, ...] = ()
    kept: tuple[StoredSizes, ...] = ()
    questions: tuple[BenchQuestion, ...] = ()
    error: str | None = None

    @computed_field
    @property
    def overhead(self) -> Interval | None:
        """Return the seconds of training with the callback over those without, less 1.

        Of all versions' pairs.
        """
        return self._share(attrgetter("train_s"))

    @computed_field
    @property
    def overhead_s(self) -> float | None:
        """The difference in seconds: what comes once in a run weighs more in a short one."""
        found = [one.train_s - other.train_s for one, other in self.pairs()]
        return median(found) if found else None

    @computed_field
    @property
    def processor_overhead(self) -> Interval | None:
        """Return the same of the processor's seconds.

        What others compute on the machine hardly counts in it.
        """
        return self._share(attrgetter("cpu_s"))

    @computed_field
    @property
    def counted_overhead(self) -> float | None:
        """Return the share of the training's time that the recorder has counted.

        That is its own calls, and not who waits for whom.
        """
        seconds = sum(self.seconds(run.version, is_recorded=True) or 0.0 for run in self.kept)
        counted = [run.recording_s for run in self.kept if run.recording_s is not None]
        return sum(counted) / seconds if counted and seconds else None

    @computed_field
    @property
    def is_conclusive(self) -> bool:
        """Say whether there are pairs enough, and they lie on one side of nothing."""
        found = self.overhead
        return found is not None and found.n >= LEAST_PAIRS and not found.low <= 0 <= found.high

    @computed_field
    @property
    def again_s(self) -> float | None:
        """What training all versions again takes: whole processes, without the callback."""
        found = [self.process_seconds(name) for name in self.versions]
        known = [one for one in found if one is not None]
        return sum(known) if known and len(known) == len(found) else None

    @computed_field
    @property
    def verdict(self) -> str | None:
        """The worst one of all questions."""
        return worst(question.verdict for question in self.questions if question.verdict)

    @computed_field
    @property
    def is_good(self) -> bool:
        """Say whether everything is there, and every verdict exact."""
        answered = all(
            question.error is None and question.verdict == "exact" for question in self.questions
        )
        return self.error is None and answered

    @property
    def parameters(self) -> int:
        """Of the first version: the others may be smaller."""
        return next(
            (
                training.parameters
                for training in self.trainings
                if training.version == self.versions[0]
            ),
            0,
        )

    def seconds(self, version: str, *, is_recorded: bool) -> float | None:
        """Of a training of this version: the median."""
        found = [
            training.train_s
            for training in self.trainings
            if (training.version, training.is_recorded) == (version, is_recorded)
        ]
        return median(found) if found else None

    def process_seconds(self, version: str) -> float | None:
        """Of a whole process that trains this version without the callback: the median."""
        found = [
            training.process_s
            for training in self.trainings
            if training.version == version and not training.is_recorded
        ]
        return median(found) if found else None

    def speedup(self, question: BenchQuestion) -> float | None:
        """Training all versions again over answering the question."""
        if self.again_s is None or question.error or not question.process_s:
            return None
        return self.again_s / question.process_s

    def pairs(self, version: str | None = None) -> Iterator[tuple[BenchTraining, BenchTraining]]:
        """(with, without) of each pair that is whole, in the order measured."""
        held: dict[tuple[str, int], BenchTraining] = {}
        for training in self.trainings:
            key = (training.version, training.pair)
            other = held.setdefault(key, training)
            if other is not training and version in (None, training.version):
                yield (training, other) if training.is_recorded else (other, training)

    def _share(self, of: Callable[[BenchTraining], float]) -> Interval | None:
        pairs = [pair for pair in self.pairs() if of(pair[1]) > 0]
        if not pairs:
            return None
        ratios = pair_ratios([of(one) for one, _ in pairs], [of(other) for _, other in pairs])
        return interval([one - 1 for one in ratios])


def worst(verdicts: Iterable[str]) -> str | None:
    """The verdict that is the furthest from exact; None of none."""
    return max(verdicts, key=_GRADES.index, default=None)


class Bench(ResultRecord):
    """All that one bench.json holds.

    started_at, finished_at: UTC; finished_at is missing until it is whole.
    """

    format: int = FORMAT
    benchmark: str = NAME
    started_at: str
    finished_at: str | None = None
    machine: Mapping[str, Any] = {}
    results: tuple[RecipeResult, ...] = ()

    def with_result(self, result: RecipeResult) -> Bench:
        """The one of the same recipe is replaced; a new one comes last."""
        names = [one.recipe for one in self.results]
        if result.recipe not in names:
            return self.model_copy(update={"results": (*self.results, result)})
        replaced = tuple(result if one.recipe == result.recipe else one for one in self.results)
        return self.model_copy(update={"results": replaced})
