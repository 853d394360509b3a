"""Which names a statement logs; a part that is known only when it runs is "*"."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from flor_plugins.replayer.backport.purity.calls import LOGS


def logging_calls(node: ast.AST) -> list[ast.Call]:
    """Return the calls that log something, by their last name.

    A new class or function may hold some, too.
    """
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
    return [call for call in calls if _last_name(call.func) in LOGS]


def logged(node: ast.AST) -> tuple[tuple[str, ...], list[ast.Call]]:
    """Return the names, and the calls whose names can't be told."""
    names: dict[str, None] = {}
    unclear = []
    for call in logging_calls(node):
        given = list(_names(call.args[0] if call.args else _keyword(call)))
        names |= {name: None for name in given if name is not None}
        if not given or None in given:
            unclear.append(call)
    return tuple(names), unclear


def names_in(trees: Iterable[ast.AST]) -> frozenset[str]:
    """Return all names that are logged somewhere in them."""
    return frozenset(name for tree in trees for name in logged(tree)[0])


def patterns_of(metric: str, names: Iterable[str]) -> frozenset[str]:
    """Return those of the names that may be what the metric was logged under.

    That is the metric itself, and patterns that it fits.
    """
    return frozenset(
        name
        for name in names
        if name == metric or ("*" in name and fnmatchcase(metric, _literally(name)))
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
            text = "".join(_name(part) or "*" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            text = (_name(left) or "*") + (_name(right) or "*")
        case _:
            return None
    while "**" in text:
        text = text.replace("**", "*")
    # A pattern must say something, or it would take any metric for its own.
    return text if text.strip("*/_.- ") else None


def _keyword(call: ast.Call) -> ast.expr | None:
    names = ("name", "dictionary", "logs")
    return next((keyword.value for keyword in call.keywords if keyword.arg in names), None)


def _last_name(func: ast.expr) -> str:
    return getattr(func, "attr", getattr(func, "id", ""))
