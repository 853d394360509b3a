"""`record`: each version of a recipe, or a command, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.recipe import Recipe, check_recipe, load_recipe
from flor_plugins.recipe.examples import example_recipe

_START = [sys.executable, "-m", "flor_plugins.recorder.launching.run_script"]


def record(target: list[str], name: str | None, framework: str | None) -> int:
    """Exit status 0, or 1 when a training failed."""
    if target[0].endswith((".yaml", ".yml")):
        if name or framework or target[1:]:
            raise FlorError(
                f"record {target[0]} takes no --name, --framework or further words: a recipe "
                f"names its versions "
                "and its trainer. Leave them out, or give a command: flor-hf record --name N "
                "-- python train.py"
            )
        recipe = load_recipe(Path(target[0]))
        return record_versions(recipe, [version.name for version in recipe.versions])
    return _command(target, name, framework or _of_this_command())


def record_versions(recipe: Recipe, names: list[str]) -> int:
    """Train these versions, one after the other."""
    mistakes = check_recipe(recipe.path)
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    for name in names:
        print(f"recording {recipe.name}: {name}", flush=True)
        done = subprocess.run([*_START, "recipe", str(recipe.path), name], check=False)
        if done.returncode:
            print(
                f"flor: recording {name} ended with exit status {done.returncode}", file=sys.stderr
            )
            return 1
    return 0


def _command(target: list[str], name: str | None, framework: str) -> int:
    words = [word for word in target if word != "--"]
    if not words or not Path(words[0]).name.startswith("python") or len(words) < 2:
        raise FlorError(
            f"record runs a recipe or a python command, and was given {' '.join(target)!r}: "
            "flor-hf record -- python train.py --lr 0.1, or "
            f"flor-hf record {example_recipe()}"
        )
    if framework not in ("lightning", "hf", "loop"):
        raise FlorError(
            f"record was given --framework {framework}; it is lightning, hf, or loop (of flor.loop)"
        )
    kind, rest = ("module", words[2:]) if words[1] == "-m" else ("script", words[1:])
    if kind == "script" and not Path(rest[0]).is_file():
        raise FlorError(
            f"record was asked to run {rest[0]!r}; there is no such script in {Path.cwd()}"
        )
    return subprocess.run([*_START, kind, framework, name or "", *rest], check=False).returncode


def _of_this_command() -> str:
    return "lightning" if "lightning" in Path(sys.argv[0]).name else "hf"
