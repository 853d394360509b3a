"""The process that records: a version of a recipe, or a command with the callback put on.

python -m flor_plugins.recorder.launching.run_script recipe RECIPE.yaml VERSION
python -m flor_plugins.recorder.launching.run_script script FRAMEWORK NAME SCRIPT [ARG ...]
python -m flor_plugins.recorder.launching.run_script module FRAMEWORK NAME MODULE [ARG ...]
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flor_plugins import adapter
from flor_plugins.errors import FlorError, MissingDependency, RecipeError
from flor_plugins.recipe import build_trainer, load_recipe
from flor_plugins.recorder import launch_environment
from flor_plugins.recorder.launching.launch_context import expect, expected_runs
from flor_plugins.records import Launch


def recipe(
    path: Path,
    version: str,
    *,
    is_recorded: bool = True,
    begins: Callable[[object], None] | None = None,
) -> None:
    """Train one version of a recipe, with the callback on where `is_recorded`.

    begins: called with what the recipe's function has built, right before it is trained. Of a
    function that trains by itself, with flor.loop, neither is heard: see `listen` in
    loops/intercept.py.
    """
    source = load_recipe(path)
    params = source.params_of(version)
    launched = launch_environment.launch()
    launch = Launch(
        kind="recipe",
        target=source.trainer,
        cwd=launched.cwd,
        env=launched.env,
        folder=str(source.folder),
        params=params,
        recipe=str(source.path),
    )
    if is_recorded:
        expect(launch, version, source.name)  # of a function that trains by itself, with flor.loop
    built = build_trainer(source.folder, source.trainer, params)
    if built is None and (expected_runs() or not is_recorded):
        return
    framework = _framework_of(built, source.trainer)
    callback = None
    if is_recorded:
        callback = adapter.callback_class(framework)(version, project=source.name)
        callback.launch = launch
    trainer_adapter = adapter.trainer_adapter_of(framework)
    if begins is not None:
        begins(built)
    trainer_adapter.train(built, callback)


def command(kind: str, framework: str, name: str, target: str, arguments: list[str]) -> None:
    """Run a script or a module; every trainer that it trains gets a FlorCallback.

    Hand-written loops need none.
    """
    folder = Path(target).resolve().parent if kind == "script" else Path.cwd()
    launched = launch_environment.launch()
    launch = Launch(
        kind="script" if kind == "script" else "module",
        target=str(Path(target).resolve()) if kind == "script" else target,
        argv=tuple(arguments),
        cwd=launched.cwd,
        env=launched.env,
        folder=str(folder),
    )
    expect(launch, name or None)
    missing = None if framework == "loop" else _put_on(framework, name, launch)
    sys.argv = [target, *arguments]
    if kind == "script":
        sys.path.insert(0, str(folder))
        runpy.run_path(target, run_name="__main__")
    else:
        # safe_path: the code is a copy that lies elsewhere, see recorder/launching/relaunch.py
        if not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    if missing is not None and not expected_runs():
        raise missing


def _put_on(framework: str, name: str, launch: Launch) -> MissingDependency | None:
    """Put a callback on every trainer; return what is missing for that.

    It is raised when the script has ended: one with a hand-written loop needs no trainer.
    """
    try:
        callback_class = adapter.callback_class(framework)
    except MissingDependency as error:
        return error

    def build() -> adapter.RecordingCallback:
        callback = callback_class(name or None)
        callback.launch = replace(launch, injected=True)
        return callback

    adapter.trainer_adapter_of(framework).put_on(build)
    return None


def _framework_of(built: object, target: str) -> str:
    if isinstance(built, tuple) and len(built) == 3:
        return "lightning"
    if any(base.__module__.startswith("transformers.") for base in type(built).__mro__):
        return "hf"
    raise RecipeError(
        f"{target} returned {type(built).__name__}; return a transformers.Trainer, "
        "or (lightning Trainer, module, data), or train in it with flor.loop"
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
