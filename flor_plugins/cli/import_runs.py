"""`import` and `import-flordb`: trainings that were not recorded by us become runs."""

from __future__ import annotations

from pathlib import Path

from flor_plugins.errors import FlorError


def import_run(
    path: Path, command: list[str], name: str | None, recipe: Path | None, version: str | None
) -> int:
    """Exit status 0; a run of the same files is not made twice."""
    from flor_plugins.recorder import importers
    from flor_plugins.recorder.importers import launches

    words = command[1:] if command[:1] == ["--"] else command
    if (words and recipe) or (version and not recipe):
        raise FlorError(
            "import takes a recipe (--recipe FILE --version NAME) or a command (-- python "
            "train.py ...), "
            "and a version of a recipe only: leave one out"
        )
    launch = launches.of_command(words) if words else None
    if recipe is not None:
        launch = launches.of_recipe(recipe, version)
    made = importers.import_run(path, name=name, launch=launch)
    run = made.run
    if made.is_new:
        print(f"imported {run.name}: run {run.run_id}, up to {run.position}")
    else:
        print(f"{path} is there already: run {run.run_id}, named {run.name}")
    for gap in run.gaps:
        print(f"  {gap}")
    return 0


def import_flordb(path: Path, epoch: str | None, step: str | None) -> int:
    """Exit status 0, also where all of it is there already."""
    from flor_plugins.recorder.importers import flordb

    made = flordb.import_flordb(path, epoch=epoch, step=step)
    for one in made:
        if one.done != "known":
            how = "imported" if one.done == "new" else "brought up to date:"
            print(
                f"{how} {one.run.name}: run {one.run.run_id}, up to {one.run.position or 'no loop'}"
            )
            for gap in one.run.gaps:
                print(f"  {gap}")
    known = sum(one.done == "known" for one in made)
    if known:
        print(f"{known} runs are there already")
    return 0
