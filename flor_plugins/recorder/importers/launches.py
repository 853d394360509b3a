"""The launch of a run that was not recorded: the user says which command or recipe trained it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.recorder import launch_environment
from flor_plugins.records import Launch


def of_command(words: Sequence[str]) -> Launch:
    """`python train.py ARG ...` or `python -m module ARG ...`, started from the present folder.

    The trainer in it needs no FlorCallback. Raises FlorError for another command.
    """
    if (
        len(words) < 2
        or not Path(words[0]).name.startswith("python")
        or (words[1] == "-m" and len(words) < 3)
    ):
        raise FlorError(
            f"the command that trained a run is a python command, and {' '.join(words)!r} was "
            f"given: "
            "flor-hf import PATH -- python train.py --lr 0.1"
        )
    here = launch_environment.launch()
    is_module = words[1] == "-m"
    target, *arguments = words[2:] if is_module else words[1:]
    if not is_module and not Path(target).is_file():
        raise FlorError(
            f"the run was to be imported with the script {target!r}; there is none in {Path.cwd()}"
        )
    script = Path(target).resolve()
    return Launch(
        kind="module" if is_module else "script",
        target=target if is_module else str(script),
        argv=tuple(arguments),
        cwd=os.getcwd(),
        env=here.env,
        folder=str(Path.cwd() if is_module else script.parent),
        injected=True,
    )


def of_recipe(path: Path, version: str | None = None) -> Launch:
    """A version of a recipe, its only one by default. Raises RecipeError."""
    from flor_plugins.recipe import load_recipe

    recipe = load_recipe(path)
    known = [one.name for one in recipe.versions]
    if version is None and len(known) > 1:
        raise RecipeError(
            f"{recipe.path}:1: which version trained the run? --version {' | '.join(known)}"
        )
    return Launch(
        kind="recipe",
        target=recipe.trainer,
        cwd=os.getcwd(),
        env=launch_environment.launch().env,
        folder=str(recipe.folder),
        params=recipe.params_of(version or known[0]),
        recipe=str(recipe.path),
    )


def nothing() -> Launch:
    """Nobody said how the run was started."""
    return Launch(kind="interactive", target="", cwd=os.getcwd())
