"""How like two pieces of code are, whatever their names.

From that follows which statements and names belong together.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache, partial

from flor_plugins.replayer.backport.names import is_own_attribute, key
from flor_plugins.replayer.backport.syntax import Definition, inner_blocks, is_docstring

MIN_PAIR = 0.5  # statements that are less alike are not the same one
SHAPE_WEIGHT = 0.65  # the rest is what the names say: they may have been changed, and all at once
MIN_RATIO = 0.4
# Where one old name is voted for by so much more than the next one, it is the new name of the
# other.
CLEAR = 1.5


@dataclass(frozen=True, slots=True)
class FlattenedTree:
    """A tree as a sequence.

    shapes: without the names that a version may change; names: those, "" elsewhere.
    """

    shapes: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatementPair:
    """Two statements, of the base and of the old version, that are the same one.

    likeness: up to 1.
    """

    base: ast.AST
    old: ast.AST
    likeness: float


@dataclass(frozen=True, slots=True)
class RenameVotes:
    """How often a name of the base stood where a name of the old version stands."""

    count: dict[str, Counter[str]] = field(default_factory=partial(defaultdict, Counter))

    def add(self, pair: StatementPair) -> None:
        """Let the names of two statements that are the same one vote for each other."""
        base, old = flat(pair.base), flat(pair.old)
        matcher = SequenceMatcher(None, base.shapes, old.shapes, False)
        for tag, i, i_end, j, j_end in matcher.get_opcodes():
            if tag != "equal" and (tag != "replace" or i_end - i != j_end - j):
                continue
            for name, other in zip(base.names[i:i_end], old.names[j:j_end], strict=True):
                if name and other and ("self." in name) == ("self." in other):
                    self.count[name][other] += pair.likeness  # type: ignore[assignment]

    def names(self, name: str) -> list[str]:
        """Return what it is called in the old version.

        That is one name, or several if that is unclear, or [] if nothing is known.
        """
        ranked = self.count[name].most_common() if name in self.count else []
        return [other for other, votes in ranked if votes * CLEAR > ranked[0][1]]


@lru_cache(maxsize=20_000)
def flat(node: ast.AST) -> FlattenedTree:
    """Return a tree as a sequence, docstrings left out."""
    pairs = list(_walk(node))
    return FlattenedTree(tuple(shape for shape, _ in pairs), tuple(name for _, name in pairs))


def _walk(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Name):
        yield "name", node.id
        return
    if is_own_attribute(node):
        yield "self", key(node)
        return
    match node:
        case ast.arg(arg=name):
            yield "arg", name
        case ast.Attribute(attr=name):
            yield f".{name}", ""
        case ast.keyword(arg=name):
            yield f"{name}=", ""
        case ast.Constant(value=value):
            yield repr(value), ""
        case ast.expr_context():
            pass
        case _:
            yield type(node).__name__, node.name if isinstance(node, Definition) else ""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.stmt) and is_docstring(child)):
            yield from _walk(child)


@lru_cache(maxsize=50_000)
def likeness(base: ast.AST, old: ast.AST) -> float:
    """Return 1 if two trees are equal, near it if only names differ.

    0 if they have nothing in common.
    """
    base_flat, old_flat = flat(base), flat(old)
    if base_flat == old_flat:
        return 1.0
    names = (1 - SHAPE_WEIGHT) * ratio(base_flat.names, old_flat.names)
    return SHAPE_WEIGHT * ratio(base_flat.shapes, old_flat.shapes) + names


def ratio(base: Sequence[str], old: Sequence[str]) -> float:
    """Return how much of two sequences is common, in order.

    0 where it is so little that it says nothing.
    """
    matcher = SequenceMatcher(None, base, old, False)
    # The first two are quick, and never less than the third.
    if matcher.real_quick_ratio() < MIN_RATIO or matcher.quick_ratio() < MIN_RATIO:
        return 0.0
    return matcher.ratio()


def _pair_likeness(base: ast.stmt, old: ast.stmt) -> float:
    """Return how like two statements are.

    Definitions are known by their names; a compound statement by its header, too.
    """
    if isinstance(base, Definition) or isinstance(old, Definition):
        if type(base) is not type(old):
            return 0.0
        has_same_name = base.name == old.name  # type: ignore[attr-defined]
        return 1.0 if has_same_name else 0.9 * likeness(base, old)
    whole = likeness(base, old)
    if type(base) is not type(old) or not list(inner_blocks(base)):
        return whole
    return (whole + ratio(_header_shapes(base), _header_shapes(old))) / 2


def _header_parts(node: ast.stmt) -> dict[str, ast.AST]:
    """Return what a compound statement asks, goes through or enters."""
    names = ("test", "target", "iter")
    parts = {name: getattr(node, name) for name in names if hasattr(node, name)}
    return parts | {f"item {i}": item for i, item in enumerate(getattr(node, "items", ()))}


def _header_shapes(node: ast.stmt) -> list[str]:
    parts = [*_header_parts(node).values(), *filter(None, [getattr(node, "subject", None)])]
    return [shape for part in parts for shape in flat(part).shapes]


def align(base: list[ast.stmt], old: list[ast.stmt]) -> dict[int, tuple[int, float]]:
    """Return which statement of `old` each one of `base` is, in order, as index: (index, likeness).

    It is the choice with the largest sum of likenesses.
    """
    head = _common_start(base, old)
    tail = _common_start(base[head:][::-1], old[head:][::-1])
    inner = _align(base[head : len(base) - tail], old[head : len(old) - tail])
    matches = {i: (i, 1.0) for i in range(head)}
    matches |= {i + head: (j + head, like) for i, (j, like) in inner.items()}
    return matches | {len(base) - i: (len(old) - i, 1.0) for i in range(tail, 0, -1)}


def _common_start(base: list[ast.stmt], old: list[ast.stmt]) -> int:
    """Return how many statements are the same from the start on."""
    same = 0
    while same < min(len(base), len(old)) and flat(base[same]) == flat(old[same]):
        same += 1
    return same


def _align(base: list[ast.stmt], old: list[ast.stmt]) -> dict[int, tuple[int, float]]:
    like = [[_pair_likeness(statement, other) for other in old] for statement in base]
    best = [[0.0] * (len(old) + 1) for _ in range(len(base) + 1)]
    for i in range(len(base) - 1, -1, -1):
        for j in range(len(old) - 1, -1, -1):
            paired = like[i][j] + best[i + 1][j + 1] if like[i][j] >= MIN_PAIR else 0.0
            best[i][j] = max(best[i + 1][j], best[i][j + 1], paired)
    matches: dict[int, tuple[int, float]] = {}
    i = j = 0
    while i < len(base) and j < len(old):
        if like[i][j] >= MIN_PAIR and best[i][j] == like[i][j] + best[i + 1][j + 1]:
            matches[i] = (j, like[i][j])
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return matches


def pairs(base: list[ast.stmt], old: list[ast.stmt]) -> Iterator[StatementPair]:
    """Yield the statements of two blocks that belong together, and those of their inner blocks."""
    for i, (j, like) in align(base, old).items():
        statement, other = base[i], old[j]
        inner = list(zip(inner_blocks(statement), inner_blocks(other), strict=False))
        if isinstance(statement, Definition) or not inner:
            yield StatementPair(statement, other, like)
            continue
        old_parts = _header_parts(other)
        for name, part in _header_parts(statement).items():
            if name in old_parts:
                yield StatementPair(part, old_parts[name], like)
        for (_, base_inner), (_, old_inner) in inner:
            yield from pairs(base_inner, old_inner)
