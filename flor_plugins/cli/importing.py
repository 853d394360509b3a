"""`import`: checkpoints of a training that was not recorded become a run."""

from __future__ import annotations

from pathlib import Path

from flor_plugins.errors import FlorError


def import_run(path: Path, command: list[str], name: str | None, recipe: Path | None, version: str | None) -> int:
    """Exit status 0; a run of the same files is not made twice."""
    from flor_plugins.record import imports
    from flor_plugins.record.imports import launches

    words = command[1:] if command[:1] == ["--"] else command
    if (words and recipe) or (version and not recipe):
        raise FlorError(
            "import takes a recipe (--recipe FILE --version NAME) or a command (-- python train.py ...), "
            "and a version of a recipe only: leave one out"
        )
    launch = launches.of_command(words) if words else None
    if recipe is not None:
        launch = launches.of_recipe(recipe, version)
    made = imports.import_run(path, name=name, launch=launch)
    run = made.run
    if made.is_new:
        print(f"imported {run.name}: run {run.run_id}, up to {run.position}")
    else:
        print(f"{path} is there already: run {run.run_id}, named {run.name}")
    for gap in run.gaps:
        print(f"  {gap}")
    return 0
