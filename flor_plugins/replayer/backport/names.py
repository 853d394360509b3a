"""Which names a statement reads, which a scope defines, and giving names in a text without
touching the rest of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TypeGuard

from flor_plugins.replayer.backport.syntax import (
    DEFINITIONS,
    FUNCTIONS,
    CodeVersion,
    Scope,
    shape,
    statements,
)

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class _FreeNames(ast.NodeVisitor):
    """Collects the names of a tree that something around it defines, and attributes of self."""

    def __init__(self) -> None:
        self.found: list[ast.Name | ast.Attribute] = []
        self.inside: set[str] = set()  # every name that the tree defines for itself only
        self._bound: list[set[str]] = []

    def _is_bound(self, name: str) -> bool:
        return any(name in names for names in self._bound)

    def visit_Name(self, node: ast.Name) -> None:
        if not self._is_bound(node.id):
            self.found.append(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            self.found.append(node)
        self.visit(node.value)

    def _within(self, names: set[str], nodes: list[ast.AST]) -> None:
        self.inside |= names
        self._bound.append(names)
        for one in nodes:
            self.visit(one)
        self._bound.pop()

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        defaults = (*node.args.defaults, *filter(None, node.args.kw_defaults))
        for outside in (*getattr(node, "decorator_list", ()), *defaults):
            self.visit(outside)
        body: list[ast.AST] = [*node.body] if isinstance(node.body, list) else [node.body]
        annotations = [
            one for arg in ast.walk(node.args) if (one := getattr(arg, "annotation", None))
        ]
        self._within(parameters(node.args) | local_names(body), [*annotations, *body])

    visit_Lambda = visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in (
            *node.decorator_list,
            *node.bases,
            *(keyword.value for keyword in node.keywords),
        ):
            self.visit(outside)
        self._within(local_names(list(node.body)), list(node.body))

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> None:
        targets = {
            name.id
            for one in node.generators
            for name in ast.walk(one.target)
            if isinstance(name, ast.Name)
        }
        self.visit(node.generators[0].iter)
        self._within(targets, list(ast.iter_child_nodes(node)))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


def local_names(body: list[ast.AST] | list[ast.stmt]) -> set[str]:
    """What is assigned, imported or defined in a body, inner functions left out; `global`
    names are not local.
    """
    found: set[str] = set()
    outside: set[str] = set()
    for one in _own(body):
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store | ast.Del):
            found.add(one.id)
        elif isinstance(one, DEFINITIONS):
            found.add(one.name)
        elif isinstance(one, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in one.names}
        elif isinstance(one, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and one.name:
            found.add(one.name)
        elif isinstance(one, ast.Global | ast.Nonlocal):
            outside |= set(one.names)
    return found - outside


def _own(body: list[ast.AST] | list[ast.stmt]) -> Iterator[ast.AST]:
    for one in body:
        yield one
        if not isinstance(one, (*DEFINITIONS, ast.Lambda, *_COMPREHENSIONS)):
            yield from _own(list(ast.iter_child_nodes(one)))


def parameters(args: ast.arguments) -> set[str]:
    return {one.arg for one in ast.walk(args) if isinstance(one, ast.arg)}


def _free(node: ast.stmt) -> _FreeNames:
    visitor = _FreeNames()
    visitor.visit(node)
    return visitor


def key(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else f"self.{node.attr}"


def reads(node: ast.stmt) -> list[str]:
    """The names that a statement takes from around it, in order; attributes of self as "self.x"."""
    own = (
        set()
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        else local_names([node])
    )
    loaded = [
        one
        for one in _free(node).found
        if isinstance(one.ctx, ast.Load) or isinstance(node, ast.AugAssign)
    ]
    return list(dict.fromkeys(key(one) for one in loaded if key(one) not in own))


def binds(node: ast.stmt) -> set[str]:
    """The names that a statement defines where it stands; attributes of self as "self.x"."""
    attributes = {f"self.{one.attr}" for one in ast.walk(node) if is_own_attribute(one, ast.Store)}
    return local_names([node]) | attributes


def is_own_attribute(node: ast.AST, ctx: type = ast.expr_context) -> TypeGuard[ast.Attribute]:
    """self.x, read or written."""
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        return False
    return node.value.id == "self" and isinstance(node.ctx, ctx)


def captured(node: ast.stmt, names: Mapping[str, str]) -> list[str]:
    """New names that mean something else inside the statement: parameters of its lambdas,
    its loops' variables.
    """
    inside = _free(node).inside | (set() if isinstance(node, DEFINITIONS) else local_names([node]))
    return sorted({new for old, new in names.items() if new in inside and new != old})


def renamed(text: str, names: Mapping[str, str]) -> str:
    """One statement's text with other names for what it takes from around it; its layout and
    comments stay.

    names: as `reads` gives them, to their new names. Without places that can be trusted (inside
    f-strings of some versions of Python) the statement is written anew from its tree.
    """
    node = ast.parse(text).body[0]
    changes = [
        (one, names[key(one)])
        for one in _free(node).found
        if names.get(key(one), key(one)) != key(one)
    ]
    lines = [line.encode() for line in text.split("\n")]
    for one, name in sorted(changes, key=lambda change: _end(change[0]), reverse=True):
        was = (one.id if isinstance(one, ast.Name) else one.attr).encode()
        row, end = _end(one)
        lines[row - 1] = (
            lines[row - 1][: end - len(was)]
            + name.removeprefix("self.").encode()
            + lines[row - 1][end:]
        )
    meant = _set(node, changes)
    new = b"\n".join(lines).decode(errors="replace")
    try:
        return (
            new if shape(ast.parse(new)) == shape(ast.Module([meant], [])) else ast.unparse(meant)
        )
    except SyntaxError:
        return ast.unparse(meant)


def _end(node: ast.Name | ast.Attribute) -> tuple[int, int]:
    return node.end_lineno or 1, node.end_col_offset or 0


def _set(node: ast.stmt, changes: list[tuple[ast.Name | ast.Attribute, str]]) -> ast.stmt:
    for one, name in changes:
        if isinstance(one, ast.Name):
            one.id = name
        else:
            one.attr = name.removeprefix("self.")
    return node


def function_locals(version: CodeVersion, scope: Scope) -> set[str]:
    """Parameters and variables of a function and of those around it; empty for a class or
    module.
    """
    found: set[str] = set()
    while scope.names:
        if isinstance(scope.node, FUNCTIONS):
            found |= parameters(scope.node.args) | local_names(list(scope.node.body))
        outer = version.outer(scope)
        if outer is None:
            break
        scope = outer
    return found


def is_bound_before(version: CodeVersion, scope: Scope, name: str, line: int) -> bool:
    """Does a function or module, or one around it, give the name a value above the line, or
    in a loop around it?
    """
    node = scope.node
    if isinstance(node, FUNCTIONS) and name in parameters(node.args):
        return True
    if isinstance(node, (*FUNCTIONS, ast.Module)):
        loops = [
            one
            for one in statements(node.body)
            if isinstance(one, ast.For | ast.AsyncFor | ast.While)
        ]
        around = [one for one in loops if one.lineno < line <= (one.end_lineno or 0) + 1]
        end = max([line, *((one.end_lineno or 0) for one in around)])
        if name in local_names(list(node.body)):
            return any(
                one.lineno < end and name in local_names([one]) for one in statements(node.body)
            )
    outer = version.outer(scope) if scope.names else None
    return outer is not None and name in function_locals(version, outer)


def family(version: CodeVersion, of: Scope) -> list[Scope]:
    """A class with the classes of the project that it inherits from or that inherit from it,
    and theirs.
    """
    classes = [one for one in version.scopes if one.is_class]
    found = [of]
    for one in found:
        bases = _base_names(one)
        found += [
            other for other in classes
            if other not in found and (other.name in bases or one.name in _base_names(other))
        ]  # fmt: skip
    return found


def _base_names(scope: Scope) -> set[str]:
    assert isinstance(scope.node, ast.ClassDef)
    return {ast.unparse(one).rpartition(".")[2] for one in scope.node.bases}


def attributes(version: CodeVersion, of: Scope) -> set[str]:
    """What the family of a class defines on self: assigned, methods, registered buffers and
    modules.
    """
    found: set[str] = set()
    for one in family(version, of):
        found |= local_names(list(one.node.body))
        for node in ast.walk(one.node):
            if is_own_attribute(node, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and is_own_attribute(node.func) and node.args:
                first = node.args[0]
                if node.func.attr.startswith(("register_", "add_module")) and isinstance(
                    first, ast.Constant
                ):
                    found.add(str(first.value))
    return found
