"""Tell which names a statement reads and a scope defines, and rename them in a text.

The rest of the text stays as it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    Definition,
    FunctionNode,
    ImportNode,
    Scope,
    bound_name,
    shape,
    statements,
)

_Named = Definition | ast.ExceptHandler | ast.MatchAs | ast.MatchStar
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class _FreeNames:
    """Collects the names of a tree that something around it defines, and attributes of self."""

    def __init__(self, tree: ast.AST) -> None:
        self.found: list[ast.Name | ast.Attribute] = []
        self.inside: set[str] = set()  # every name that the tree defines for itself only
        self._bound: list[set[str]] = []
        self._visit(tree)

    def _visit(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name):
                if not any(name in names for names in self._bound):
                    self.found.append(node)
            case ast.Attribute(value=value):
                if is_own_attribute(node):
                    self.found.append(node)
                self._visit(value)
            case ast.Lambda(args=args, body=body):
                self._function(args, [body])
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._visit_all(node.decorator_list)
                self._function(node.args, node.body)
            case ast.ClassDef(body=body):
                keywords = (keyword.value for keyword in node.keywords)
                self._visit_all((*node.decorator_list, *node.bases, *keywords))
                self._within(local_names(body), body)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._comprehension(node)
            case _:
                self._visit_all(ast.iter_child_nodes(node))

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self._visit(node)

    def _within(self, names: set[str], nodes: Iterable[ast.AST]) -> None:
        self.inside |= names
        self._bound.append(names)
        self._visit_all(nodes)
        self._bound.pop()

    def _function(self, args: ast.arguments, body: Iterable[ast.AST]) -> None:
        self._visit_all(defaults(args))
        annotations = [
            arg.annotation for arg in ast.walk(args) if isinstance(arg, ast.arg) and arg.annotation
        ]
        self._within(parameters(args) | local_names(body), [*annotations, *body])

    def _comprehension(self, node: Comprehension) -> None:
        targets = {
            name.id
            for generator in node.generators
            for name in ast.walk(generator.target)
            if isinstance(name, ast.Name)
        }
        self._visit(node.generators[0].iter)
        self._within(targets, ast.iter_child_nodes(node))


def local_names(body: Iterable[ast.AST]) -> set[str]:
    """Return what is assigned, imported or defined in a body, inner functions left out.

    `global` names are not local.
    """
    local: set[str] = set()
    outside: set[str] = set()
    for node in _own(body):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            local.add(node.id)
        elif isinstance(node, ImportNode):
            local |= set(map(bound_name, node.names))
        elif isinstance(node, _Named) and node.name:
            local.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
    return local - outside


def _own(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in body:
        yield node
        if not isinstance(node, Definition | ast.Lambda | Comprehension):
            yield from _own(ast.iter_child_nodes(node))


def parameters(args: ast.arguments) -> set[str]:
    """Return the names of a function's parameters."""
    return {arg.arg for arg in ast.walk(args) if isinstance(arg, ast.arg)}


def defaults(args: ast.arguments) -> list[ast.expr]:
    """Return the default values of a function's parameters."""
    return [*args.defaults, *filter(None, args.kw_defaults)]


def key(node: ast.Name | ast.Attribute) -> str:
    """Return a name, or "self.x" for an attribute of self."""
    return node.id if isinstance(node, ast.Name) else f"self.{node.attr}"


def reads(node: ast.stmt) -> list[str]:
    """Return the names that a statement takes from around it, in order.

    Attributes of self are given as "self.x".
    """
    is_assignment = isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
    own = set() if is_assignment else local_names([node])
    loaded = [
        key(name)
        for name in _FreeNames(node).found
        if isinstance(name.ctx, ast.Load) or isinstance(node, ast.AugAssign)
    ]
    return [name for name in dict.fromkeys(loaded) if name not in own]


