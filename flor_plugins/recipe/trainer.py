"""From `module:function` to what the function returns; finding it without importing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from flor_plugins.errors import MissingDependency, RecipeError
from flor_plugins.recipe.document import nearest


def build_trainer(folder: Path, target: str, params: Mapping[str, object]) -> object:
    """Call the function `module:function` of a recipe's folder and return what it returns.

    The folder becomes the first entry of sys.path. What the function itself raises
    passes through. Raises RecipeError if it is missing or does not take the params.
    """
    module_name, _, function_name = target.partition(":")
    folder = folder.resolve()
    sys.path[:] = [str(folder), *(one for one in sys.path if one != str(folder))]
    module = _import(folder, module_name)
    file = module.__file__ or module_name
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, one in vars(module).items() if inspect.isfunction(one)]
        raise RecipeError(f"{file}:1: no function {function_name!r}{nearest(function_name, known)}")
    signature = inspect.signature(function)
    try:
        signature.bind(**params)
    except TypeError as error:
        line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
        takes = ", ".join(signature.parameters) or "none"
        raise RecipeError(
            f"{file}:{line}: {function_name} does not take the recipe's params: {error}. "
            f"It takes {takes}; change `params` in the recipe, or the function."
        ) from error
    return function(**params)


def find_module(folder: Path, name: str) -> Path | None:
    """The file of a module next to the recipe, or else installed. Nothing is imported."""
    first, *rest = name.split(".")
    here = _file_of(folder.joinpath(first, *rest))
    if here is not None:
        return here
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a loaded module without a spec, like __main__
        return None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    origin = Path(spec.origin)
    return _file_of(origin.parent.joinpath(*rest)) if rest else origin


def no_module(folder: Path, name: str) -> str:
    """Says that there is no such module, and which one may have been meant."""
    known = sorted(one.stem for one in folder.glob("*.py"))
    return f"no module {name!r} in {folder} or among the installed packages{nearest(name, known)}"


def _file_of(stem: Path) -> Path | None:
    candidates = (stem / "__init__.py", stem.parent / f"{stem.name}.py")
    return next((one for one in candidates if one.is_file()), None)


def _import(folder: Path, name: str) -> ModuleType:
    importlib.invalidate_caches()
    _forget_namesakes(folder, name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise RecipeError(f"{folder}:1: {no_module(folder, name)}") from error
        raise MissingDependency(
            f"{find_module(folder, name) or name} imports {error.name!r}, which is not installed: "
            f"pip install 'flor-plugins[recipes]', or the package that holds it"
        ) from error


def _forget_namesakes(folder: Path, name: str) -> None:
    """Drop a loaded module of the same name if it came from another recipe's folder."""
    here = _file_of(folder.joinpath(*name.split(".")))
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if here is None or loaded is None or Path(loaded).resolve() == here.resolve():
        return
    first = name.split(".")[0]
    for one in [one for one in sys.modules if one == first or one.startswith(f"{first}.")]:
        del sys.modules[one]
