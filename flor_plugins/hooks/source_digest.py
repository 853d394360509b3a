"""What a hook's source is: the function and everything of its file that it uses, as one sha256.

A value that was computed in hindsight is known by it, so that editing one hook of a file leaves
the values of the others alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping

# With one of these a function may use anything of its file.
_DYNAMIC = frozenset({"globals", "locals", "vars", "exec", "eval", "compile", "__import__"})


def digest_of(source: bytes) -> str:
    """sha256 of a whole hook file, in hex digits."""
    return hashlib.sha256(source).hexdigest()


def joined(several: Iterable[str]) -> str | None:
    """One digest for several sources; of one it is its own, of none None."""
    each = sorted(set(several))
    if not each:
        return None
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


def digests(source: bytes) -> dict[str, str]:
    """The digest of each function that stands at the top of a hook file, by name, in hex digits.

    It covers the source of the function with its decorators, of the definitions, imports and
    constants of the file that it uses, directly or through others, and of all statements at the
    top that do anything else: those may change what it uses. What the file imports is covered
    by name, not by content. Where names are looked up in ways that can't be read (`globals()`,
    `exec`), it is the digest of the whole file.

    Raises SyntaxError (ValueError for bytes that are no text) when the source is not Python.
    """
    tree = ast.parse(source)
    whole, lines = (
        digest_of(source),
        source.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n"),
    )
    named = _bindings(tree)
    everywhere = [node for node in tree.body if _acts(node)]
    functions = [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = {}
    for name in functions:
        used = _closure([*named[name], *everywhere], named)
        if any(_DYNAMIC & set(_names(node)) for node in used):
            found[name] = whole
            continue
        parts = [
            _text(node, lines)
            for node in sorted(used, key=lambda node: (node.lineno, node.col_offset))
        ]
        found[name] = hashlib.sha256("\n".join([name, *parts]).encode()).hexdigest()
    return found


def _bindings(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """The statements at the top that give each name its value; a name may be bound again."""
    named: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        for name in _bound(node):
            named.setdefault(name, []).append(node)
    return named


def _bound(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (one.asname or one.name.partition(".")[0] for one in names)
        case _:
            yield from (
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            )


def _acts(node: ast.stmt) -> bool:
    """Tell whether it does more than give names their values.

    Then every hook of the file may depend on it.
    """
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Import():
            return False
        case ast.ImportFrom(module=module, names=names):
            return module == "__future__" or any(one.name == "*" for one in names)
        case ast.Assign(targets=targets):
            return not all(
                isinstance(n, ast.Name | ast.Tuple | ast.List)
                for one in targets
                for n in _targets(one)
            )
        case ast.AnnAssign(target=target):
            return not isinstance(target, ast.Name)
        case ast.Expr(value=ast.Constant()):
            return False
    return True


def _targets(node: ast.expr) -> Iterator[ast.expr]:
    yield node
    if isinstance(node, ast.Tuple | ast.List):
        for one in node.elts:
            yield from _targets(one)


def _closure(first: list[ast.stmt], named: Mapping[str, list[ast.stmt]]) -> set[ast.stmt]:
    """These statements and all at the top that they use, directly or through others."""
    found, coming = set(first), list(first)
    while coming:
        for name in _names(coming.pop()):
            new = [node for node in named.get(name, ()) if node not in found]
            found.update(new)
            coming += new
    return found


def _names(node: ast.stmt) -> Iterator[str]:
    """All names in it.

    One that is only called so inside a function counts, too: rather one too many.
    """
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Global):
            yield from one.names
        elif (
            isinstance(one, ast.Constant)
            and isinstance(one.value, str)
            and one.value.isidentifier()
        ):
            yield one.value  # a name of the file may be said in text: getattr, a quoted annotation


def _text(node: ast.stmt, lines: list[str]) -> str:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(one.lineno for one in decorators)])
    return "\n".join(line.rstrip() for line in lines[first - 1 : node.end_lineno])
