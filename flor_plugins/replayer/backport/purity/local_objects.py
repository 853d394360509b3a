"""Tell what the edit defines, and which of it are objects that it made itself.

Changing these changes nobody's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from flor_plugins.replayer.backport.names import Comprehension, binds
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import root_name
from flor_plugins.replayer.backport.syntax import Definition

_DISPLAYS = ast.List | ast.Dict | ast.Set | ast.Constant | ast.JoinedStr
_NEW = _DISPLAYS | Comprehension


def defined(nodes: Iterable[ast.stmt]) -> set[str]:
    """Return the names that statements define; also what `:=` in a comprehension does."""
    names: set[str] = set()
    for node in nodes:
        names |= binds(node)
        if not isinstance(node, Definition):
            walrus = (inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))
            names |= {inner.target.id for inner in walrus}
    return names


def fresh_names(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """Return names that never stand for anything but an object that these statements made."""
    made: set[str] = set()
    other: set[str] = set()
    simple: set[ast.expr] = set()
    nodes = [node for statement in statements for node in ast.walk(statement)]
    for node in nodes:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=value):
                targets = [target]
            case ast.AugAssign(target=target):
                simple.add(target)
                continue
            case _:
                continue
        for target in targets:
            if isinstance(target, ast.Name | ast.Attribute) and (name := root_name(target)):
                simple.add(target)
                (made if value is None or is_new(value) else other).add(name)
    for node in nodes:
        match node:
            case ast.arg(arg=name):
                other.add(name)
            case ast.Name(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()) if node not in simple:
                other.add(root_name(node))
    return frozenset(made - other)


def is_new(value: ast.expr) -> bool:
    """Whether the expression makes an object of its own."""
    if not isinstance(value, ast.Call):
        return isinstance(value, _NEW)
    called = ast.unparse(value.func)
    last = called.rpartition(".")[2]
    if isinstance(value.func, ast.Name):
        return last in known_effects.CONTAINERS
    package = called.partition(".")[0]
    return (
        last in known_effects.COPIES
        or any(called.endswith(name.rpartition(".")[2]) for name in known_effects.GENERATORS)
        or ".Generator(" in called
        or (last in known_effects.CREATIONS and package in ("torch", "np", "numpy"))
        or package == "collections"
        or (package in ("torchmetrics", "copy") and last != "copy")
    )
