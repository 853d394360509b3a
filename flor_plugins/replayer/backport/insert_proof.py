"""Proof that a text is another one with some statements put in, and nothing else changed."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from flor_plugins.replayer.backport.syntax import DEFINITIONS, header, one_by_one, shape

_BODIES = frozenset(("body", "orelse", "finalbody", "handlers", "cases"))


@dataclass(frozen=True, slots=True)
class ExtraStatement:
    """A statement that one tree has and the other has not.

    scope, block: where, as in an Insertion.
    """

    scope: tuple[str, ...]
    block: tuple[str, ...]
    node: ast.stmt


def extras(old: ast.Module, new: ast.Module) -> list[ExtraStatement] | None:
    """The statements of `new` that must be taken out to get `old`'s very tree; None if that
    does not give it.
    """
    return _list(old.body, new.body, (), ())


def shapes(statements: Iterable[ast.stmt]) -> Counter[str]:
    """How often each statement is among them; imports name by name."""
    return Counter(shape(one) for one in one_by_one(list(statements)))


def _list(
    old: list[ast.stmt], new: list[ast.stmt], scope: tuple[str, ...], block: tuple[str, ...]
) -> list[ExtraStatement] | None:
    found: list[ExtraStatement] = []
    old, new = one_by_one(old), one_by_one(new)
    at = 0
    for one in new:
        inner = _same(old[at], one, scope, block) if at < len(old) else None
        if inner is None:
            found.append(ExtraStatement(scope, block, one))
        else:
            found += inner
            at += 1
    return found if at == len(old) else None


def _same(
    old: ast.AST, new: ast.AST, scope: tuple[str, ...], block: tuple[str, ...]
) -> list[ExtraStatement] | None:
    """What `new` holds more than `old`, or None if they differ in anything else."""
    if type(old) is not type(new) or _shell(old) != _shell(new):
        return None
    found: list[ExtraStatement] = []
    for field in new._fields:
        if field not in _BODIES or not isinstance(getattr(new, field), list):
            continue
        if isinstance(new, DEFINITIONS):
            inner = _list(getattr(old, field), getattr(new, field), (*scope, new.name), ())
        elif field in ("handlers", "cases"):
            inner = _each(getattr(old, field), getattr(new, field), scope, block)
        else:
            inner = _list(
                getattr(old, field), getattr(new, field), scope, (*block, _word(new, field))
            )
        if inner is None:
            return None
        found += inner
    return found


def _each(
    old: list[ast.AST], new: list[ast.AST], scope: tuple[str, ...], block: tuple[str, ...]
) -> list[ExtraStatement] | None:
    found: list[ExtraStatement] = []
    for before, after in zip(old, new, strict=False):
        inner = _same(before, after, scope, block)
        if inner is None:
            return None
        found += inner
    return found if len(old) == len(new) else None


def _word(node: ast.AST, field: str) -> str:
    words = {"orelse": "else", "finalbody": "finally"}
    return words.get(field) or (header(node) if isinstance(node, ast.stmt) else type(node).__name__)


def _shell(node: ast.AST) -> list[tuple[str, str]]:
    """A statement without the statements inside it."""
    return [
        (name, _text(value))
        for name, value in ast.iter_fields(node)
        if name not in _BODIES or not _is_list(value)
    ]


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _text(value: object) -> str:
    if isinstance(value, list):
        return str([_text(one) for one in value])
    return shape(value) if isinstance(value, ast.AST) else repr(value)
