"""The process that records: a version of a recipe, or a command with the callback put on.

python -m flor_plugins.record.start recipe RECIPE.yaml VERSION
python -m flor_plugins.record.start script FRAMEWORK NAME SCRIPT [ARG ...]
python -m flor_plugins.record.start module FRAMEWORK NAME MODULE [ARG ...]
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.recipe import build_trainer, load_recipe
from flor_plugins.record import environment
from flor_plugins.records import Launch


def recipe(path: Path, version: str) -> None:
    """Train one version of a recipe with the callback on."""
    asked = load_recipe(path)
    params = asked.params_of(version)
    launched = environment.launch()
    built = build_trainer(asked.folder, asked.trainer, params)
    framework = _framework_of(built, asked.trainer)
    callback = import_module(f"flor_plugins.{framework}").FlorCallback(version, project=asked.name)
    callback.launch = Launch(
        kind="recipe",
        target=asked.trainer,
        cwd=launched.cwd,
        env=launched.env,
        folder=str(asked.folder),
        params=params,
        recipe=str(asked.path),
    )
    import_module(f"flor_plugins.{framework}.intercept").train(built, callback)


def command(kind: str, framework: str, name: str, target: str, arguments: list[str]) -> None:
    """Run a script or a module; every trainer that it trains gets a FlorCallback."""
    adapter = import_module(f"flor_plugins.{framework}.intercept")
    made = import_module(f"flor_plugins.{framework}").FlorCallback
    folder = Path(target).resolve().parent if kind == "script" else Path.cwd()
    launched = environment.launch()

    def callback() -> Any:
        one = made(name or None)
        one.launch = Launch(
            kind="script" if kind == "script" else "module",
            target=str(Path(target).resolve()) if kind == "script" else target,
            argv=tuple(arguments),
            cwd=launched.cwd,
            env=launched.env,
            folder=str(folder),
            injected=True,
        )
        return one

    adapter.put_on(callback)
    sys.argv = [target, *arguments]
    if kind == "script":
        sys.path.insert(0, str(folder))
        runpy.run_path(target, run_name="__main__")
    else:
        if not sys.flags.safe_path:  # else the code is a copy that lies elsewhere, see record/relaunch.py
            sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def _framework_of(built: Any, target: str) -> str:
    if isinstance(built, tuple) and len(built) == 3:
        return "lightning"
    if any(base.__module__.startswith("transformers.") for base in type(built).__mro__):
        return "hf"
    raise RecipeError(
        f"{target} returned {type(built).__name__}; return a transformers.Trainer, "
        "or (lightning Trainer, module, data)"
    )


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    try:
        if arguments[0] == "recipe":
            recipe(Path(arguments[1]), arguments[2])
        else:
            command(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4:])
    except FlorError as error:
        print(f"flor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
