"""Asking the past: request → plan → workers → verdicts.

`flor.replay` and `flor-hf replay`, `verify` and the searches call `replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TypedDict

from flor_plugins.errors import Diverged, HookError, ReplayError
from flor_plugins.hooks.hook_files import scan
from flor_plugins.hooks.metric import Metric
from flor_plugins.recipe import load_recipe
from flor_plugins.records import (
    Grade,
    JsonObject,
    Plan,
    Position,
    ReplayRequest,
    Run,
    Strategy,
    Task,
    Verdict,
)
from flor_plugins.records.events import Event, PassResult, event_to_json
from flor_plugins.replayer.execution.executors import executor_of
from flor_plugins.replayer.execution.remote_sync import put_back
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.planning import planner
from flor_plugins.store.files import write_json
from flor_plugins.store.layout import Store
from flor_plugins.store.query.references import parse_reference
from flor_plugins.store.runs import find_run, list_runs, plain, this_process

# Hears each event of a task, as the JSON that its worker sent.
Progress = Callable[[Task, JsonObject], None]


class PassRow(TypedDict):
    """A pass as the schedule shows it."""

    run: str
    name: str
    vid: str
    epochs: str
    way: Strategy
    seconds: float
    estimated: float | None
    verdict: Grade
    compared: int
    detail: str


class RangeRow(TypedDict):
    """Training that was run again. first: the first differing position. causes: likely ones."""

    run: str
    name: str
    start: Position
    end: Position
    verdict: Grade
    compared: int
    first: Position | None
    detail: str
    causes: list[str]


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay did. runs: all that were asked, also those without a task."""

    plan: Plan
    runs: tuple[Run, ...]
    outcomes: tuple[Outcome, ...] = ()

    @property
    def rows(self) -> list[PassRow]:
        """One row per pass."""
        return [
            {
                "run": outcome.task.run_id,
                "name": outcome.task.name,
                "vid": outcome.task.vid[:12],
                "epochs": _span(passed.epochs),
                "way": passed.way,
                "seconds": round(passed.seconds, 2),
                "estimated": _estimate(outcome.task, passed),
                "verdict": passed.verdict.grade,
                "compared": passed.verdict.compared,
                "detail": _detail(passed.verdict),
            }
            for outcome in self.outcomes
            for passed in outcome.passed
        ]

    @property
    def stretches(self) -> list[RangeRow]:
        """One row per range of training that was run again, in the order of the run."""
        rows: list[RangeRow] = [
            {
                "run": outcome.task.run_id,
                "name": outcome.task.name,
                "start": one.range.start,
                "end": one.range.end,
                "verdict": one.verdict.grade,
                "compared": one.verdict.compared,
                "first": one.verdict.first,
                "detail": one.verdict.detail,
                "causes": list(one.causes),
            }
            for outcome in self.outcomes
            for one in outcome.stretches
        ]
        return sorted(rows, key=itemgetter("run", "start"))

    @property
    def failures(self) -> list[str]:
        """One line each."""
        return [
            line if f"run {outcome.task.name}" in line else f"run {outcome.task.name}: {line}"
            for outcome in self.outcomes
            for line in [*outcome.hook_failures, *([outcome.failure] if outcome.failure else [])]
        ]

    @property
    def diverged(self) -> list[PassRow]:
        """The passes that computed something else than what was recorded."""
        return [row for row in self.rows if row["verdict"] == "diverged"]


def plan(store: Store, request: ReplayRequest) -> Plan:
    """What a replay would do. Nothing is run and nothing is written. Raises as `replay`."""
    return _planned(store, request)[1]


def replay(
    store: Store,
    request: ReplayRequest,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress | None = None,
    approve: Callable[[Plan], None] | None = None,
) -> ReplayResult:
    """Compute what is asked and missing.

    Rows land as they are computed; plan and verdicts stay under replays/<id>/. workers, engine:
    as in `Executor.run_all`. progress: hears each event of a task.
    approve: is shown the plan before anything is run, and raises to end the request.
    Raises UnknownRun, the errors of `planner.make` and those of the engine; what became of the
    tasks is in the result (`raise_failures`).
    """
    runs, plan = _planned(store, request)
    if approve is not None:
        approve(plan)
    return execute(store, runs, plan, workers=workers, engine=engine, progress=progress)


def raise_failures(*results: ReplayResult) -> None:
    """Raise HookError where a hook failed, ReplayError where a run could not be replayed."""
    failures = [line for result in results for line in result.failures]
    if failures:
        outcomes = [outcome for result in results for outcome in result.outcomes]
        has_hook_failures = any(outcome.hook_failures for outcome in outcomes)
        raise (HookError if has_hook_failures else ReplayError)("\n".join(failures))


