"""Measure one recipe.

Its trainings run with and without the callback in turns; then come its questions, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flor_plugins.bench.children import RESULT, BenchProcesses
from flor_plugins.bench.own_store import forget
from flor_plugins.bench.ratios import orders
from flor_plugins.bench.results import (
    BenchQuestion,
    BenchTraining,
    RecipeResult,
    StoredSizes,
    worst,
)
from flor_plugins.bench.values import by_epoch, values_of
from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.recipe import Recipe, check_recipe, load_recipe
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import find_run

WAYS = ("without", "with")


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How to measure.

    pairs: of each version. store: the bench's own. tell: hears what is done next.
    """

    pairs: int
    store: Store
    log: Path
    tell: Callable[[str], Any]

    @property
    def children(self) -> BenchProcesses:
        """Return what runs the processes of the bench."""
        return BenchProcesses(self.store.root, self.log)


def measured(path: Path, setting: BenchSettings) -> Iterator[RecipeResult]:
    """What is known so far, after each step. Raises FlorError where it can't go on."""
    mistakes = check_recipe(path)
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    recipe = load_recipe(path)
    result = _described(recipe)
    yield result
    for training in _trainings(recipe, setting):
        result = result.model_copy(update={"trainings": (*result.trainings, training)})
        yield result
    run_ids = {
        run_id: training.version
        for training in result.trainings
        if training.pair == setting.pairs
        for run_id in training.run_ids
    }
    result = result.model_copy(update={"kept": tuple(_kept(recipe, setting.store, run_ids))})
    yield result
    for metric in recipe.replay.metrics:
        setting.tell(f"{recipe.name}: {metric} in hindsight")
        result = result.model_copy(
            update={"questions": (*result.questions, _ask(recipe, metric, run_ids, setting))}
        )
        yield result


def _described(recipe: Recipe) -> RecipeResult:
    about = recipe.about
    return RecipeResult(
        recipe=recipe.name,
        path=str(recipe.path),
        versions=tuple(version.name for version in recipe.versions),
        model=about.model,
        data=about.data,
        objective=about.objective.text if about.objective else None,
        objective_metric=about.objective.metric if about.objective else None,
    )


def _trainings(recipe: Recipe, setting: BenchSettings) -> Iterator[BenchTraining]:
    """Run pairs of a training with the callback and one without.

    Who comes first changes from pair to pair.
    """
    pairs = [
        (version.name, pair) for pair in range(1, setting.pairs + 1) for version in recipe.versions
    ]
    for (version, pair), order in zip(pairs, orders(WAYS, len(pairs)), strict=True):
        for how in order:
            training = _train(recipe, version, pair, how, setting)
            if (
                pair < setting.pairs
            ):  # questions are asked of the last runs; the others' checkpoints are not needed
                for run_id in training.run_ids:
                    forget(setting.store, run_id)
            yield training


def _train(
    recipe: Recipe, version: str, pair: int, how: str, setting: BenchSettings
) -> BenchTraining:
    what = f"{recipe.name}: {version} {how} the callback"
    setting.tell(f"{what} ({pair} of {setting.pairs})")
    found, seconds = setting.children.run("train", [str(recipe.path), version, how, RESULT], what)
    return BenchTraining(
        version=version, pair=pair, is_recorded=how == "with", process_s=seconds, **found
    )


def _kept(recipe: Recipe, store: Store, run_ids: dict[str, str]) -> Iterator[StoredSizes]:
    from flor_plugins.store.checkpoints import list_checkpoints

    runs = [find_run(store, run_id) for run_id in run_ids]
    objective = recipe.about.objective
    logged = values_of(store, runs, objective.metric) if objective else {}
    for run in runs:
        if run.status != "finished" or run.code is None:
            raise FlorError(
                f"run {run.name} can't be replayed: {run.status}; "
                f"{'; '.join(run.gaps) or run.error}"
            )
        if objective and not logged[run.run_id]:
            raise RecipeError(
                f"{recipe.path}:1: the objective's metric {objective.metric!r} was not logged "
                f"by run {run.name}"
            )
        sizes = [checkpoint.nbytes for checkpoint in list_checkpoints(run.path)]
        yield StoredSizes(
            version=run_ids[run.run_id],
            run_id=run.run_id,
            checkpoints=len(sizes),
            checkpoint_bytes=max(sizes, default=0),
            all_bytes=sum(sizes),
            recording_s=run.timing.recording_s,
            objective=by_epoch(logged.get(run.run_id, ())),
        )


def _ask(
    recipe: Recipe, metric: str, run_ids: dict[str, str], setting: BenchSettings
) -> BenchQuestion:
    """A question that fails is told; the others are asked."""
    try:
        found, seconds = setting.children.run(
            "answer",
            [str(recipe.path), metric, RESULT, *run_ids],
            f"{recipe.name}: {metric}",
        )
    except FlorError as error:
        return BenchQuestion(metric=metric, error=str(error))
    values = {run_ids[run_id]: rows for run_id, rows in found.pop("values").items()}
    return BenchQuestion(
        metric=metric,
        process_s=seconds,
        verdict=worst(found.pop("verdicts")),
        values=values,
        **found,
    )
