"""Proof that a text is another one with some statements put in, and nothing else changed."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from flor_plugins.replayer.backport.syntax import (
    BLOCK_KEYWORDS,
    BLOCK_OWNERS,
    Definition,
    Nesting,
    block_fields,
    header,
    parsed,
    shape,
    shell,
    with_single_imports,
)


@dataclass(frozen=True, slots=True)
class ExtraStatement:
    """A statement that one tree has and the other has not.

    scope, block: where, as in an Insertion.
    """

    scope: Nesting
    block: Nesting
    node: ast.stmt


class _Differs(Exception):
    """The trees differ in more than statements that were put in."""


def extras(old: ast.Module, new: ast.Module) -> list[ExtraStatement] | None:
    """Return the statements of `new` that must be taken out to get `old`'s very tree.

    None if that does not give it.
    """
    try:
        return _extras(old, new, (), ())
    except _Differs:
        return None


def extras_of_text(path: str, old: str, new: str) -> list[ExtraStatement] | None:
    """Return the same of two texts of a file; None also if one of them is not Python."""
    old_tree, new_tree = parsed(path, old), parsed(path, new)
    return extras(old_tree, new_tree) if old_tree and new_tree else None


def shapes(statements: Iterable[ast.stmt]) -> Counter[str]:
    """Count how often each statement is among them; imports name by name."""
    return Counter(map(shape, with_single_imports(statements)))


def _extras(old: ast.AST, new: ast.AST, scope: Nesting, block: Nesting) -> list[ExtraStatement]:
    """Return what `new` holds more than `old`; raises _Differs if they differ in anything else."""
    if shell(old) != shell(new):
        raise _Differs
    if isinstance(new, Definition):
        scope, block = (*scope, new.name), ()
    extra_statements: list[ExtraStatement] = []
    old_blocks = block_fields(old)
    for field, children in block_fields(new).items():
        if field in BLOCK_OWNERS:
            if len(old_blocks[field]) != len(children):
                raise _Differs
            for before, after in zip(old_blocks[field], children, strict=True):
                extra_statements += _extras(before, after, scope, block)
        else:
            word = () if isinstance(new, Definition | ast.Module) else (_word(new, field),)
            extra_statements += _extras_of_block(
                old_blocks[field], children, scope, (*block, *word)
            )
    return extra_statements


def _extras_of_block(
    old: list[ast.AST], new: list[ast.AST], scope: Nesting, block: Nesting
) -> list[ExtraStatement]:
    extra_statements: list[ExtraStatement] = []
    kept = with_single_imports(old)  # type: ignore[arg-type]
    for node in with_single_imports(new):  # type: ignore[arg-type]
        try:
            if not kept:
                raise _Differs
            extra_statements += _extras(kept[0], node, scope, block)
            del kept[0]
        except _Differs:
            extra_statements.append(ExtraStatement(scope, block, node))
    if kept:
        raise _Differs
    return extra_statements


def _word(node: ast.AST, field: str) -> str:
    if field in BLOCK_KEYWORDS:
        return BLOCK_KEYWORDS[field]
    return header(node) if isinstance(node, ast.stmt) else type(node).__name__