def raise_diverged(*results: ReplayResult) -> None:
    """Raise Diverged where something else was recomputed than was recorded."""
    diverged = [row for result in results for row in result.diverged]
    if diverged:
        raise Diverged(
            "\n".join(f"run {row['name']} diverged: {row['detail']}" for row in diverged)
        )


def hook_files(hooks: Sequence[str | Path | Metric], script: str | None = None) -> tuple[Path, ...]:
    """The files of the hooks that were named, else the script that asks, if it defines metrics.

    hooks: paths of hook files, or @flor.metric functions (their file is taken).
    """
    paths = [
        Path(hook.function.__code__.co_filename) if isinstance(hook, Metric) else Path(hook)
        for hook in hooks
    ]
    if not paths and script and _has_metrics(Path(script)):
        paths = [Path(script)]
    return tuple(dict.fromkeys(path.resolve() for path in paths))


def recipe_hooks(runs: Sequence[Run]) -> tuple[Path, ...]:
    """The hook files of the recipes that runs were recorded from."""
    recipes = dict.fromkeys(Path(run.launch.recipe) for run in runs if run.launch.recipe)
    paths = [
        path for recipe in recipes if recipe.exists() for path in load_recipe(recipe).hook_paths
    ]
    return tuple(dict.fromkeys(path.resolve() for path in paths))


def _planned(store: Store, request: ReplayRequest) -> tuple[list[Run], Plan]:
    """The runs that are asked, and the plan for them."""
    if request.runs is None:
        runs, references = list_runs(store), {}
    else:
        places = [parse_reference(name) for name in request.runs]
        named = [(find_run(store, place.run), place) for place in places]
        runs = list({run.run_id: run for run, _ in named}.values())
        references = {run.run_id: place for run, place in named}
    request = replace(request, hooks=request.hooks or recipe_hooks(runs))
    return runs, planner.make(store, runs, request, references)


def execute(
    store: Store,
    runs: Sequence[Run],
    plan: Plan,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress | None = None,
) -> ReplayResult:
    """Do a plan: write it down, run its tasks, and write down what they came to."""
    executor = executor_of(engine)
    if not plan.tasks:
        return ReplayResult(plan, tuple(runs))
    plan = _with_kept_hooks(store, plan)
    folder = store.replay(plan.replay_id)
    write_json(
        folder / "plan.json",
        {"format": 1, "process": asdict(this_process()), **plan.to_json()},
    )
    by_id = {run.run_id: run for run in runs}

    def tell(task: Task, event: Event) -> None:
        if progress is not None:
            progress(task, event_to_json(event))

    outcomes = executor.run_all(store, by_id, plan, tell, workers=workers)
    result = ReplayResult(plan, tuple(runs), tuple(outcomes))
    verdicts = {
        "passes": result.rows,
        "stretches": plain(result.stretches),
        "failures": result.failures,
    }
    write_json(folder / "verdicts.json", {"format": 1, **verdicts})
    put_back(store, plan.replay_id)
    return result


def _with_kept_hooks(store: Store, plan: Plan) -> Plan:
    """Copy the hook files beside the plan: what was asked stays readable when the files change."""
    folder = store.replay(plan.replay_id) / "hooks"
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for number, hook in enumerate(plan.hooks):
        copy = folder / (Path(hook).name if number == 0 else f"{number}_{Path(hook).name}")
        copy.write_bytes(Path(hook).read_bytes())
        kept.append(str(copy))
    return replace(plan, hooks=tuple(kept))


def _has_metrics(path: Path) -> bool:
    try:
        return any(found.kind == "metric" for found in scan(path))
    except (OSError, ValueError):
        return False


def _estimate(task: Task, result: PassResult) -> float | None:
    """What the plan said of the pass."""
    planned = [one.seconds for one in task.passes if result.is_end_of(one)]
    return None if not planned or planned[0] is None else round(planned[0], 2)


def _span(epochs: Sequence[int]) -> str:
    if len(epochs) > 1 and list(epochs) == list(range(epochs[0], epochs[-1] + 1)):
        return f"{epochs[0]}:{epochs[-1]}"
    return ",".join(map(str, epochs))


def _detail(verdict: Verdict) -> str:
    first = verdict.first
    return f"epoch {first.epoch}, step {first.step}: {verdict.detail}" if first else ""
