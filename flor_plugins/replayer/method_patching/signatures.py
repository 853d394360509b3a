"""Has a version the method that is to be replaced, and can the function be called as it is?

The version is read, never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from flor_plugins.errors import CannotCarry, HookError
from flor_plugins.records import MethodPatch
from flor_plugins.replayer.backport.imports import module_path, resolve
from flor_plugins.replayer.backport.syntax import CodeVersion, FunctionNode, Scope


def check(method: MethodPatch, version: CodeVersion, entry: str) -> None:
    """Look whether a function can take the place of a version's method.

    entry: the file of the version that is launched. Raises CannotCarry where the version has no
    such method of its own, HookError where the function can't be called as that method is.
    """
    module, _, dotted = method.target.partition(":")
    *classes, name = dotted.split(".")
    path = entry if module == "__main__" else module_path(version, entry, module, 0)
    if not path:
        raise CannotCarry(
            f"{method.target} was to be replaced: this version has no module {module!r}"
        )
    owner = _class(version, path, classes)
    if owner is None:
        raise CannotCarry(
            f"{method.target} was to be replaced: {path} has no class {'.'.join(classes)}"
        )
    own = next((found for base in _bases(version, owner) for found in _methods(base, name)), None)
    if own is None:
        line = owner.node.lineno if not isinstance(owner.node, ast.Module) else 1
        raise CannotCarry(
            f"{method.target} was to be replaced: {owner.path}:{line} has no {name!r} of its own"
        )
    _compare(method, *own)


def _class(version: CodeVersion, path: str, names: list[str]) -> Scope | None:
    """Return the class where it is defined: a module may only import it."""
    meant = resolve(version, path, names[0])
    if meant is None or not meant.path or not meant.name:
        return None
    scope = version.scope(meant.path, (meant.name, *names[1:]))
    return scope if scope is not None and scope.is_class else None


def _bases(version: CodeVersion, owner: Scope) -> Iterator[Scope]:
    """Yield the class and those of the project that it inherits from."""
    classes = [owner]
    for scope in classes:
        yield scope
        assert isinstance(scope.node, ast.ClassDef)
        for base in scope.node.bases:
            inherited = _class(version, scope.path, ast.unparse(base).split("."))
            if inherited is not None and inherited not in classes:
                classes.append(inherited)


def _methods(owner: Scope, name: str) -> Iterator[tuple[str, FunctionNode]]:
    for node in owner.node.body:
        if isinstance(node, FunctionNode) and node.name == name:
            yield owner.path, node


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    """Return the function of that name in a patch's file, which was looked at when it was read."""
    return next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    )


def _compare(method: MethodPatch, path: str, own: FunctionNode) -> None:
    mine = function_of(ast.parse(method.text), method.function)
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in own.decorator_list)
    if why := why_not(own.args, mine.args, is_static=is_static):
        raise HookError(
            f"{method.path}:{mine.lineno}: {method.function}({ast.unparse(mine.args)}) was to "
            f"replace {method.target}, "
            f"and {why}. That is, at {path}:{own.lineno}, {own.name}({ast.unparse(own.args)}): "
            f"take its parameters."
        )


def why_not(own: ast.arguments, mine: ast.arguments, *, is_static: bool = False) -> str:
    """Return why a call that `own` takes is not taken by `mine`; "" if each is.

    The name of self does not matter.
    """
    positional, places = [*own.posonlyargs, *own.args], [*mine.posonlyargs, *mine.args]
    needed = len(positional) - len(own.defaults)
    given = len(places) - len(mine.defaults)
    for at, parameter in enumerate(positional):
        is_named = at >= len(own.posonlyargs) and (is_static or at > 0)
        if at >= len(places):
            if mine.vararg is None or (is_named and mine.kwarg is None):
                return f"it does not take {parameter.arg!r}"
        elif is_named and (places[at].arg != parameter.arg or at < len(mine.posonlyargs)):
            return (
                f"its parameter {at + 1} is {places[at].arg!r} and not {parameter.arg!r}, by "
                f"which it is called"
            )
        elif at >= needed and at < given:
            return f"it needs {parameter.arg!r}, which calls may leave out"
    if extra := [parameter.arg for parameter in places[len(positional) : given]]:
        return f"it needs {extra[0]!r}, which no call gives"
    if own.vararg is not None and mine.vararg is None:
        return f"it does not take *{own.vararg.arg}"
    if own.kwarg is not None and mine.kwarg is None:
        return f"it does not take **{own.kwarg.arg}"
    return _keywords(own, mine, {parameter.arg for parameter in places[len(positional) :]})


def _keywords(own: ast.arguments, mine: ast.arguments, others: set[str]) -> str:
    """Return why a call by keywords is not taken.

    others: parameters of `mine` that can be given by name, besides those that are keyword-only.
    """
    known = dict(
        zip((parameter.arg for parameter in mine.kwonlyargs), mine.kw_defaults, strict=True)
    )
    for parameter, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
        if parameter.arg in known:
            if default is not None and known[parameter.arg] is None:
                return f"it needs {parameter.arg!r}, which calls may leave out"
        elif parameter.arg not in others and mine.kwarg is None:
            return f"it does not take {parameter.arg!r}"
    names = {parameter.arg for parameter in own.kwonlyargs}
    needed = [name for name, default in known.items() if default is None and name not in names]
    return f"it needs {needed[0]!r}, which no call gives" if needed else ""
