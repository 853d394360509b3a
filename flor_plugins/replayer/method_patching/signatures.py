"""Has a version the method that is to be replaced, and can the function be called as that
one is? Read, never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from flor_plugins.errors import CannotCarry, HookError
from flor_plugins.records import MethodPatch
from flor_plugins.replayer.backport.imports import module_path, resolve
from flor_plugins.replayer.backport.syntax import CodeVersion, Scope, parsed

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def check(method: MethodPatch, version: CodeVersion, entry: str) -> None:
    """entry: the file of the version that is launched.

    Raises CannotCarry where the version has no such method of its own, HookError where the
    function can't be called as that method is."""
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
    found = next((one for base in _line(version, owner) for one in _methods(base, name)), None)
    if found is None:
        line = owner.node.lineno if not isinstance(owner.node, ast.Module) else 1
        raise CannotCarry(
            f"{method.target} was to be replaced: {owner.path}:{line} has no {name!r} of its own"
        )
    _compare(method, *found)


def _class(version: CodeVersion, path: str, names: list[str]) -> Scope | None:
    """Where it is defined: a module may only import it."""
    of = resolve(version, path, names[0])
    found = (
        version.scope(of.path, (of.name, *names[1:]))
        if of is not None and of.path and of.name
        else None
    )
    return found if found is not None and found.is_class else None


def _line(version: CodeVersion, owner: Scope) -> Iterator[Scope]:
    """The class and those of the project that it inherits from."""
    coming = [owner]
    for one in coming:
        yield one
        assert isinstance(one.node, ast.ClassDef)
        for base in one.node.bases:
            found = _class(version, one.path, ast.unparse(base).split("."))
            if found is not None and found not in coming:
                coming.append(found)


def _methods(owner: Scope, name: str) -> Iterator[tuple[str, FunctionNode]]:
    for one in owner.node.body:
        if isinstance(one, FunctionNode) and one.name == name:
            yield owner.path, one


def _compare(method: MethodPatch, path: str, own: FunctionNode) -> None:
    tree = parsed("patch.py", method.text)
    assert tree is not None  # it was read
    mine = next(
        one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == method.function
    )
    if why := why_not(own.args, mine.args, is_static=_is_static(own)):
        raise HookError(
            f"{method.path}:{mine.lineno}: {method.function}({ast.unparse(mine.args)}) was to "
            f"replace {method.target}, "
            f"and {why}. That is, at {path}:{own.lineno}, {own.name}({ast.unparse(own.args)}): "
            f"take its parameters."
        )


def _is_static(own: FunctionNode) -> bool:
    return any(ast.unparse(one) == "staticmethod" for one in own.decorator_list)


def why_not(own: ast.arguments, mine: ast.arguments, *, is_static: bool = False) -> str:
    """Why a call that `own` takes is not taken by `mine`; "" if each is.

    The name of self does not matter.
    """
    positional, places = [*own.posonlyargs, *own.args], [*mine.posonlyargs, *mine.args]
    needed = len(positional) - len(own.defaults)
    given = len(places) - len(mine.defaults)
    for at, one in enumerate(positional):
        is_named = at >= len(own.posonlyargs) and (is_static or at > 0)
        if at >= len(places):
            if mine.vararg is None or (is_named and mine.kwarg is None):
                return f"it does not take {one.arg!r}"
        elif is_named and (places[at].arg != one.arg or at < len(mine.posonlyargs)):
            return (
                f"its parameter {at + 1} is {places[at].arg!r} and not {one.arg!r}, by "
                f"which it is called"
            )
        elif at >= needed and at < given:
            return f"it needs {one.arg!r}, which calls may leave out"
    if extra := [one.arg for one in places[len(positional) : given]]:
        return f"it needs {extra[0]!r}, which no call gives"
    if own.vararg is not None and mine.vararg is None:
        return f"it does not take *{own.vararg.arg}"
    if own.kwarg is not None and mine.kwarg is None:
        return f"it does not take **{own.kwarg.arg}"
    return _keywords(own, mine, {one.arg for one in places[len(positional) :]})


def _keywords(own: ast.arguments, mine: ast.arguments, others: set[str]) -> str:
    """others: parameters of `mine` that can be given by name, besides those that are
    keyword-only.
    """
    known = dict(zip((one.arg for one in mine.kwonlyargs), mine.kw_defaults, strict=True))
    for one, default in zip(own.kwonlyargs, own.kw_defaults, strict=True):
        if one.arg in known:
            if default is not None and known[one.arg] is None:
                return f"it needs {one.arg!r}, which calls may leave out"
        elif one.arg not in others and mine.kwarg is None:
            return f"it does not take {one.arg!r}"
    names = {one.arg for one in own.kwonlyargs}
    needed = [name for name, default in known.items() if default is None and name not in names]
    return f"it needs {needed[0]!r}, which no call gives" if needed else ""
