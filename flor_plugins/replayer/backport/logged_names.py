"""Which names a statement logs; a part that is known only when it runs is "*"."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from flor_plugins.replayer.backport.purity.calls import LOGS


def logging_calls(node: ast.AST) -> list[ast.Call]:
    """The calls that log something, by their last name; a new class or function may hold
    some, too.
    """
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    return [one for one in calls if _last(one.func) in LOGS]


def logged(node: ast.AST) -> tuple[tuple[str, ...], list[ast.Call]]:
    """The names, and the calls whose names can't be told."""
    names: list[str] = []
    unclear = []
    for call in logging_calls(node):
        found = list(_names(call.args[0] if call.args else _keyword(call)))
        names += [one for one in found if one is not None]
        if not found or None in found:
            unclear.append(call)
    return tuple(dict.fromkeys(names)), unclear


def names_in(trees: Iterable[ast.AST]) -> frozenset[str]:
    """All names that are logged somewhere in them."""
    return frozenset(name for tree in trees for name in logged(tree)[0])


def patterns_of(metric: str, names: Iterable[str]) -> frozenset[str]:
    """Those of the names that may be what the metric was logged under: itself, and patterns
    that it fits.
    """
    return frozenset(
        one
        for one in names
        if one == metric or ("*" in one and fnmatchcase(metric, _literally(one)))
    )


def _literally(pattern: str) -> str:
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _names(given: ast.expr | None) -> Iterator[str | None]:
    match given:
        case ast.Dict(keys=keys):
            for key in keys:
                yield _name(key)
        case ast.DictComp(key=key):
            yield _name(key)
        case _:
            yield _name(given)


def _name(node: ast.expr | None) -> str | None:
    """A literal, or an f-string (or sum) that begins with one."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            text = "".join(one.value if isinstance(one, ast.Constant) else "*" for one in parts)  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            text = (_name(left) or "*") + (_name(right) or "*")
        case _:
            return None
    while "**" in text:
        text = text.replace("**", "*")
    # A pattern must say something, or it would take any metric for its own.
    return text if text.strip("*/_.- ") else None


def _keyword(call: ast.Call) -> ast.expr | None:
    return next(
        (one.value for one in call.keywords if one.arg in ("name", "dictionary", "logs")), None
    )


def _last(func: ast.expr) -> str:
    return (
        func.attr
        if isinstance(func, ast.Attribute)
        else func.id
        if isinstance(func, ast.Name)
        else ""
    )
