"""Asking the past: request → plan → workers → verdicts.

What `flor.replay` and `flor-hf replay` call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flor_plugins.hooks.hook_files import scan
from flor_plugins.hooks.metric import Metric
from flor_plugins.recipe import load_recipe
from flor_plugins.records import Plan, Run, Task, Verdict
from flor_plugins.records.events import Event, PassResult, event_to_json
from flor_plugins.replayer.backport import request as backport_request
from flor_plugins.replayer.backport.snapshots import SnapshotSources
from flor_plugins.replayer.execution.executors import executor_of
from flor_plugins.replayer.execution.remote_sync import put_back
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.method_patching import patches
from flor_plugins.replayer.planning import planner as planning
from flor_plugins.replayer.planning.metric_sources import without_hook
from flor_plugins.store.files import write_json
from flor_plugins.store.layout import Store
from flor_plugins.store.query.references import RunReference, parse_reference
from flor_plugins.store.runs import find_run, plain, this_process

Progress = Callable[[Task, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay did.

    rows: one per pass, as the schedule shows them. failures: one line each.
    """

    plan: Plan
    outcomes: tuple[Outcome, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        found = []
        for outcome in self.outcomes:
            task = outcome.task
            for one in outcome.passed:
                found.append(
                    {
                        "run": task.run_id,
                        "name": task.name,
                        "vid": task.vid[:12],
                        "epochs": _span(one.epochs),
                        "way": one.way,
                        "seconds": round(one.seconds, 2),
                        "estimated": _estimate(task, one),
                        "verdict": one.verdict.grade,
                        "compared": one.verdict.compared,
                        "detail": _detail(one.verdict),
                    }
                )
        return found

    @property
    def stretches(self) -> list[dict[str, Any]]:
        """One mapping per stretch of training that was run again, in the order of the run."""
        told = [
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
        return sorted(told, key=lambda one: (one["run"], one["start"]))

    @property
    def failures(self) -> list[str]:
        return [
            line if f"run {outcome.task.name}" in line else f"run {outcome.task.name}: {line}"
            for outcome in self.outcomes
            for line in [*outcome.hook_failures, *([outcome.failure] if outcome.failure else [])]
        ]

    @property
    def has_diverged(self) -> bool:
        return any(row["verdict"] == "diverged" for row in self.rows)


def hooks_for(
    runs: Sequence[Run], hooks: Sequence[Any], main_file: str | None = None
) -> tuple[Path, ...]:
    """Where hooks come from: those named; else the script that asks; else the recipes of the runs.

    hooks: paths of hook files, or @flor.metric functions (their file is taken).
    """
    named = [
        Path(h.function.__code__.co_filename) if isinstance(h, Metric) else Path(h) for h in hooks
    ]
    if not named and main_file and _has_metrics(Path(main_file)):
        named = [Path(main_file)]
    if not named:
        recipes = dict.fromkeys(run.launch.recipe for run in runs if run.launch.recipe)
        named = [
            hook
            for recipe in recipes
            if Path(recipe).exists()
            for hook in load_recipe(Path(recipe)).hook_paths
        ]
    return tuple(dict.fromkeys(path.resolve() for path in named))


def request(
    store: Store,
    runs: Sequence[Run],
    metrics: Sequence[str],
    where: str | None,
    epochs: str | Sequence[int],
    *,
    hooks: Sequence[Path] = (),
    at: Mapping[str, RunReference] | None = None,
    patch: Mapping[str, str | Path] | None = None,
    folder: Path | None = None,
) -> planning.ReplayRequest:
    """A request as it is planned: what no hook and no replaced method gives is looked for in
    the working tree's edit.

    patch: `module:Class.method` to `file.py:function`, relative to `folder`. Raises HookError
    for hooks and patches that can't be read, EditRefused where the edit would change the
    training."""
    methods = patches.read(patch or {}, folder)
    found = [one for path in hooks for one in scan(path)]
    rest = [name for name in without_hook(metrics, found) if not patches.may_log(methods, name)]
    edit = backport_request.find(store, runs, rest) if rest else None
    patched = (
        patches.MethodPatches(methods, SnapshotSources(store, Path.cwd())) if methods else None
    )
    return planning.ReplayRequest(
        tuple(metrics), where, epochs, tuple(hooks), at or {}, edit=edit, patch=patched
    )


def places_asked(store: Store, runs: Sequence[str]) -> dict[str, RunReference]:
    """The places of `RUN@epoch=3` and `RUN@step=1200`, by run_id. Raises UnknownRun."""
    references = [parse_reference(text) for text in runs]
    return {find_run(store, one.run).run_id: one for one in references}


def execute(
    store: Store,
    runs: Sequence[Run],
    plan: Plan,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress | None = None,
) -> ReplayResult:
    """Do a plan. Rows land as they are computed; request, plan and verdicts stay under
    replays/<id>/.

    workers, engine: as in `Executor.run_all`; raises its errors.
    """
    executor = executor_of(engine)
    if not plan.tasks:
        return ReplayResult(plan)
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
    answer = ReplayResult(plan, tuple(outcomes))
    verdicts = {
        "passes": answer.rows,
        "stretches": plain(answer.stretches),
        "failures": answer.failures,
    }
    write_json(folder / "verdicts.json", {"format": 1, **verdicts})
    put_back(store, plan.replay_id)
    return answer


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