def binds(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines where it stands; attributes of self as "self.x"."""
    attributes = {key(target) for target in ast.walk(node) if is_own_attribute(target, ast.Store)}
    return local_names([node]) | attributes


def is_own_attribute(node: ast.AST, ctx: type = ast.expr_context) -> TypeGuard[ast.Attribute]:
    """Whether it is self.x, read or written."""
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        return False
    return node.value.id == "self" and isinstance(node.ctx, ctx)


def captured(node: ast.stmt, names: Mapping[str, str]) -> list[str]:
    """Return new names that mean something else inside the statement.

    Such are parameters of its lambdas and variables of its loops.
    """
    inside = _FreeNames(node).inside
    if not isinstance(node, Definition):
        inside |= local_names([node])
    return sorted({new for old, new in names.items() if new in inside and new != old})


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return one statement's text with other names for what it takes from around it.

    names: as `reads` gives them, to their new names. The text's layout and comments stay. Without
    places that can be trusted (inside f-strings of some versions of Python) the statement is
    written anew from its tree.
    """
    node = ast.parse(text).body[0]
    lines = [line.encode() for line in text.split("\n")]
    for name in sorted(_FreeNames(node).found, key=_end, reverse=True):
        old = key(name)
        new = names.get(old, old)
        if new == old:
            continue
        row, end = _end(name)
        was, becomes = old.removeprefix("self."), new.removeprefix("self.")
        line = lines[row - 1]
        lines[row - 1] = line[: end - len(was.encode())] + becomes.encode() + line[end:]
        if isinstance(name, ast.Name):
            name.id = becomes
        else:
            name.attr = becomes
    changed = b"\n".join(lines).decode(errors="replace")
    try:
        is_right = shape(ast.parse(changed)) == shape(ast.Module([node], []))
    except SyntaxError:
        is_right = False
    return changed if is_right else ast.unparse(node)


def _end(node: ast.Name | ast.Attribute) -> tuple[int, int]:
    return node.end_lineno or 1, node.end_col_offset or 0


def function_locals(version: CodeVersion, scope: Scope) -> set[str]:
    """Return parameters and variables of a function and of those around it.

    Empty for a class or module that no function is around.
    """
    names: set[str] = set()
    for outer in version.enclosing(scope):
        if isinstance(outer.node, FunctionNode):
            names |= parameters(outer.node.args) | local_names(outer.node.body)
    return names


def is_bound_before(version: CodeVersion, scope: Scope, name: str, line: int) -> bool:
    """Whether a function or module gives the name a value above the line, or one around it does.

    A value that is given in a loop around the line counts, too.
    """
    node = scope.node
    if isinstance(node, FunctionNode) and name in parameters(node.args):
        return True
    if isinstance(node, FunctionNode | ast.Module) and name in local_names(node.body):
        loop_ends = [
            loop.end_lineno or 0
            for loop in statements(node.body)
            if isinstance(loop, ast.For | ast.AsyncFor | ast.While)
            and loop.lineno < line <= (loop.end_lineno or 0) + 1
        ]
        end = max([line, *loop_ends])
        return any(
            statement.lineno < end and name in local_names([statement])
            for statement in statements(node.body)
        )
    outer = list(version.enclosing(scope))[1:]
    return bool(outer) and name in function_locals(version, outer[0])


def family(version: CodeVersion, owner: Scope) -> list[Scope]:
    """Return a class with the classes of the project that are its relatives.

    Those are the classes that it inherits from or that inherit from it, and theirs.
    """
    classes = [scope for scope in version.scopes if scope.is_class]
    relatives = [owner]
    for known in relatives:
        bases = _base_names(known)
        relatives += [
            other for other in classes
            if other not in relatives and (other.name in bases or known.name in _base_names(other))
        ]  # fmt: skip
    return relatives


def _base_names(scope: Scope) -> set[str]:
    assert isinstance(scope.node, ast.ClassDef)
    return {ast.unparse(base).rpartition(".")[2] for base in scope.node.bases}


def attributes(version: CodeVersion, owner: Scope) -> set[str]:
    """Return what the family of a class defines on self.

    That is what it assigns, its methods, and registered buffers and modules.
    """
    names: set[str] = set()
    for scope in family(version, owner):
        names |= local_names(scope.node.body)
        for node in ast.walk(scope.node):
            match node:
                case ast.Attribute(attr=name) if is_own_attribute(node, ast.Store):
                    names.add(name)
                case ast.Call(func=func, args=[ast.Constant(value=name), *_]):
                    if is_own_attribute(func) and func.attr.startswith(("register_", "add_module")):
                        names.add(str(name))
    return names
