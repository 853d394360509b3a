"""How like two pieces of code are, whatever their names, and which statements and names
belong together.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache

from flor_plugins.replayer.backport.syntax import DEFINITIONS, inner_blocks, is_docstring

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

    count: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, pair: StatementPair) -> None:
        base, old = flat(pair.base), flat(pair.old)
        for tag, i, i_end, j, j_end in SequenceMatcher(
            None, base.shapes, old.shapes, False
        ).get_opcodes():
            if tag != "equal" and (tag != "replace" or i_end - i != j_end - j):
                continue
            for one, other in zip(base.names[i:i_end], old.names[j:j_end], strict=True):
                if one and other and ("self." in one) == ("self." in other):
                    self.count[one][other] += pair.likeness  # type: ignore[assignment]

    def names(self, name: str) -> list[str]:
        """What it is called in the old version: one name, or several if that is unclear, or
        [] if nothing is known.
        """
        ranked = self.count[name].most_common() if name in self.count else []
        return [other for other, votes in ranked if votes * CLEAR > ranked[0][1]]


@lru_cache(maxsize=20_000)
def flat(node: ast.AST) -> FlattenedTree:
    """A tree as a sequence, docstrings left out."""
    pairs = list(_walk(node))
    return FlattenedTree(tuple(shape for shape, _ in pairs), tuple(name for _, name in pairs))


def _walk(node: ast.AST) -> Iterator[tuple[str, str]]:
    kind = type(node).__name__
    if isinstance(node, ast.Name):
        yield "name", node.id
        return
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ):
        yield "self", f"self.{node.attr}"
        return
    if isinstance(node, ast.arg):
        yield "arg", node.arg
    elif isinstance(node, ast.Attribute):
        yield f".{node.attr}", ""
    elif isinstance(node, ast.keyword):
        yield f"{node.arg}=", ""
    elif isinstance(node, ast.Constant):
        yield repr(node.value), ""
    elif isinstance(node, DEFINITIONS):
        yield kind, node.name
    elif not isinstance(node, ast.expr_context):
        yield kind, ""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.stmt) and is_docstring(child)):
            yield from _walk(child)


@lru_cache(maxsize=50_000)
def likeness(base: ast.AST, old: ast.AST) -> float:
    """Of two trees: 1 if they are equal, near it if only names differ, 0 if they have
    nothing in common.
    """
    one, other = flat(base), flat(old)
    if one == other:
        return 1.0
    return SHAPE_WEIGHT * ratio(one.shapes, other.shapes) + (1 - SHAPE_WEIGHT) * ratio(
        one.names, other.names
    )


def ratio(one: Sequence[str], other: Sequence[str]) -> float:
    """How much of two sequences is common, in order; 0 where it is so little that it says
    nothing.
    """
    matcher = SequenceMatcher(None, one, other, False)
    # The first two are quick, and never less than the third.
    if matcher.real_quick_ratio() < MIN_RATIO or matcher.quick_ratio() < MIN_RATIO:
        return 0.0
    return matcher.ratio()


def _pair_likeness(base: ast.stmt, old: ast.stmt) -> float:
    """Of two statements.

    Definitions are known by their names; a compound statement by its header, too.
    """
    if isinstance(base, DEFINITIONS) or isinstance(old, DEFINITIONS):
        same_kind = isinstance(base, DEFINITIONS) and type(base) is type(old)
        if same_kind and base.name == old.name:  # type: ignore[union-attr]
            return 1.0
        return 0.9 * likeness(base, old) if same_kind else 0.0
    whole = likeness(base, old)
    if type(base) is not type(old) or not any(True for _ in inner_blocks(base)):
        return whole
    return (whole + _header_likeness(base, old)) / 2


def _header_likeness(base: ast.stmt, old: ast.stmt) -> float:
    heads = [
        [part for name, value in ast.iter_fields(one) if name in ("test", "target", "iter", "items", "subject")
         for node in (value if isinstance(value, list) else [value]) for part in flat(node).shapes]
        for one in (base, old)
    ]  # fmt: skip
    return ratio(heads[0], heads[1])


def align(base: list[ast.stmt], old: list[ast.stmt]) -> dict[int, tuple[int, float]]:
    """Which statement of `old` each one of `base` is, in order: index to (index, likeness),
    the largest sum of it.
    """
    head = _equal(base, old)
    tail = _equal(base[head:][::-1], old[head:][::-1])
    found = {i: (i, 1.0) for i in range(head)}
    inner = _align(base[head : len(base) - tail], old[head : len(old) - tail])
    found |= {i + head: (j + head, like) for i, (j, like) in inner.items()}
    return found | {len(base) - i: (len(old) - i, 1.0) for i in range(tail, 0, -1)}


def _equal(base: list[ast.stmt], old: list[ast.stmt]) -> int:
    """How many statements are the same from the start on."""
    same = 0
    while same < min(len(base), len(old)) and flat(base[same]) == flat(old[same]):
        same += 1
    return same


def _align(base: list[ast.stmt], old: list[ast.stmt]) -> dict[int, tuple[int, float]]:
    like = [[_pair_likeness(one, other) for other in old] for one in base]
    best = [[0.0] * (len(old) + 1) for _ in range(len(base) + 1)]
    for i in range(len(base) - 1, -1, -1):
        for j in range(len(old) - 1, -1, -1):
            paired = like[i][j] + best[i + 1][j + 1] if like[i][j] >= MIN_PAIR else 0.0
            best[i][j] = max(best[i + 1][j], best[i][j + 1], paired)
    found: dict[int, tuple[int, float]] = {}
    i = j = 0
    while i < len(base) and j < len(old):
        if like[i][j] >= MIN_PAIR and best[i][j] == like[i][j] + best[i + 1][j + 1]:
            found[i] = (j, like[i][j])
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def pairs(base: list[ast.stmt], old: list[ast.stmt]) -> Iterator[StatementPair]:
    """The statements of two blocks that belong together, those of their inner blocks included."""
    for i, (j, like) in align(base, old).items():
        one, other = base[i], old[j]
        inner = list(zip(inner_blocks(one), inner_blocks(other), strict=False))
        if isinstance(one, DEFINITIONS) or not inner:
            yield StatementPair(one, other, like)
            continue
        for name in ("test", "target", "iter"):
            if hasattr(one, name) and hasattr(other, name):
                yield StatementPair(getattr(one, name), getattr(other, name), like)
        for base_item, old_item in zip(
            getattr(one, "items", ()), getattr(other, "items", ()), strict=False
        ):
            yield StatementPair(base_item, old_item, like)
        for (_, base_inner), (_, old_inner) in inner:
            yield from pairs(base_inner, old_inner)
