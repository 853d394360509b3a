"""Two syntax trees of a file, statement by statement: what was put in, and what is no longer
as it was.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property

from flor_plugins.replayer.backport.syntax import (
    DEFINITIONS,
    first_line,
    header,
    is_docstring,
    one_by_one,
    shape,
)

MAX_TEXT = 100
INSERTED = 1e-6  # of two ways to see an edit the one that takes nothing away is right
_BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")


@dataclass(frozen=True, slots=True)
class AddedStatement:
    """A statement that only the edited file has.

    scope, block, before, after: as in an Insertion.
    """

    path: str
    scope: tuple[str, ...]
    block: tuple[str, ...]
    node: ast.stmt
    before: tuple[str, ...]
    after: tuple[str, ...]
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
    """What the edited file has more than the base, and what of the base is changed, removed or
    moved in it.

    was, now: the two texts, so that changes are told as they are written. No Changed means that
    the edited file without what is Added is the base's very tree (docstrings aside).
    """
    walk = _Walk(path, was, now)
    walk.block(base.body, edited.body, (), (), False)
    return walk.settled()


def short(node: ast.AST) -> str:
    """A statement on one line, quoted."""
    text = ast.unparse(node)
    first, _, rest = text.partition("\n")
    cut = first if len(first) <= MAX_TEXT else first[: MAX_TEXT - 3] + "..."
    return f"`{cut} ...`" if rest else f"`{cut}`"


def bare(body: list[ast.stmt]) -> list[ast.stmt]:
    """A block without what does nothing: docstrings, `pass`, `...`."""
    return [
        one
        for one in one_by_one(body)
        if not (is_docstring(one) or isinstance(one, ast.Pass) or _is_dots(one))
    ]


def _is_dots(one: ast.stmt) -> bool:
    return (
        isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and one.value.value is ...
    )


def undocumented(node: ast.AST) -> str:
    """The shape of a statement without the docstrings in it."""
    if isinstance(node, DEFINITIONS) or any(
        isinstance(getattr(node, name, None), list) for name in _BLOCKS
    ):
        inner = [[undocumented(one) for one in block] for _, block in _inner(node)]
        return f"{_shell(node)}{inner}"
    return shape(node)


def _shell(node: ast.AST) -> str:
    """A compound statement without the statements inside it."""
    fields = ast.iter_fields(node)
    parts = [
        (name, value)
        for name, value in fields
        if name not in _BLOCKS or not isinstance(value, list)
    ]
    return type(node).__name__ + str([(name, _dumped(value)) for name, value in parts])


def _dumped(value: object) -> str:
    if isinstance(value, list):
        return str([_dumped(one) for one in value])
    return shape(value) if isinstance(value, ast.AST) else repr(value)


def _inner(node: ast.AST) -> list[tuple[str, list[ast.AST]]]:
    """The blocks of a compound statement by their headers; handlers and cases are blocks'
    owners of their own.
    """
    found: list[tuple[str, list[ast.AST]]] = []
    for name in _BLOCKS:
        value = getattr(node, name, None)
        if isinstance(value, list):
            word = {"orelse": "else", "finalbody": "finally"}.get(name, "")
            body = bare(value) if name not in ("handlers", "cases") else value
            found.append((word, [*body]))
    return found


@dataclass(eq=False)
class _Side:
    """One statement of one of the two trees, with what comparing asks of it often."""

    node: ast.AST

    @cached_property
    def shape(self) -> str:
        return undocumented(self.node)

    @cached_property
    def shell(self) -> str:
        return _shell(self.node)

    @cached_property
    def words(self) -> set[str]:
        return set(re.findall(r"\w+|\S", _head(self.node)))

    @cached_property
    def blocks(self) -> list[tuple[str, list[_Side]]]:
        return [(word, [_Side(one) for one in body]) for word, body in _inner(self.node)]

    @cached_property
    def size(self) -> int:
        return 1 + sum(one.size for _, body in self.blocks for one in body)

    @property
    def line(self) -> int:
        if isinstance(self.node, ast.stmt):
            return first_line(self.node)
        placed = (
            self.node.pattern if isinstance(self.node, ast.match_case) else self.node
        )  # a case has no line
        return getattr(placed, "lineno", 1)


def _head(node: ast.AST) -> str:
    if isinstance(node, ast.ExceptHandler):
        return f"except {ast.unparse(node.type)}" if node.type else "except"
    if isinstance(node, ast.match_case):
        return f"case {ast.unparse(node.pattern)}"
    if isinstance(node, DEFINITIONS):  # decorators stand above the line that says what it is
        lines = ast.unparse(node).split("\n")
        return "\n".join(lines[: len(node.decorator_list) + 1])
    return header(node) if hasattr(node, "body") else ast.unparse(node)  # type: ignore[arg-type]


def _written(one: _Side, source: str) -> str:
    """A statement, of a compound one what stands above its block, on one line."""
    node, lines = one.node, source.splitlines()
    if not lines or isinstance(node, ast.Import | ast.ImportFrom):
        return " ".join(_head(node).split())
    body = getattr(node, "body", None)
    if isinstance(body, list):
        end = max(one.line, first_line(body[0]) - 1)
        kept = [line.strip() for line in lines[one.line - 1 : end]]
        return " ".join(line for line in kept if line and not line.startswith("#")).rstrip(":")
    return " ".join((ast.get_source_segment(source, node) or _head(node)).split())


@dataclass
class _Walk:
    path: str
    was: str
    now: str
    added: list[AddedStatement] = field(default_factory=list)
    changed: list[ForbiddenChange] = field(default_factory=list)
    removed: list[_Side] = field(default_factory=list)
    _costs: dict[tuple[int, int], tuple[float, object]] = field(default_factory=dict)

    def settled(self) -> tuple[list[AddedStatement], list[ForbiddenChange]]:
        """What stands somewhere else now was moved, and is neither new nor gone."""
        added, changed = list(self.added), list(self.changed)
        for one in self.removed:
            twin = next((other for other in added if undocumented(other.node) == one.shape), None)
            if twin is None:
                changed.append(
                    ForbiddenChange(
                        self.path, one.line, f"(before the edit): {_quoted(one.node)} was taken out"
                    )
                )
            else:
                added.remove(twin)
                what = f"{_quoted(one.node)} was moved; it stood at line {one.line}"
                changed.append(ForbiddenChange(self.path, first_line(twin.node), what))
        return added, changed

    def block(
        self,
        old: list[ast.stmt],
        new: list[ast.stmt],
        scope: tuple[str, ...],
        block: tuple[str, ...],
        in_class: bool,
    ) -> None:
        self._block(
            [_Side(one) for one in bare(old)],
            [_Side(one) for one in bare(new)],
            scope,
            block,
            in_class,
        )

    def _block(
        self,
        old: list[_Side],
        new: list[_Side],
        scope: tuple[str, ...],
        block: tuple[str, ...],
        in_class: bool,
    ) -> None:
        pairs = self._pairs(old, new)
        kept = {j: i for i, j in pairs}
        matched = {i for i, _ in pairs}
        self.removed += [one for i, one in enumerate(old) if i not in matched]
        for j, one in enumerate(new):
            if j in kept:
                self._pair(old[kept[j]], one, scope, block)
                continue
            before = [old[kept[k]].node for k in range(j) if k in kept]
            after = [old[kept[k]].node for k in range(j + 1, len(new)) if k in kept]
            assert isinstance(one.node, ast.stmt)
            self.added.append(
                AddedStatement(self.path, scope, block, one.node, tuple(map(ast.unparse, before)),
                      tuple(map(ast.unparse, after)), in_class)
            )  # fmt: skip

    def _pair(self, old: _Side, new: _Side, scope: tuple[str, ...], block: tuple[str, ...]) -> None:
        if old.shape == new.shape:
            return
        if old.shell != new.shell:
            what = f"was `{_written(old, self.was)}` and is `{_written(new, self.now)}`"
            self.changed.append(ForbiddenChange(self.path, new.line, what))
        is_definition = isinstance(new.node, DEFINITIONS)
        if is_definition:
            scope, block = (*scope, new.node.name), ()  # type: ignore[union-attr]
        for (word, mine), (_, other) in zip(old.blocks, new.blocks, strict=True):
            inside = block if is_definition else (*block, _head(new.node))
            if word and not mine and other:
                what = f"`{word}` was put to a statement that has none; write an `if` of its own"
                self.changed.append(ForbiddenChange(self.path, other[0].line, what))
                continue
            is_class = isinstance(new.node, ast.ClassDef)
            self._block(mine, other, scope, (*inside, word) if word else inside, is_class)

    def _pairs(self, old: list[_Side], new: list[_Side]) -> list[tuple[int, int]]:
        """Which statement became which: with the least of the base changed or gone."""
        start = 0
        while start < min(len(old), len(new)) and old[start].shape == new[start].shape:
            start += 1
        end = 0
        while end < min(len(old), len(new)) - start and old[-1 - end].shape == new[-1 - end].shape:
            end += 1
        inner = self._aligned(old[start : len(old) - end], new[start : len(new) - end])
        same = [(i, i) for i in range(start)]
        tail = [(len(old) - end + k, len(new) - end + k) for k in range(end)]
        return [*same, *((start + i, start + j) for i, j in inner), *tail]

    def _aligned(self, old: list[_Side], new: list[_Side]) -> list[tuple[int, int]]:
        best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
        for i in range(len(old), -1, -1):
            for j in range(len(new), -1, -1):
                if i < len(old) or j < len(new):
                    best[i][j] = min(cost for cost, _, _ in self._steps(old, new, i, j, best))
        found, i, j = [], 0, 0
        while i < len(old) or j < len(new):
            _, to_i, to_j = min(self._steps(old, new, i, j, best))
            if to_i > i and to_j > j:
                found.append((i, j))
            i, j = to_i, to_j
        return found

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
        """Of making one of the other: statements of the base that are changed or gone."""
        known = self._costs.get((id(old), id(new)))
        if known is None:
            self._costs[id(old), id(new)] = known = (self._new_cost(old, new), (old, new))
        return known[0]

    def _new_cost(self, old: _Side, new: _Side) -> float:
        if old.shape == new.shape:
            return 0.0
        if isinstance(new.node, DEFINITIONS) and old.node.name != new.node.name:  # type: ignore[union-attr]
            return float("inf")
        own = 0.0
        if old.shell != new.shell:
            own = 0.1 + 0.8 * (1 - len(old.words & new.words) / len(old.words | new.words))
        for (word, mine), (_, other) in zip(old.blocks, new.blocks, strict=True):
            own += 1.0 if word and not mine and other else self._distance(mine, other)
        return own

    def _distance(self, old: list[_Side], new: list[_Side]) -> float:
        pairs = self._pairs(old, new)
        gone = {*range(len(old))} - {i for i, _ in pairs}
        come = {*range(len(new))} - {j for _, j in pairs}
        return (
            sum(self._cost(old[i], new[j]) for i, j in pairs)
            + sum(old[i].size for i in gone) + sum(new[j].size for j in come) * INSERTED
        )  # fmt: skip


def _quoted(node: ast.AST) -> str:
    return short(node) if isinstance(node, ast.stmt) else f"`{_head(node)}`"
