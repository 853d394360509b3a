"""What the edit defines, and which of it are objects that it made itself, so that changing
them changes nobody's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from flor_plugins.replayer.backport.names import binds
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import root_name

_NEW = (
    ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Constant, ast.JoinedStr, ast.GeneratorExp,
)  # fmt: skip


def defined(nodes: Iterable[ast.stmt]) -> set[str]:
    """The names that statements define; also what `:=` in a comprehension does."""
    found: set[str] = set()
    for node in nodes:
        found |= binds(node)
        inner = [one for one in ast.walk(node) if isinstance(one, ast.NamedExpr)]
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found |= {one.target.id for one in inner}
    return found


def fresh_names(nodes: Iterable[ast.stmt]) -> frozenset[str]:
    """Names that never stand for anything but an object that these statements made."""
    made: set[str] = set()
    other: set[str] = set()
    simple: set[int] = set()
    every = [one for node in nodes for one in ast.walk(node)]
    for one in every:
        targets = (
            one.targets
            if isinstance(one, ast.Assign)
            else [one.target]
            if isinstance(one, ast.AnnAssign)
            else []
        )
        for target in targets:
            if isinstance(target, ast.Name | ast.Attribute) and (name := root_name(target)):
                simple.add(id(target))
                (made if one.value is None or is_new(one.value) else other).add(name)  # type: ignore[union-attr]
        if isinstance(one, ast.AugAssign):
            simple.add(id(one.target))
    for one in every:
        if (
            isinstance(one, ast.Name | ast.Attribute)
            and isinstance(one.ctx, ast.Store)
            and id(one) not in simple
        ):
            other.add(root_name(one))
        elif isinstance(one, ast.arg):
            other.add(one.arg)
    return frozenset(made - other)


def is_new(value: ast.expr) -> bool:
    """Does the expression make an object of its own?"""
    if isinstance(value, _NEW):
        return True
    if not isinstance(value, ast.Call):
        return False
    called = ast.unparse(value.func)
    last = called.rpartition(".")[2]
    if isinstance(value.func, ast.Name):
        return last in known_effects.CONTAINERS or last in (
            "Counter",
            "defaultdict",
            "deque",
            "OrderedDict",
        )
    is_generator = (
        any(called.endswith(one.rpartition(".")[2]) for one in known_effects.GENERATORS)
        or ".Generator(" in called
    )
    package = called.partition(".")[0]
    is_created = last in known_effects.CREATIONS and package in ("torch", "np", "numpy")
    is_container = package == "collections" or (
        package in ("torchmetrics", "copy") and last != "copy"
    )
    return is_generator or is_created or is_container or last in known_effects.COPIES
