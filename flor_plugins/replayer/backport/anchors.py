"""Where in an old version a statement of the edit belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import itemgetter

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.insertion import Insertion
from flor_plugins.replayer.backport.matching import (
    RenameVotes,
    StatementPair,
    align,
    flat,
    likeness,
    pairs,
    ratio,
)
from flor_plugins.replayer.backport.names import binds, family, parameters, reads
from flor_plugins.replayer.backport.syntax import (
    Block,
    CodeVersion,
    FunctionNode,
    Scope,
    blocks,
)

MIN_PLACE = 0.6  # of a place's score, which is 1 where nothing has changed
MARGIN = 0.06  # a second place that is nearly as good makes both uncertain
MIN_SCOPE = 0.35
SAME = 0.8  # what has the same name in the same file, and is that alike, is the same
SAME_CLASS = 0.85  # a class whose body is that alike may have another name
# each statement between a statement and its nearest known neighbour makes the neighbour say
# less
FAR = 0.85
MAX_SCOPES = 8
# Of these the values of parameters and gradients change, whatever stands between the brackets.
UPDATES = (
    "backward",
    "manual_backward",
    "step",
    "zero_grad",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_gradients",
)
LOGS = ("log", "log_dict", "print", "info", "debug")


@dataclass(frozen=True, slots=True)
class StatementGroup:
    """Statements of the edit that stand one after the other in one block."""

    insertions: tuple[Insertion, ...]
    nodes: tuple[ast.stmt, ...]

    @property
    def first(self) -> Insertion:
        """The insertion that stands above the others."""
        return self.insertions[0]

    def __str__(self) -> str:
        text = self.first.text.strip().partition("\n")[0]
        return f"{self.first.path}:{self.first.line} (`{text}`)"


@dataclass(frozen=True, slots=True)
class Anchor:
    """Before statement `index` of a block. source: the scope in the base that it was found for."""

    block: Block
    index: int
    score: float
    source: Scope

    @property
    def line(self) -> int:
        """The line before which it lies."""
        return self.block.line(self.index) + (self.index == len(self.block.body))

    def __str__(self) -> str:
        scope = self.block.scope
        return f"{scope.path}:{self.line} ({scope.dotted})"


class AnchorFinder:
    """Finds places in one old version for statements of the base.

    exact: files that git merges without a conflict.
    """

    def __init__(self, base: CodeVersion, old: CodeVersion, exact: Iterable[str] = ()) -> None:
        self.base = base
        self.old = old
        self.exact = frozenset(exact)
        self.votes = self._votes_of_namesakes()

    def _votes_of_namesakes(self) -> RenameVotes:
        """Return what functions that kept their names say about the names inside them.

        These are who is called, and what self holds.
        """
        votes = RenameVotes()
        by_name: dict[str, list[Scope]] = {}
        for function in self.old.scopes:
            if function.is_function:
                by_name.setdefault(function.name, []).append(function)
        for scope in self.base.scopes:
            same = by_name.get(scope.name, []) if scope.is_function else []
            exact = [function for function in same if function.names == scope.names] or same
            exact = [function for function in exact if function.path == scope.path] or exact
            if len(exact) == 1:
                vote(votes, scope, exact[0])
        return votes

    def find(self, group: StatementGroup) -> Anchor:
        """Return the only place that fits.

        Raises CannotCarry if there is none, or if two fit nearly as well.
        """
        source, index = self._spot(group)
        if source.scope.is_class:
            candidates = self._among_methods(source, index)
        else:
            candidates = self._candidates(source, index)
        candidates.sort(key=_score, reverse=True)
        anchors = [anchor for anchor, _ in candidates]
        if not anchors or anchors[0].score < MIN_PLACE:
            raise CannotCarry(_no_place(group, source.scope, anchors[:3]))
        if len(anchors) > 1 and anchors[1].score > anchors[0].score - MARGIN:
            raise CannotCarry(_two_places(group, anchors[0], anchors[1]))
        return self._between(group, *candidates[0])

    def _spot(self, group: StatementGroup) -> tuple[Block, int]:
        """Return where the group would stand in the base."""
        first = group.first
        scope = self.base.scope(first.path, first.scope)
        if scope is None:
            raise CannotCarry(
                f"{group} stands in a function that the newest recorded version has not: "
                f"{'.'.join(first.scope)}. Record once with it."
            )
        spots = [(block, index) for block in blocks(scope) for index in range(len(block.body) + 1)]
        fits = [
            (_neighbours(block, index, first), -abs(block.line(index) - first.line))
            for block, index in spots
        ]
        return spots[fits.index(max(fits))]

    def _candidates(self, source: Block, index: int) -> list[tuple[Anchor, int]]:
        """Return places with the index up to which the statement could stand as well."""
        candidates = []
        for scope, like in self._scopes(source.scope):
            for block in blocks(scope):
                gap = _gap(source.body, index, block.body)
                if gap is None:
                    continue
                low, high, sides = gap
                around = (
                    ratio(source.headers, block.headers) if source.headers or block.headers else 1.0
                )
                score = 0.45 * like + 0.4 * sides + 0.15 * around
                candidates.append((Anchor(block, low, score, source.scope), high))
        return candidates

    def _among_methods(self, source: Block, index: int) -> list[tuple[Anchor, int]]:
        """Return in which classes a method may go; its place among the others says nothing."""
        candidates = []
        for scope, like in self._scopes(source.scope):
            body = scope.node.body
            low, _, _ = _gap(source.body, index, body) or (len(body), 0, 0.0)
            candidates.append((Anchor(Block(scope, (), body), low, like, source.scope), low))
        return candidates

    def _scopes(self, source: Scope) -> list[tuple[Scope, float]]:
        same = self.old.scope(source.path, source.names)
        is_same_file = self.old.texts.get(source.path) == self.base.texts[source.path]
        if same is not None:
            if is_same_file or source.path in self.exact:
                return [(same, 1.0)]
            is_same_kind = type(same.node) is type(source.node)
            if is_same_kind and likeness(source.node, same.node) >= SAME:
                return [(same, self.scope_likeness(source, same))]
        likely = [
            (scope, like)
            for scope in self.old.scopes
            if type(scope.node) is type(source.node)
            and (like := self.scope_likeness(source, scope)) >= MIN_SCOPE
        ]
        return sorted(likely, key=itemgetter(1), reverse=True)[:MAX_SCOPES]

    def scope_likeness(self, base: Scope, old: Scope) -> float:
        """Return how like two scopes are, up to 1.

        A function is known by its body, its name, or the name that its callers use; a class by
        its name.
        """
        same_path = 1.0 if base.path == old.path else 0.5
        body = likeness(base.node, old.node)
        if not base.names:
            return 0.6 * body + 0.4 * same_path
        as_method = (name.removeprefix("self.") for name in self.votes.names(f"self.{base.name}"))
        called = {base.name, *self.votes.names(base.name), *as_method}
        name = 1.0 if old.name in called else 0.6 * ratio(base.name, old.name)
        if base.is_class:
            name = max(name, body if body >= SAME_CLASS else 0.0)
            return 0.3 * body + 0.5 * name + 0.2 * same_path
        owner = self._owner_likeness(base, old)
        return 0.5 * body + 0.3 * name + 0.1 * owner + 0.1 * same_path

    def _owner_likeness(self, base: Scope, old: Scope) -> float:
        if base.names[:-1] == old.names[:-1]:
            return 1.0
        base_class, old_class = self.base.class_of(base), self.old.class_of(old)
        if base_class is None or old_class is None:
            return 0.3
        relatives = {relative.name for relative in family(self.old, old_class)}
        return 0.9 if base_class.name in relatives else 0.3

    def _between(self, group: StatementGroup, anchor: Anchor, high: int) -> Anchor:
        """Return a place among statements that only this version has.

        It lies where they do not matter to the group. Raises CannotCarry if they do.
        """
        names, body = self.local_names(anchor, group), anchor.block.body
        touching = [i for i in range(anchor.index, high) if _touches(body[i], names)]
        if not touching:
            return anchor
        last = replace(anchor, index=touching[-1] + 1)
        above = {name for node in body[: anchor.index] for name in binds(node)}
        below = {name for i in touching for name in binds(body[i])} - above
        if below & names and not _is_parameter(anchor.block.scope, below & names):
            return last
        raise CannotCarry(_two_places(group, anchor, last))

    def local_names(self, anchor: Anchor, group: StatementGroup) -> set[str]:
        """Return what the group reads of the function that it goes to, by the names there."""
        votes = self.votes_of(anchor)
        wanted = [name for node in group.nodes for name in reads(node)]
        if all(name.removeprefix("self.") in LOGS for name in wanted if name.startswith("self.")):
            wanted = [name for name in wanted if name != "self"]  # read for its log() only
        return {new for name in wanted for new in (votes.names(name) or [name])}

    def votes_of(self, anchor: Anchor) -> RenameVotes:
        """Return what the function of a place says about the names of its counterpart."""
        votes = RenameVotes()
        vote(votes, anchor.source, anchor.block.scope)
        return votes


def _score(candidate: tuple[Anchor, int]) -> float:
    return candidate[0].score


def vote(votes: RenameVotes, base: Scope, old: Scope) -> None:
    """Count the names of two functions, or modules, that stand at the same place in both."""
    if flat(base.node) == flat(old.node):
        votes.add(StatementPair(base.node, old.node, 1.0))
        return
    if isinstance(base.node, FunctionNode) and isinstance(old.node, FunctionNode):
        votes.add(StatementPair(base.node.args, old.node.args, 1.0))
    for pair in pairs(base.node.body, old.node.body):
        votes.add(pair)


def _gap(base: list[ast.stmt], index: int, old: list[ast.stmt]) -> tuple[int, int, float] | None:
    """Return between which statements of `old` the place before base[index] lies.

    The third value is how sure its neighbours make that.
    """
    matches = align(base, old)
    above = next((i for i in range(index - 1, -1, -1) if i in matches), None)
    below = next((i for i in range(index, len(base)) if i in matches), None)
    if above is None and below is None:
        return None
    high, after = len(old), 0.9 * (index == len(base))
    if below is not None:
        high, after = matches[below][0], matches[below][1] * FAR ** (below - index)
    # Without a statement above: directly before the only neighbour that is known.
    low, before = high, 0.9 * (index == 0)
    if above is not None:
        low, before = matches[above][0] + 1, matches[above][1] * FAR ** (index - 1 - above)
    return low, high, (before + after) / 2


def _touches(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement may change what the names stand for.

    It gives them values, or is called for its effect on them.
    """
    if binds(node) & names:
        return True
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    called = ast.unparse(node.value.func).rpartition(".")[2]
    return called in UPDATES or (called not in LOGS and not names.isdisjoint(reads(node)))


