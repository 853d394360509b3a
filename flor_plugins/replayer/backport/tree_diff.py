"""Compare two syntax trees of a file, statement by statement.

The answer is what was put in, and what is no longer as it was.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property

from flor_plugins.replayer.backport.insertion import InsertionPoint
from flor_plugins.replayer.backport.syntax import (
    BLOCK_KEYWORDS,
    BLOCK_OWNERS,
    Definition,
    ImportNode,
    Nesting,
    block_fields,
    first_line,
    header,
    is_docstring,
    shape,
    shell,
    with_single_imports,
)

MAX_TEXT = 100
INSERTED = 1e-6  # of two ways to see an edit the one that takes nothing away is right


@dataclass(frozen=True, slots=True)
class AddedStatement:
    """A statement that only the edited file has."""

    point: InsertionPoint
    node: ast.stmt
    is_in_class: bool = False

    def __str__(self) -> str:
        return short(self.node)


@dataclass(frozen=True, slots=True)
class ForbiddenChange:
    """What must not be in an edit.

    line: in the edited file; of what was taken out, where it stood in the base.
    """

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.what}"


def compare(
    path: str, base: ast.Module, edited: ast.Module, *, was: str = "", now: str = ""
) -> tuple[list[AddedStatement], list[ForbiddenChange]]:
    """Return the statements that were added to the base, and its changed or missing ones.

    was, now: the two texts, so that changes are told as they are written. No ForbiddenChange means
    that the edited file without each AddedStatement is the base's very tree (docstrings aside).
    """
    comparison = _TreeComparison(path, was, now)
    comparison.compare(_Side(base), _Side(edited), (), ())
    return comparison.settled()


def short(node: ast.AST) -> str:
    """Return a statement on one line, quoted."""
    text = ast.unparse(node)
    first, _, rest = text.partition("\n")
    cut = first if len(first) <= MAX_TEXT else first[: MAX_TEXT - 3] + "..."
    return f"`{cut} ...`" if rest else f"`{cut}`"


def _does_nothing(node: ast.stmt) -> bool:
    """Whether it is a docstring, `pass` or `...`."""
    return (
        is_docstring(node)
        or isinstance(node, ast.Pass)
        or (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and node.value.value is ...
        )
    )


@dataclass(eq=False)
class _Side:
    """One statement of one of the two trees, with what comparing asks of it often."""

    node: ast.AST

    @cached_property
    def shape(self) -> str:
        """The shape of the statement without the docstrings in it."""
        if not self.blocks:
            return shape(self.node)
        inner = [[child.shape for child in children] for _, children in self.blocks]
        return f"{self.shell}{inner}"

    @cached_property
    def shell(self) -> str:
        return shell(self.node)

    @cached_property
    def words(self) -> set[str]:
        return set(re.findall(r"\w+|\S", _head(self.node)))

    @cached_property
    def blocks(self) -> list[tuple[str, list[_Side]]]:
        """Its blocks, `else` and `finally` by these words, without what does nothing.

        Handlers and cases are statements here that have blocks of their own.
        """
        blocks = []
        for name, children in block_fields(self.node).items():
            if name not in BLOCK_OWNERS:
                single = with_single_imports(children)  # type: ignore[arg-type]
                children = [child for child in single if not _does_nothing(child)]
            blocks.append((BLOCK_KEYWORDS.get(name, ""), [_Side(child) for child in children]))
        return blocks

    @cached_property
    def size(self) -> int:
        return 1 + sum(child.size for _, children in self.blocks for child in children)

    @property
    def line(self) -> int:
        if isinstance(self.node, ast.stmt):
            return first_line(self.node)
        # A case has no line.
        placed = self.node.pattern if isinstance(self.node, ast.match_case) else self.node
        return getattr(placed, "lineno", 1)


def _head(node: ast.AST) -> str:
    if isinstance(node, Definition):  # decorators stand above the line that says what it is
        lines = ast.unparse(node).split("\n")
        return "\n".join(lines[: len(node.decorator_list) + 1])
    return header(node) if hasattr(node, "body") else ast.unparse(node)


def _written(side: _Side, source: str) -> str:
    """Return a statement on one line; of a compound one what stands above its block."""
    node, lines = side.node, source.splitlines()
    if not lines or isinstance(node, ImportNode):
        return " ".join(_head(node).split())
    if body := block_fields(node).get("body"):
        end = max(side.line, first_line(body[0]) - 1)  # type: ignore[arg-type]
        kept = [line.strip() for line in lines[side.line - 1 : end]]
        return " ".join(line for line in kept if line and not line.startswith("#")).rstrip(":")
    return " ".join((ast.get_source_segment(source, node) or _head(node)).split())


@dataclass
class _TreeComparison:
    path: str
    was: str
    now: str
    added: list[AddedStatement] = field(default_factory=list)
    forbidden: list[ForbiddenChange] = field(default_factory=list)
    removed: list[_Side] = field(default_factory=list)
    _costs: dict[tuple[_Side, _Side], float] = field(default_factory=dict)

    def _forbid(self, line: int, what: str) -> None:
        self.forbidden.append(ForbiddenChange(self.path, line, what))

    def settled(self) -> tuple[list[AddedStatement], list[ForbiddenChange]]:
        """Tell what stands somewhere else now: it was moved, and is neither new nor gone."""
        for side in self.removed:
            twins = (added for added in self.added if _Side(added.node).shape == side.shape)
            twin = next(twins, None)
            text = short(side.node) if isinstance(side.node, ast.stmt) else f"`{_head(side.node)}`"
            if twin is None:
                self._forbid(side.line, f"(before the edit): {text} was taken out")
            else:
                self.added.remove(twin)
                what = f"{text} was moved; it stood at line {side.line}"
                self._forbid(first_line(twin.node), what)
        return self.added, self.forbidden

    def compare(self, old: _Side, new: _Side, scope: Nesting, headers: Nesting) -> None:
        """Compare what stands in the blocks of two statements.

        scope, headers: where their blocks stand, as in an InsertionPoint.
        """
        is_class = isinstance(new.node, ast.ClassDef)
        for (word, before), (_, after) in zip(old.blocks, new.blocks, strict=True):
            if word and not before and after:
                what = f"`{word}` was put to a statement that has none; write an `if` of its own"
                self._forbid(after[0].line, what)
                continue
            inside = (*headers, word) if word else headers
            self._compare_blocks(before, after, InsertionPoint(self.path, scope, inside), is_class)

    def _compare_blocks(
        self, old: list[_Side], new: list[_Side], point: InsertionPoint, in_class: bool
    ) -> None:
        pairs = self._pairs(old, new)
        kept = {j: i for i, j in pairs}
        matched = {i for i, _ in pairs}
        self.removed += [side for i, side in enumerate(old) if i not in matched]
        texts = {j: ast.unparse(old[i].node) for i, j in pairs} if len(pairs) < len(new) else {}
        for j, side in enumerate(new):
            if j in kept:
                self._compare_pair(old[kept[j]], side, point)
                continue
            before = tuple(text for k, text in texts.items() if k < j)
            after = tuple(text for k, text in texts.items() if k > j)
            assert isinstance(side.node, ast.stmt)
            place = InsertionPoint(self.path, point.scope, point.block, before, after)
            self.added.append(AddedStatement(place, side.node, in_class))

    def _compare_pair(self, old: _Side, new: _Side, point: InsertionPoint) -> None:
        if old.shape == new.shape:
            return
        if old.shell != new.shell:
            written = f"was `{_written(old, self.was)}` and is `{_written(new, self.now)}`"
            self._forbid(new.line, written)
        if isinstance(new.node, Definition):
            self.compare(old, new, (*point.scope, new.node.name), ())
        else:
            self.compare(old, new, point.scope, (*point.block, _head(new.node)))

    def _pairs(self, old: list[_Side], new: list[_Side]) -> list[tuple[int, int]]:
        """Return which statement became which: with the least of the base changed or gone."""
        start = end = 0
        most = min(len(old), len(new))
        while start < most and old[start].shape == new[start].shape:
            start += 1
        while end < most - start and old[-1 - end].shape == new[-1 - end].shape:
            end += 1
        inner = self._aligned(old[start : len(old) - end], new[start : len(new) - end])
        head = [(i, i) for i in range(start)]
        tail = [(len(old) - k, len(new) - k) for k in range(end, 0, -1)]
        return [*head, *((start + i, start + j) for i, j in inner), *tail]

    def _aligned(self, old: list[_Side], new: list[_Side]) -> list[tuple[int, int]]:
        best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
        for i in range(len(old), -1, -1):
            for j in range(len(new), -1, -1):
                if i < len(old) or j < len(new):
                    best[i][j] = min(cost for cost, _, _ in self._steps(old, new, i, j, best))
        matches, i, j = [], 0, 0
        while i < len(old) or j < len(new):
            _, to_i, to_j = min(self._steps(old, new, i, j, best))
            if to_i > i and to_j > j:
                matches.append((i, j))
            i, j = to_i, to_j
        return matches

    def _steps(
        self, old: list[_Side], new: list[_Side], i: int, j: int, best: list[list[float]]
    ) -> list[tuple[float, int, int]]:
        steps = []
        if i < len(old):
            steps.append((old[i].size + best[i + 1][j], i + 1, j))
        if j < len(new):
            steps.append((new[j].size * INSERTED + best[i][j + 1], i, j + 1))
        if i < len(old) and j < len(new) and type(old[i].node) is type(new[j].node):
            steps.append((self._cost(old[i], new[j]) + best[i + 1][j + 1], i + 1, j + 1))
        return steps

    def _cost(self, old: _Side, new: _Side) -> float:
        """Return the cost of making one of the other: statements of the base changed or gone."""
        if (old, new) not in self._costs:
            self._costs[old, new] = self._new_cost(old, new)
        return self._costs[old, new]

    def _new_cost(self, old: _Side, new: _Side) -> float:
        if old.shape == new.shape:
            return 0.0
        names = [getattr(side.node, "name", None) for side in (old, new)]
        if isinstance(new.node, Definition) and names[0] != names[1]:
            return float("inf")
        cost = 0.0
        if old.shell != new.shell:
            cost = 0.1 + 0.8 * (1 - len(old.words & new.words) / len(old.words | new.words))
        for (word, before), (_, after) in zip(old.blocks, new.blocks, strict=True):
            cost += 1.0 if word and not before and after else self._distance(before, after)
        return cost

    def _distance(self, old: list[_Side], new: list[_Side]) -> float:
        pairs = self._pairs(old, new)
        kept, moved = {i for i, _ in pairs}, {j for _, j in pairs}
        gone = sum(side.size for i, side in enumerate(old) if i not in kept)
        come = sum(side.size for j, side in enumerate(new) if j not in moved)
        return sum(self._cost(old[i], new[j]) for i, j in pairs) + gone + come * INSERTED
