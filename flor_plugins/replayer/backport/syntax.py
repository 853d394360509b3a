"""One version's sources as syntax trees: its scopes, and the blocks of statements within them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """A module (names is empty), a function or a class. eq: the same one of the same version."""

    path: str
    names: tuple[str, ...]
    node: ast.Module | Definition

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    @property
    def is_function(self) -> bool:
        return isinstance(self.node, FUNCTIONS)

    @property
    def name(self) -> str:
        return self.names[-1] if self.names else ""

    def __str__(self) -> str:
        return (
            f"{self.path}:{getattr(self.node, 'lineno', 1)} "
            f"({'.'.join(self.names) or 'the module'})"
        )


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Statements one below the other.

    headers: of the statements around it inside the scope, outermost first.
    """

    scope: Scope
    headers: tuple[str, ...]
    body: list[ast.stmt]


class CodeVersion:
    """The python files of one version; files that do not parse are left out: nothing can be
    carried there.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        self.trees = {
            path: tree for path, text in texts.items() if (tree := parsed(path, text)) is not None
        }
        self.scopes = [
            scope for path, tree in self.trees.items() for scope in _scopes(path, (), tree)
        ]
        self._by_name = {(scope.path, scope.names): scope for scope in self.scopes}

    def scope(self, path: str, names: tuple[str, ...]) -> Scope | None:
        return self._by_name.get((path, names))

    def outer(self, scope: Scope) -> Scope | None:
        """The scope around it; None for a module."""
        return self._by_name.get((scope.path, scope.names[:-1])) if scope.names else None

    def class_of(self, scope: Scope) -> Scope | None:
        """The class that a method, or a function inside a method, belongs to."""
        while scope.names and not scope.is_class:
            outer = self.outer(scope)
            if outer is None:
                return None
            scope = outer
        return scope if scope.is_class else None


@lru_cache(maxsize=4096)  # most files are the same ones in many versions; nobody changes a tree
def parsed(path: str, text: str) -> ast.Module | None:
    if not path.endswith(".py"):
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None


def _scopes(path: str, names: tuple[str, ...], node: ast.Module | Definition) -> Iterator[Scope]:
    yield Scope(path, names, node)
    for inner in statements(node.body):
        if isinstance(inner, DEFINITIONS):
            yield from _scopes(path, (*names, inner.name), inner)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of one scope, those of inner blocks included; not those of inner
    functions and classes.
    """
    for one in body:
        yield one
        if not isinstance(one, DEFINITIONS):
            for _, inner in inner_blocks(one):
                yield from statements(inner)


def blocks(scope: Scope) -> Iterator[Block]:
    """The blocks of a scope, outermost first."""
    yield from _blocks(scope, (), scope.node.body)


def _blocks(scope: Scope, headers: tuple[str, ...], body: list[ast.stmt]) -> Iterator[Block]:
    yield Block(scope, headers, body)
    for one in body:
        if not isinstance(one, DEFINITIONS):
            for header, inner in inner_blocks(one):
                yield from _blocks(scope, (*headers, header), inner)


def inner_blocks(one: ast.stmt) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The blocks of a compound statement with what stands before their colon."""
    body = getattr(one, "body", None)
    if isinstance(body, list):
        yield header(one), body
    for handler in getattr(one, "handlers", ()):
        yield f"except {ast.unparse(handler.type)}" if handler.type else "except", handler.body
    for case in getattr(one, "cases", ()):
        yield f"case {ast.unparse(case.pattern)}", case.body
    for field, word in (("orelse", "else"), ("finalbody", "finally")):
        if inner := getattr(one, field, None):
            yield word, inner


def header(one: ast.stmt) -> str:
    """The line of a compound statement, without its colon."""
    return ast.unparse(one).partition("\n")[0].rstrip(":")


def is_docstring(one: ast.stmt) -> bool:
    return (
        isinstance(one, ast.Expr)
        and isinstance(one.value, ast.Constant)
        and isinstance(one.value.value, str)
    )


def first_line(one: ast.stmt) -> int:
    """Decorators included."""
    return min(
        [one.lineno, *(decorator.lineno for decorator in getattr(one, "decorator_list", ()))]
    )


def shape(one: ast.AST) -> str:
    """The tree as text, without its places: equal for equal code."""
    return ast.dump(one)


def one_by_one(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements, an import of several names as several imports: one name may be added
    to it.
    """
    single: list[ast.stmt] = []
    for one in body:
        if isinstance(one, ast.Import) and len(one.names) > 1:
            single += [ast.copy_location(ast.Import([name]), one) for name in one.names]
        elif isinstance(one, ast.ImportFrom) and len(one.names) > 1:
            single += [
                ast.copy_location(ast.ImportFrom(one.module, [name], one.level), one)
                for name in one.names
            ]
        else:
            single.append(one)
    return single
