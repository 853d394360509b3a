"""Where in an old version a statement of the edit belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flor_plugins.errors import CannotCarry
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
    FUNCTIONS,
    Block,
    CodeVersion,
    Scope,
    blocks,
    is_docstring,
)

if TYPE_CHECKING:
    from flor_plugins.replayer.backport.edit import Insertion

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

    def __str__(self) -> str:
        body, scope = self.block.body, self.block.scope
        line = body[self.index].lineno if self.index < len(body) else (body[-1].end_lineno or 0) + 1
        return f"{scope.path}:{line} ({'.'.join(scope.names) or 'the module'})"


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
        """What functions that kept their names say about the names inside them: who is
        called, what self holds.
        """
        votes = RenameVotes()
        by_name: dict[str, list[Scope]] = {}
        for one in self.old.scopes:
            if one.is_function:
                by_name.setdefault(one.name, []).append(one)
        for scope in self.base.scopes:
            same = by_name.get(scope.name, []) if scope.is_function else []
            exact = [one for one in same if one.names == scope.names] or same
            exact = [one for one in exact if one.path == scope.path] or exact
            if len(exact) == 1:
                vote(votes, scope, exact[0])
        return votes

    def find(self, group: StatementGroup) -> Anchor:
        """The only place that fits; CannotCarry if there is none, or if two fit nearly as well."""
        source, index = self._spot(group)
        if source.scope.is_class:
            return self._in_class(group, source, index)
        found = sorted(
            self._candidates(source, index), key=lambda place: place[0].score, reverse=True
        )
        if not found or found[0][0].score < MIN_PLACE:
            near = ", ".join(str(place) for place, _ in found[:3]) or "nothing there is like it"
            raise CannotCarry(
                f"{group} has no place in this version: no function is enough like {source.scope}. "
                f"Nearest: {near}. Log it there with a hook, or leave this run out."
            )
        best, high = found[0]
        close = [place for place, _ in found[1:] if place.score > best.score - MARGIN]
        if close:
            raise CannotCarry(_two_places(group, best, close[0]))
        return self._between(group, best, high)

    def _spot(self, group: StatementGroup) -> tuple[Block, int]:
        """Where the group would stand in the base."""
        scope = self.base.scope(group.first.path, group.first.scope)
        if scope is None:
            raise CannotCarry(
                f"{group} stands in a function that the newest recorded version has not: "
                f"{'.'.join(group.first.scope)}. Record once with it."
            )
        spots = [
            (
                _neighbours(block, index, group.first),
                -abs(_line(block, index) - group.first.line),
                block,
                index,
            )
            for block in blocks(scope)
            for index in range(len(block.body) + 1)
        ]
        _, _, block, index = max(spots, key=lambda spot: spot[:2])
        return block, index

    def _candidates(self, source: Block, index: int) -> list[tuple[Anchor, int]]:
        """Places with the index up to which the statement could stand as well."""
        found = []
        for scope, like in self._scopes(source.scope):
            for block in blocks(scope):
                anchored = _anchors(source.body, index, block.body)
                if anchored is None:
                    continue
                low, high, sides = anchored
                around = (
                    ratio(source.headers, block.headers) if source.headers or block.headers else 1.0
                )
                found.append(
                    (
                        Anchor(block, low, 0.45 * like + 0.4 * sides + 0.15 * around, source.scope),
                        high,
                    )
                )
        return found

    def _scopes(self, source: Scope) -> list[tuple[Scope, float]]:
        same = self.old.scope(source.path, source.names)
        is_same_file = self.old.texts.get(source.path) == self.base.texts[source.path]
        if same is not None and (is_same_file or source.path in self.exact):
            return [(same, 1.0)]
        if (
            same is not None
            and type(same.node) is type(source.node)
            and likeness(source.node, same.node) >= SAME
        ):
            return [(same, self.scope_likeness(source, same))]
        kind = type(source.node)
        found = [
            (one, self.scope_likeness(source, one))
            for one in self.old.scopes
            if type(one.node) is kind
        ]
        found = sorted(
            (pair for pair in found if pair[1] >= MIN_SCOPE), key=lambda pair: pair[1], reverse=True
        )
        return found[:MAX_SCOPES]

    def scope_likeness(self, base: Scope, old: Scope) -> float:
        """Up to 1.

        A function is known by its body, its name, or the name that its callers use; a class by
        its name.
        """
        same_path = 1.0 if base.path == old.path else 0.5
        body = likeness(base.node, old.node)
        if not base.names:
            return 0.6 * body + 0.4 * same_path
        called = {
            *self.votes.names(base.name),
            *(name[5:] for name in self.votes.names(f"self.{base.name}")),
        }
        name = (
            1.0 if old.name == base.name or old.name in called else 0.6 * ratio(base.name, old.name)
        )
        owner = self._owner_likeness(base, old)
        if base.is_class:
            name = max(name, body if body >= SAME_CLASS else 0.0)
            return 0.3 * body + 0.5 * name + 0.2 * same_path
        return 0.5 * body + 0.3 * name + 0.1 * owner + 0.1 * same_path

    def _owner_likeness(self, base: Scope, old: Scope) -> float:
        if base.names[:-1] == old.names[:-1]:
            return 1.0
        mine, other = self.base.class_of(base), self.old.class_of(old)
        if mine is None or other is None:
            return 0.3
        return 0.9 if mine.name in {one.name for one in family(self.old, other)} else 0.3

    def _in_class(self, group: StatementGroup, source: Block, index: int) -> Anchor:
        """In which class a method goes; its place among the others says nothing."""
        found = sorted(self._scopes(source.scope), key=lambda pair: pair[1], reverse=True)
        places = [self._among_methods(source, index, scope, like) for scope, like in found]
        if not places or places[0].score < MIN_PLACE:
            near = ", ".join(map(str, places[:3])) or "no class there is like it"
            raise CannotCarry(
                f"{group} has no class in this version like {source.scope}. Nearest: {near}. "
                f"Use a hook."
            )
        if len(places) > 1 and places[1].score > places[0].score - MARGIN:
            raise CannotCarry(_two_places(group, places[0], places[1]))
        return places[0]

    def _among_methods(self, source: Block, index: int, scope: Scope, like: float) -> Anchor:
        block = Block(scope, (), scope.node.body)
        anchored = _anchors(source.body, index, block.body)
        low, _, _ = anchored or (len(block.body), 0, 0.0)
        return Anchor(block, low, like, source.scope)

    def _between(self, group: StatementGroup, place: Anchor, high: int) -> Anchor:
        """A place among statements that only this version has: where they do not matter to
        the group, or not at all.
        """
        names = self.local_names(place, group)
        touching = [
            index for index in range(place.index, high) if _touches(place.block.body[index], names)
        ]
        if not touching:
            return place
        last = Anchor(place.block, touching[-1] + 1, place.score, place.source)
        above = {name for one in place.block.body[: place.index] for name in binds(one)}
        below = {name for index in touching for name in binds(place.block.body[index])} - above
        if below & names and not _is_parameter(place.block.scope, below & names):
            return last
        raise CannotCarry(_two_places(group, place, last))

    def local_names(self, place: Anchor, group: StatementGroup) -> set[str]:
        """What the group reads of the function that it goes to, by the names there."""
        votes = self.votes_of(place)
        wanted = [name for node in group.nodes for name in reads(node)]
        if all(name.removeprefix("self.") in LOGS for name in wanted if name.startswith("self.")):
            wanted = [name for name in wanted if name != "self"]  # read for its log() only
        return {new for name in wanted for new in (votes.names(name) or [name])}

    def votes_of(self, place: Anchor) -> RenameVotes:
        """What the function of a place says about the names of the one that it stands for."""
        votes = RenameVotes()
        vote(votes, place.source, place.block.scope)
        return votes


def vote(votes: RenameVotes, base: Scope, old: Scope) -> None:
    """Count the names of two functions, or modules, that stand at the same place in both."""
    if flat(base.node) == flat(old.node):
        votes.add(StatementPair(base.node, old.node, 1.0))
        return
    if isinstance(base.node, FUNCTIONS) and isinstance(old.node, FUNCTIONS):
        votes.add(StatementPair(base.node.args, old.node.args, 1.0))
    for pair in pairs(list(base.node.body), list(old.node.body)):
        votes.add(pair)


def _anchors(
    base: list[ast.stmt], index: int, old: list[ast.stmt]
) -> tuple[int, int, float] | None:
    """Between which statements of `old` the place before base[index] lies, and how sure its
    neighbours make that.
    """
    found = align(base, old)
    above = next((i for i in range(index - 1, -1, -1) if i in found), None)
    below = next((i for i in range(index, len(base)) if i in found), None)
    if above is None and below is None:
        return None
    first = 1 if old and is_docstring(old[0]) else 0
    low = found[above][0] + 1 if above is not None else first
    high = found[below][0] if below is not None else len(old)
    before = (
        found[above][1] * FAR ** (index - 1 - above)
        if above is not None
        else float(index == 0) * 0.9
    )
    after = (
        found[below][1] * FAR ** (below - index)
        if below is not None
        else float(index == len(base)) * 0.9
    )
    if above is None:
        low = high  # directly before the only neighbour that is known
    return low, high, (before + after) / 2


def _touches(one: ast.stmt, names: set[str]) -> bool:
    """May a statement change what the names stand for? It gives them values, or is called
    for its effect on them.
    """
    if binds(one) & names:
        return True
    if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)):
        return False
    called = ast.unparse(one.value.func).rpartition(".")[2]
    return called in UPDATES or (called not in LOGS and bool(set(reads(one)) & names))


def _is_parameter(scope: Scope, names: set[str]) -> bool:
    node = scope.node
    return isinstance(node, FUNCTIONS) and bool(parameters(node.args) & names)


def _neighbours(block: Block, index: int, one: Insertion) -> int:
    """How many of the recorded neighbours stand around this place, in order, nearest first."""
    above = [ast.unparse(other) for other in reversed(block.body[:index])]
    below = [ast.unparse(other) for other in block.body[index:]]
    return _common(above, one.before[::-1]) + _common(below, one.after)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    same = 0
    for mine, wanted in zip(one, other, strict=False):
        if mine != wanted:
            break
        same += 1
    return same


def _line(block: Block, index: int) -> int:
    return block.body[index].lineno if index < len(block.body) else (block.body[-1].end_lineno or 0)


def _two_places(group: StatementGroup, one: Anchor, other: Anchor) -> str:
    return (
        f"{group} fits two places of this version equally well: {one} and {other}. "
        "Put it next to a statement that only one of them has, or leave this run out."
    )
