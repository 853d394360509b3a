"""All that is wrong with a recipe and the files that it names; nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path

from flor_plugins.errors import RecipeError
from flor_plugins.recipe.document import KeyPath, RecipeMistake, nearest, read_document
from flor_plugins.recipe.schema import Recipe, validate
from flor_plugins.recipe.trainer import find_module, no_module


def check_recipe(path: Path) -> list[str]:
    """All that is wrong with a recipe, as `file:line: mistake`; empty if nothing is.

    Beyond what `load_recipe` finds: the trainer's module and function exist and
    take the params, the hook files exist and are Python, and so do the functions of `patch`.
    """
    try:
        document = read_document(path)
        recipe = validate(document)
    except RecipeError as error:
        return str(error).split("\n")
    return [document.at(loc, text) for loc, text in _mistakes(recipe)]


def _mistakes(recipe: Recipe) -> list[RecipeMistake]:
    return [*_check_trainer(recipe), *_check_hooks(recipe), *_check_patch(recipe)]


def _check_trainer(recipe: Recipe) -> list[RecipeMistake]:
    module, _, name = recipe.trainer.partition(":")
    place: KeyPath = ("trainer",)
    file = find_module(recipe.folder, module)
    if file is None:
        return [(place, no_module(recipe.folder, module))]
    tree = _parse(file)
    if isinstance(tree, str):
        return [(place, tree)]
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    if name not in functions:
        return [
            (place, f"no function {name!r} at the top level of {file}{nearest(name, functions)}")
        ]
    return _check_params(recipe, functions[name].args)


def _check_params(recipe: Recipe, takes: ast.arguments) -> list[RecipeMistake]:
    positional = [one.arg for one in takes.args]
    known = [*positional, *(one.arg for one in takes.kwonlyargs)]
    needed = positional[: max(0, len(positional) - len(takes.defaults))]
    needed += [
        one.arg for one, d in zip(takes.kwonlyargs, takes.kw_defaults, strict=True) if d is None
    ]
    unknown = [] if takes.kwarg else [key for key in recipe.params if key not in known]
    missing = [key for key in needed if key not in recipe.params]
    return [
        *(
            (("params", one), f"{recipe.trainer} takes no {one!r}{nearest(one, known)}")
            for one in unknown
        ),
        *((("params",), f"{recipe.trainer} needs {one!r}; add it to params") for one in missing),
    ]


def _check_hooks(recipe: Recipe) -> list[RecipeMistake]:
    found: list[RecipeMistake] = []
    for index, (hook, path) in enumerate(zip(recipe.replay.hooks, recipe.hook_paths, strict=True)):
        place: KeyPath = ("replay", "hooks", index)
        if not path.is_file():
            known = sorted(
                str(one.relative_to(recipe.folder)) for one in recipe.folder.glob("*/*.py")
            )
            found.append((place, f"no hook file {hook!r} beside the recipe{nearest(hook, known)}"))
            continue
        tree = _parse(path)
        if isinstance(tree, str):
            found.append((place, tree))
    return found


def _check_patch(recipe: Recipe) -> list[RecipeMistake]:
    found: list[RecipeMistake] = []
    for target, source in recipe.replay.patch.items():
        name, _, function = source.rpartition(":")
        path, place = recipe.folder / name, ("replay", "patch", target)
        tree = _parse(path) if path.is_file() else f"no file {name!r} beside the recipe"
        if isinstance(tree, str):
            found.append((place, tree))
            continue
        functions = [one.name for one in tree.body if isinstance(one, ast.FunctionDef)]
        if function not in functions:
            found.append(
                (
                    place,
                    f"no function {function!r} at the top level of "
                    f"{path}{nearest(function, functions)}",
                )
            )
    return found


def _parse(path: Path) -> ast.Module | str:
    """The syntax tree, or what is wrong."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        line = getattr(error, "lineno", None) or 1
        return f"{path}:{line} is not Python: {getattr(error, 'msg', error)}"
