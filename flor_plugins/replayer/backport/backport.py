"""An edit of the working tree, carried to an old version of the code: merged by git, else by
aligned syntax trees.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.anchors import Anchor, AnchorFinder, StatementGroup
from flor_plugins.replayer.backport.dependencies import Dependencies, rewritten
from flor_plugins.replayer.backport.git_merge import merged
from flor_plugins.replayer.backport.imports import NamedObject, module_path, thing
from flor_plugins.replayer.backport.insert_proof import extras, shapes
from flor_plugins.replayer.backport.names import (
    attributes,
    binds,
    function_locals,
    is_bound_before,
    reads,
)
from flor_plugins.replayer.backport.splice import SplicedText, patch, put_in, taken
from flor_plugins.replayer.backport.syntax import CodeVersion, Scope, first_line, parsed, shape

if TYPE_CHECKING:
    from flor_plugins.replayer.backport.edit import Edit, Insertion

BackportMethod = Literal["same", "merged", "aligned"]


@dataclass(frozen=True, slots=True)
class Backport:
    """An edit in one old version.

    sources: files of the old version that become other ones, by path. how: for each, whether it was
    the file that was edited, or git merged it, or syntax trees were aligned. patch: as `git
    diff` prints it."""

    sources: Mapping[str, str]
    how: Mapping[str, BackportMethod]
    patch: str


def carry(edit: Edit, old: Mapping[str, str]) -> Backport:
    """Put the edit's statements into an old version, with the imports and functions that they need.

    old: its python files by path. What comes out parses, and without the statements it is the old
    version's very syntax tree. Raises CannotCarry, naming the statement and the places in
    question, where a statement has no place or more than one, or reads what is not there.
    """
    sources = _new_files(edit, old)
    how: dict[str, BackportMethod] = dict.fromkeys(sources, "same")
    whole = _merges(edit, old)
    for path, text in _BackportInProgress(edit, CodeVersion(old), frozenset(whole)).texts().items():
        git = whole.get(path)
        if git is not None and _is_as_good(old[path], text, git, {**old, **sources}, path):
            sources[path], how[path] = git, "same" if old[path] == edit.base.get(path) else "merged"
        else:
            sources[path], how[path] = text, "aligned"
    return Backport(sources, how, patch(old, sources))


def _new_files(edit: Edit, old: Mapping[str, str]) -> dict[str, str]:
    added = {path: text for path, text in edit.edited.items() if path not in edit.base}
    for path, text in added.items():
        if old.get(path, text) != text:
            raise CannotCarry(
                f"{path}:1 is new in the working tree, and this version has another file of "
                f"that name. "
                "Give the new file another name."
            )
    return {path: text for path, text in added.items() if path not in old}


def _merges(edit: Edit, old: Mapping[str, str]) -> dict[str, str]:
    """The files that git can merge, with the edit in them."""
    found = {}
    for path in {one.path for one in edit.insertions if one.path in edit.base and one.path in old}:
        base, edited = edit.base[path], edit.edited[path]
        text = (
            edited if old[path] == base else merged(path, base=base, edited=edited, old=old[path])
        )
        if text is not None:
            found[path] = text
    return found


def _is_as_good(old: str, aligned: str, git: str, texts: Mapping[str, str], path: str) -> bool:
    """Did git bring what alignment brings, and otherwise at most what is not used and does
    nothing?
    """
    trees = [parsed(path, text) for text in (old, aligned, git)]
    before, mine, other = trees
    if before is None or mine is None or other is None:
        return False
    found, came = extras(before, mine), extras(before, other)
    if found is None or came is None:
        return False
    here = Counter((one.scope, text) for one in found for text in shapes([one.node]))
    there = Counter((one.scope, text) for one in came for text in shapes([one.node]))
    surplus = set((there - here).keys())
    idle = [
        one.node for one in came if any((one.scope, text) in surplus for text in shapes([one.node]))
    ]
    return not here - there and (
        not idle or all(_is_idle(one, CodeVersion(texts), path) for one in idle)
    )


def _is_idle(node: ast.stmt, version: CodeVersion, path: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return not node.decorator_list
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Import):
        return not any(module_path(version, path, alias.name, 0) for alias in node.names)
    return isinstance(node, ast.ImportFrom) and not module_path(
        version, path, node.module or "", node.level
    )


class _BackportInProgress:
    """One edit on its way into one old version. exact: files that git merges without a conflict."""

    def __init__(self, edit: Edit, old: CodeVersion, exact: frozenset[str]) -> None:
        self.edit = edit
        self.base = CodeVersion(edit.base)
        self.edited = CodeVersion(edit.edited)
        self.old = old
        self.finder = AnchorFinder(self.base, old, exact)
        self.supply = Dependencies(self.edited, self.finder)

    def texts(self) -> dict[str, str]:
        """The files that change, with the edit in them; each is proved to be the old one
        without it.
        """
        puts = [put for group in self._groups() for put in self._placed(group)]
        puts += self.supply.puts()
        found = {}
        for path in dict.fromkeys(put.path for put in puts):
            mine = [put for put in puts if put.path == path]
            found[path] = _proved(self.old, path, put_in(self.old.texts[path], mine), mine)
        return found

    def _groups(self) -> list[StatementGroup]:
        """The statements that have a place of their own; the others come along as they are
        needed.
        """
        groups: list[StatementGroup] = []
        kept = [
            one
            for one in self.edit.insertions
            if one.path in self.base.trees and not self._comes_along(one)
        ]
        for one in sorted(kept, key=lambda one: (one.path, one.line)):
            node = self._node(one)
            last = groups[-1] if groups else None
            if last and _spot(last.insertions[-1]) == _spot(one):
                groups[-1] = StatementGroup((*last.insertions, one), (*last.nodes, node))
            else:
                groups.append(StatementGroup((one,), (node,)))
        return groups

    def _comes_along(self, one: Insertion) -> bool:
        """At module level: imports and definitions.

        A statement there that only does something has a place.
        """
        return not one.scope and one.kind != "log" and (one.kind == "import" or not one.block)

    def _node(self, one: Insertion) -> ast.stmt:
        """The statement in the edited file."""
        meant = ast.parse(one.text).body[0]
        body = self.edited.trees[one.path].body
        every = [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.stmt)]
        here = [node for node in every if one.line in (node.lineno, first_line(node))]
        # A text that was moved to the left margin may hold a docstring that was, too.
        here = [node for node in here if shape(node) == shape(meant)] or [
            node for node in here if type(node) is type(meant)
        ]
        if not here:
            raise CannotCarry(
                f"{one.path}:{one.line} is not what it was when the edit was read. Ask again."
            )
        return here[0]

    def _placed(self, group: StatementGroup) -> list[SplicedText]:
        place = self.finder.find(group)
        scope = place.block.scope
        puts = []
        for one, node in zip(group.insertions, group.nodes, strict=True):
            asked = str(StatementGroup((one,), (node,)))
            self._check_binds(node, place, asked)
            names = {name: self._name(name, group, place, asked) for name in reads(node)}
            text = rewritten(taken(self.edited.texts[one.path], node), names, asked)
            puts.append(SplicedText(scope.path, place.block.body, place.index, text))
        return puts

    def _check_binds(self, node: ast.stmt, place: Anchor, asked: str) -> None:
        """What the statement defines must be new: else it would change the training."""
        scope, new = place.block.scope, binds(node)
        plain = {one for one in new if not one.startswith("self.")}
        owner = self.old.class_of(scope)
        known = attributes(self.old, owner) if owner is not None else set()
        used = {
            one.id for one in ast.walk(scope.node) if isinstance(one, ast.Name)
        } | function_locals(self.old, scope)
        taken_already = known & {
            one.removeprefix("self.") for one in (new if scope.is_class else new - plain)
        }
        if not scope.is_class:
            taken_already |= used & plain
        if taken_already:
            name = min(taken_already)
            raise CannotCarry(
                f"{asked} defines {name!r}, and {scope} of this version has that name already: "
                f"it would change "
                "the training. Give it another name in the working tree."
            )

    def _name(self, name: str, group: StatementGroup, place: Anchor, asked: str) -> str:
        """What a name that the group reads is called where it goes."""
        if name.startswith("self."):
            return self._attribute(name, place, asked)
        first = group.first
        source = self.edited.scope(first.path, first.scope)
        assert source is not None
        if name in function_locals(self.base, place.source) or self._is_script_variable(
            name, place.source
        ):
            return self._variable(name, place, asked)
        if name in function_locals(self.edited, source):  # the edit's own, placed above
            return name
        there = self.supply.bring(name, first.path, place.block.scope.path, asked)
        if there in function_locals(self.old, place.block.scope):
            raise CannotCarry(
                f"{asked} reads {name!r}; in {place.block.scope} {there!r} is a variable. "
                f"Rename it."
            )
        return there

    def _is_script_variable(self, name: str, source: Scope) -> bool:
        """Is it a variable of code that stands outside of functions?"""
        if source.names or thing(self.base, source.path, name) != NamedObject(source.path, name):
            return False
        return self.base.scope(source.path, (name,)) is None

    def _variable(self, name: str, place: Anchor, asked: str) -> str:
        scope = place.block.scope
        choices = self.finder.votes_of(place).names(name) or [name]
        if len(choices) > 1:
            raise CannotCarry(
                f"{asked} reads {name!r}, which may be {' or '.join(map(repr, choices[:2]))} "
                f"in {scope}. "
                "Log it with a hook, or leave this run out."
            )
        body, index = place.block.body, place.index
        line = first_line(body[index]) if index < len(body) else (body[-1].end_lineno or 0) + 1
        if not is_bound_before(self.old, scope, choices[0], line):
            called = "" if choices[0] == name else f" (there {choices[0]!r})"
            raise CannotCarry(
                f"{asked} reads {name!r}{called}, which {scope} does not define before line {line}."
            )
        return choices[0]

    def _attribute(self, name: str, place: Anchor, asked: str) -> str:
        mine, other = self.base.class_of(place.source), self.old.class_of(place.block.scope)
        attribute = name.removeprefix("self.")
        if mine is None or other is None or attribute not in attributes(self.base, mine):
            return name  # of the framework, or of the edit
        choices = self.finder.votes_of(place).names(name) or self.finder.votes.names(name) or [name]
        known = [one for one in choices if one.removeprefix("self.") in attributes(self.old, other)]
        if len(known) != 1:
            found = " or ".join(map(repr, known[:2])) if known else "nothing like it"
            raise CannotCarry(
                f"{asked} reads {name}; {other} of this version has {found}. Leave this run out."
            )
        return known[0]


def _spot(one: Insertion) -> tuple[object, ...]:
    return one.path, one.scope, one.block, one.before, one.after


def _proved(old: CodeVersion, path: str, text: str, puts: list[SplicedText]) -> str:
    """The text, if it is the old file with exactly these statements in it."""
    tree = parsed(path, text)
    found = extras(old.trees[path], tree) if tree is not None else None
    meant = shapes(ast.parse(put.text).body[0] for put in puts)
    if found is None or shapes(one.node for one in found) != meant:
        raise CannotCarry(
            f"the edit was put into {path}, and without it the file is not what it was. Log it "
            f"with a hook, "
            "or leave this run out."
        )
    return text
