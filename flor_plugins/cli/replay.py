"""`replay`: plan, show it, do it, print schedule, verdicts and dataframe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flor_plugins.cli import show_plan, tables
from flor_plugins.cli.record import record_versions
from flor_plugins.errors import FlorError
from flor_plugins.recipe import Recipe, load_recipe
from flor_plugins.records import Plan, Run, Task
from flor_plugins.store.layout import Store
from flor_plugins.store.query.references import parse_reference
from flor_plugins.store.remote.mirror import open_any
from flor_plugins.store.runs import find_run, list_runs

Progress = Callable[[Task, dict[str, Any]], None]

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


def replay(asked: ReplayOptions, dry_run: bool, yes: bool, as_json: bool, as_csv: bool) -> int:
    """Exit status 0, 1 when a hook or a run failed, 3 when a replay diverged."""
    from flor_plugins.replayer import requests
    from flor_plugins.replayer.planning import planner

    recipe = load_recipe(asked.recipe) if asked.recipe else None
    store = open_any(start=recipe.folder if recipe else None)
    if recipe and not dry_run:
        _record_missing(store, recipe)
    found = _runs(store, asked, recipe)
    hooks = requests.hooks_for(found, asked.hooks)
    request = _request(store, found, asked, recipe, hooks)
    made = planner.make(found, request)
    human = not (as_json or as_csv)
    if dry_run:
        show_plan.show(made, as_json, as_csv, asked.show_patches)
        return 0
    if human:
        show_plan.show(made, False, False, asked.show_patches)
        if not show_plan.agreed(made, yes):
            return 1
    with _progress(made, human) as progress:
        answer = requests.execute(
            store, found, made, workers=asked.workers, engine=asked.engine, progress=progress
        )
    _print_answer(store, found, answer, as_json, as_csv, asked.show_patches)
    for line in [
        *answer.failures,
        *(f"{run_id} is skipped: {why}" for run_id, why in made.skipped.items()),
    ]:
        print(f"flor: {line}", file=sys.stderr)
    if answer.failures:
        return 1
    verify = recipe.replay.verify if recipe else "exact"
    return 3 if answer.has_diverged and verify != "off" else 0


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


def _runs(store: Store, asked: ReplayOptions, recipe: Recipe | None) -> list[Run]:
    if asked.runs:
        return [find_run(store, parse_reference(name).run) for name in asked.runs]
    found = list_runs(store)
    if recipe is not None:
        found = [run for run in found if run.project == recipe.name]
    if not found:
        raise FlorError(
            f"there is no recorded run in {store.root}. Train with FlorCallback() on the trainer, "
            "or give a recipe: flor-hf replay recipes/bert.yaml"
        )
    return found


def _request(
    store: Store,
    found: list[Run],
    asked: ReplayOptions,
    recipe: Recipe | None,
    hooks: tuple[Path, ...],
) -> Any:
    from flor_plugins.replayer import requests

    preset = recipe.replay if recipe else None
    patch: Mapping[str, str] = preset.patch if preset else {}
    return requests.request(
        store,
        found,
        tuple(asked.metrics.split(","))
        if asked.metrics
        else tuple(preset.metrics if preset else ()),
        asked.where if asked.where is not None else (preset.where if preset else None),
        asked.epochs or (preset.epochs if preset else "all"),
        hooks=hooks or tuple(recipe.hook_paths if recipe else ()),
        at=requests.places_asked(store, asked.runs),
        patch=_patch(asked.patch) or patch,
        folder=recipe.folder if recipe and not asked.patch else None,
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


@contextmanager
def _progress(made: Plan, human: bool) -> Iterator[Progress | None]:
    """A bar on a terminal, plain lines elsewhere, nothing for programs."""
    if not human or not sys.stderr.isatty():
        yield plain_progress if human else None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(
            "replaying", total=sum(len(one.epochs) for task in made.tasks for one in task.passes)
        )

        def tell(task: Task, event: dict[str, Any]) -> None:
            if event["event"] == "position":
                bar.update(
                    job,
                    advance=1,
                    description=f"{task.name} epoch {event['epoch']} ({event['way']})",
                )
            elif event["event"] == "lost":
                bar.console.print(f"{task.name}: {event['message']}", markup=False)

        yield tell


def plain_progress(task: Task, event: dict[str, Any]) -> None:
    if event["event"] == "pass":
        print(
            f"{task.name}: {event['way']} epochs {','.join(map(str, event['epochs']))}",
            file=sys.stderr,
        )
    elif event["event"] == "lost":
        print(f"{task.name}: {event['message']}", file=sys.stderr)


def _print_answer(
    store: Store, found: list[Run], answer: Any, as_json: bool, as_csv: bool, show_patches: bool
) -> None:
    from flor_plugins.store.query import dataframe

    if answer.rows and not (as_json or as_csv):
        tables.table(answer.rows, SCHEDULE, as_json=False, as_csv=False)
        for row in answer.rows:
            if row["detail"]:
                print(f"{row['name']} ({row['way']}) first differs at {row['detail']}")
        print()
    data = dataframe.dataframe(store, *answer.plan.metrics, runs=found)
    if as_json and show_patches:
        rows = tables.records(data)
        print(json.dumps({"patches": show_plan.patches_of(answer.plan), "rows": rows}, indent=1))
        return
    tables.frame(data, as_json=as_json, as_csv=as_csv)
