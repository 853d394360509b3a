"""`replay`: plan, show it, do it, print schedule, verdicts and dataframe."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flor_plugins.cli import show_plan, tables
from flor_plugins.cli.record import record_versions
from flor_plugins.errors import FlorError
from flor_plugins.recipe import Recipe, load_recipe
from flor_plugins.recipe.examples import example_recipe
from flor_plugins.records import JsonObject, Plan, ReplayRequest, Run, Task
from flor_plugins.store.layout import Store
from flor_plugins.store.query.references import parse_reference
from flor_plugins.store.remote.mirror import open_any
from flor_plugins.store.runs import find_run, list_runs

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from flor_plugins.replayer.requests import ReplayResult

SCHEDULE = ["run", "name", "vid", "epochs", "way", "seconds", "estimated", "verdict"]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The words of the command line."""

    recipe: Path | None
    metrics: str | None
    where: str | None
    epochs: str | None
    hooks: tuple[Path, ...]
    runs: tuple[str, ...]
    workers: int = 1
    engine: str = "local"
    patch: tuple[str, ...] = ()
    show_patches: bool = False


def replay(options: ReplayOptions, dry_run: bool, yes: bool, as_json: bool, as_csv: bool) -> int:
    """Exit status 0, 1 when a hook or a run failed, 3 when a replay diverged."""
    from flor_plugins.replayer import requests

    recipe = load_recipe(options.recipe) if options.recipe else None
    store = open_any(start=recipe.folder if recipe else None)
    if recipe and not dry_run:
        _record_missing(store, recipe)
    request = _request(options, recipe, _runs(store, options, recipe))
    if dry_run:
        show_plan.show(requests.plan(store, request), as_json, as_csv, options.show_patches)
        return 0
    is_human = not (as_json or as_csv)
    with _Display(options.show_patches, yes) as display:
        result = requests.replay(
            store,
            request,
            workers=options.workers,
            engine=options.engine,
            progress=display.show_progress if is_human else None,
            approve=display.approve if is_human else None,
        )
    _print_result(store, result, as_json, as_csv, options.show_patches)
    skipped = [f"{run_id} is skipped: {why}" for run_id, why in result.plan.skipped.items()]
    for line in [*result.failures, *skipped]:
        print(f"flor: {line}", file=sys.stderr)
    if result.failures:
        return 1
    verify = recipe.replay.verify if recipe else "exact"
    return 3 if result.diverged and verify != "off" else 0


def _record_missing(store: Store, recipe: Recipe) -> None:
    """A recipe whose versions have no finished run yet is recorded first."""
    have = {
        run.name
        for run in list_runs(store)
        if run.project == recipe.name and run.status == "finished"
    }
    missing = [version.name for version in recipe.versions if version.name not in have]
    if missing and record_versions(recipe, missing):
        raise FlorError(f"{recipe.path}: recording failed, so there is nothing to replay")


def _runs(store: Store, options: ReplayOptions, recipe: Recipe | None) -> list[Run]:
    if options.runs:
        return [find_run(store, parse_reference(name).run) for name in options.runs]
    runs = [run for run in list_runs(store) if recipe is None or run.project == recipe.name]
    if not runs:
        raise FlorError(
            f"there is no recorded run in {store.root}. Train with FlorCallback() on the trainer, "
            f"or give a recipe: flor-hf replay {example_recipe()}"
        )
    return runs


def _request(options: ReplayOptions, recipe: Recipe | None, runs: list[Run]) -> ReplayRequest:
    """What the words ask; where they say nothing, the recipe does."""
    from flor_plugins.replayer.requests import recipe_hooks

    metrics = tuple(options.metrics.split(",")) if options.metrics else ()
    names = options.runs or tuple(run.run_id for run in runs)
    patch = _patch(options.patch)
    if recipe is None:
        epochs = options.epochs or "all"
        return ReplayRequest(metrics, options.where, epochs, names, options.hooks, patch)
    preset = recipe.replay
    return ReplayRequest(
        metrics or preset.metrics,
        preset.where if options.where is None else options.where,
        options.epochs or preset.epochs,
        names,
        options.hooks or recipe_hooks(runs) or recipe.hook_paths,
        patch or recipe.patch_paths,
    )


def _patch(given: tuple[str, ...]) -> dict[str, str]:
    """TARGET=FILE:FUNCTION, as it was typed."""
    parts = [one.partition("=") for one in given]
    wrong = [target for target, equals, source in parts if not (target and equals and source)]
    if wrong:
        raise FlorError(
            f"--patch {wrong[0]!r}: write TARGET=FILE:FUNCTION, like "
            f"bert:Net.forward=hooks/net.py:forward"
        )
    return {target: source for target, _, source in parts}


class _Display:
    """What a person sees of a replay: its plan, then a bar on a terminal, plain lines elsewhere."""

    def __init__(self, show_patches: bool, yes: bool) -> None:
        self._show_patches, self._yes = show_patches, yes
        self._bar: ProgressBar | None = None

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def approve(self, plan: Plan) -> None:
        """Show the plan; ends the command where a person says no."""
        show_plan.show(plan, False, False, self._show_patches)
        if not show_plan.agreed(plan, self._yes):
            raise typer.Exit(1)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as ProgressBar

            passes = [replay_pass for task in plan.tasks for replay_pass in task.passes]
            self._bar = ProgressBar(console=Console(stderr=True), transient=True)
            self._bar.add_task("replaying", total=sum(len(one.epochs) for one in passes))
            self._bar.start()

    def show_progress(self, task: Task, event: JsonObject) -> None:
        """Hear an event of a task."""
        if self._bar is None:
            plain_progress(task, event)
        elif event["event"] == "position":
            place = f"{task.name} epoch {event['epoch']} ({event['way']})"
            self._bar.update(self._bar.task_ids[0], advance=1, description=place)
        elif event["event"] == "lost":
            self._bar.console.print(f"{task.name}: {event['message']}", markup=False)


def plain_progress(task: Task, event: JsonObject) -> None:
    """Print a line where a pass begins or a worker is lost."""
    if event["event"] == "pass":
        print(
            f"{task.name}: {event['way']} epochs {','.join(map(str, event['epochs']))}",
            file=sys.stderr,
        )
    elif event["event"] == "lost":
        print(f"{task.name}: {event['message']}", file=sys.stderr)


def _print_result(
    store: Store, result: ReplayResult, as_json: bool, as_csv: bool, show_patches: bool
) -> None:
    from flor_plugins.store.query import dataframe

    if result.rows and not (as_json or as_csv):
        tables.table(result.rows, SCHEDULE, as_json=False, as_csv=False)
        for row in result.rows:
            if row["detail"]:
                print(f"{row['name']} ({row['way']}) first differs at {row['detail']}")
        print()
    frame = dataframe.dataframe(store, *result.plan.metrics, runs=result.runs)
    if as_json and show_patches:
        rows = tables.records(frame)
        print(json.dumps({"patches": show_plan.patches_of(result.plan), "rows": rows}, indent=1))
        return
    tables.frame(frame, as_json=as_json, as_csv=as_csv)