def _is_parameter(scope: Scope, names: set[str]) -> bool:
    node = scope.node
    return isinstance(node, FunctionNode) and bool(parameters(node.args) & names)


def _neighbours(block: Block, index: int, insertion: Insertion) -> int:
    """Count the recorded neighbours that stand around this place, in order, nearest first."""
    above = map(ast.unparse, reversed(block.body[:index]))
    below = map(ast.unparse, block.body[index:])
    point = insertion.point
    return _common(above, point.before[::-1]) + _common(below, point.after)


def _common(texts: Iterable[str], recorded: Iterable[str]) -> int:
    same = 0
    for text, wanted in zip(texts, recorded, strict=False):
        if text != wanted:
            break
        same += 1
    return same


def _no_place(group: StatementGroup, source: Scope, nearest: list[Anchor]) -> str:
    near = ", ".join(map(str, nearest))
    if source.is_class:
        return (
            f"{group} has no class in this version like {source}. Nearest: "
            f"{near or 'no class there is like it'}. Use a hook."
        )
    return (
        f"{group} has no place in this version: no function is enough like {source}. "
        f"Nearest: {near or 'nothing there is like it'}. Log it there with a hook, or leave this "
        f"run out."
    )


def _two_places(group: StatementGroup, best: Anchor, other: Anchor) -> str:
    return (
        f"{group} fits two places of this version equally well: {best} and {other}. "
        "Put it next to a statement that only one of them has, or leave this run out."
    )
