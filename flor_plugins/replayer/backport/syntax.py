"""The sources of one version as syntax trees: their scopes, and the blocks in these."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, TypeVar

NodeT = TypeVar("NodeT", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Definition = FunctionNode | ast.ClassDef
ImportNode = ast.Import | ast.ImportFrom
Nesting: TypeAlias = tuple[str, ...]  # scopes or blocks around something, outermost first
BLOCK_FIELDS = ("body", "handlers", "cases", "orelse", "finalbody")
BLOCK_KEYWORDS = {"orelse": "else", "finalbody": "finally"}
BLOCK_OWNERS = ("handlers", "cases")  # what stands in these fields has a block of its own


@dataclass(frozen=True, eq=False, slots=True)
class Scope:
    """A module (names is empty), a function or a class. eq: the same one of the same version."""

    path: str
    names: Nesting
    node: ast.Module | Definition

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)

    @property
    def is_function(self) -> bool:
        """Whether it is a function or a method."""
        return isinstance(self.node, FunctionNode)

    @property
    def name(self) -> str:
        """Its own name; empty for a module."""
        return self.names[-1] if self.names else ""

    @property
    def dotted(self) -> str:
        """Its name with those of the scopes around it, for messages."""
        return ".".join(self.names) or "the module"

    def __str__(self) -> str:
        return f"{self.path}:{getattr(self.node, 'lineno', 1)} ({self.dotted})"


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Statements one below the other.

    headers: of the statements around it inside the scope, outermost first.
    """

    scope: Scope
    headers: Nesting
    body: list[ast.stmt]

    def line(self, index: int) -> int:
        """Return where statement `index` begins, or the block's last line behind its end."""
        body = self.body
        return body[index].lineno if index < len(body) else (body[-1].end_lineno or 0)


class CodeVersion:
    """The python files of one version.

    Files that do not parse are left out: nothing can be carried there.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        self.trees = parsed_files(texts)
        self.scopes = [
            scope for path, tree in self.trees.items() for scope in _scopes(path, (), tree)
        ]
        self._by_name = {(scope.path, scope.names): scope for scope in self.scopes}

    def scope(self, path: str, names: Nesting) -> Scope | None:
        """Return the scope of that name in a file; None if there is none."""
        return self._by_name.get((path, names))

    def enclosing(self, scope: Scope) -> Iterator[Scope]:
        """Yield a scope and those around it, innermost first."""
        yield scope
        for end in range(len(scope.names) - 1, -1, -1):
            yield self._by_name[scope.path, scope.names[:end]]

    def class_of(self, scope: Scope | None) -> Scope | None:
        """Return the class that a method, or a function inside a method, belongs to."""
        around = self.enclosing(scope) if scope is not None else ()
        return next((outer for outer in around if outer.is_class), None)


@lru_cache(maxsize=4096)  # most files are the same ones in many versions; nobody changes a tree
def parsed(path: str, text: str) -> ast.Module | None:
    """Return a file's tree; None if it is not Python."""
    if not path.endswith(".py"):
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None


def parsed_files(texts: Mapping[str, str]) -> dict[str, ast.Module]:
    """Return the trees of the files that are Python, by path."""
    trees = {path: parsed(path, text) for path, text in texts.items()}
    return {path: tree for path, tree in trees.items() if tree is not None}


def _scopes(path: str, names: Nesting, node: ast.Module | Definition) -> Iterator[Scope]:
    yield Scope(path, names, node)
    for inner in statements(node.body):
        if isinstance(inner, Definition):
            yield from _scopes(path, (*names, inner.name), inner)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements of one scope.

    Those of inner blocks are included, those of inner functions and classes are not.
    """
    for node in body:
        yield node
        if not isinstance(node, Definition):
            for _, inner in inner_blocks(node):
                yield from statements(inner)


def blocks(scope: Scope) -> Iterator[Block]:
    """Yield the blocks of a scope, outermost first."""
    yield from _blocks(scope, (), scope.node.body)


def _blocks(scope: Scope, headers: Nesting, body: list[ast.stmt]) -> Iterator[Block]:
    yield Block(scope, headers, body)
    for node in body:
        if not isinstance(node, Definition):
            for head, inner in inner_blocks(node):
                yield from _blocks(scope, (*headers, head), inner)


def block_fields(node: ast.AST) -> dict[str, list[ast.AST]]:
    """Return the lists of statements, handlers and cases of a node by the names of their fields."""
    fields = {name: getattr(node, name, None) for name in BLOCK_FIELDS}
    return {name: value for name, value in fields.items() if isinstance(value, list)}


def inner_blocks(node: ast.stmt) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield the blocks of a compound statement with what stands before their colon."""
    for field, children in block_fields(node).items():
        if field in BLOCK_OWNERS:
            for child in children:
                yield header(child), child.body  # type: ignore[attr-defined]
        elif children:
            yield BLOCK_KEYWORDS.get(field) or header(node), children  # type: ignore[misc]


def header(node: ast.AST) -> str:
    """Return the line of a compound statement, a handler or a case, without its colon."""
    if isinstance(node, ast.ExceptHandler):
        return f"except {ast.unparse(node.type)}" if node.type else "except"
    if isinstance(node, ast.match_case):
        return f"case {ast.unparse(node.pattern)}"
    return ast.unparse(node).partition("\n")[0].rstrip(":")


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def first_line(node: ast.stmt) -> int:
    """Return the line on which a statement begins, decorators included."""
    decorators = getattr(node, "decorator_list", ())
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def shape(node: ast.AST) -> str:
    """Return the tree as text, without its places: equal for equal code."""
    return ast.dump(node)


def shell(node: ast.AST) -> str:
    """Return the shape of a compound statement without the statements inside it."""
    return shape(_with_fields(node, {field: [] for field in block_fields(node)}))


def with_single_imports(body: Iterable[ast.stmt]) -> list[ast.stmt]:
    """Return the statements, an import of several names as several imports.

    One name may be added to an import.
    """
    single: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ImportNode):
            single += [_with_fields(node, {"names": [alias]}) for alias in node.names]
        else:
            single.append(node)
    return single


def _with_fields(node: NodeT, fields: Mapping[str, object]) -> NodeT:
    """Return a node with other values of some fields."""
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def bound_name(alias: ast.alias) -> str:
    """Return the name that an import gives to what it imports."""
    return alias.asname or alias.name.partition(".")[0]
