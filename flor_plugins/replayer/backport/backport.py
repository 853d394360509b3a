"""Carry an edit of the working tree to an old version of the code.

It is merged by git, else by aligned syntax trees.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.anchors import Anchor, AnchorFinder, StatementGroup
from flor_plugins.replayer.backport.dependencies import Dependencies, may_be_copied, rewritten
from flor_plugins.replayer.backport.edit import Edit
from flor_plugins.replayer.backport.git_merge import merged
from flor_plugins.replayer.backport.imports import NamedObject, module_path, resolve
from flor_plugins.replayer.backport.insert_proof import ExtraStatement, extras_of_text, shapes
from flor_plugins.replayer.backport.insertion import Insertion
from flor_plugins.replayer.backport.names import (
    attributes,
    binds,
    function_locals,
    is_bound_before,
    reads,
)
from flor_plugins.replayer.backport.splice import SplicedText, patch, put_in, taken
from flor_plugins.replayer.backport.syntax import CodeVersion, Nesting, Scope, first_line, shape

BackportMethod = Literal["same", "merged", "aligned"]


@dataclass(frozen=True, slots=True)
class Backport:
    """An edit in one old version.

    sources: files of the old version that become other ones, by path. how: for each, whether it was
    the file that was edited, or git merged it, or syntax trees were aligned. patch: as `git
    diff` prints it.
    """

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
    """Return the files that git can merge, with the edit in them."""
    texts = {}
    for path in {insertion.path for insertion in edit.insertions} & edit.base.keys() & old.keys():
        base, edited = edit.base[path], edit.edited[path]
        if old[path] == base:
            texts[path] = edited
        elif text := merged(path, base=base, edited=edited, old=old[path]):
            texts[path] = text
    return texts


def _is_as_good(old: str, aligned: str, git: str, texts: Mapping[str, str], path: str) -> bool:
    """Whether git brought what alignment brings.

    Otherwise it may have brought at most what is not used and does nothing.
    """
    by_alignment, by_git = extras_of_text(path, old, aligned), extras_of_text(path, old, git)
    if by_alignment is None or by_git is None:
        return False
    surplus = _counts(by_git) - _counts(by_alignment)
    idle = [extra.node for extra in by_git if not _counts([extra]).keys().isdisjoint(surplus)]
    return not _counts(by_alignment) - _counts(by_git) and all(
        _is_idle(node, CodeVersion(texts), path) for node in idle
    )


def _counts(extras: Iterable[ExtraStatement]) -> Counter[tuple[Nesting, str]]:
    return Counter((extra.scope, text) for extra in extras for text in shapes([extra.node]))


def _is_idle(node: ast.stmt, version: CodeVersion, path: str) -> bool:
    if isinstance(node, ast.Import):
        return not any(module_path(version, path, alias.name, 0) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return not module_path(version, path, node.module or "", node.level)
    return may_be_copied(node)


class _BackportInProgress:
    """One edit on its way into one old version. exact: files that git merges without a conflict."""

    def __init__(self, edit: Edit, old: CodeVersion, exact: frozenset[str]) -> None:
        self.edit = edit
        self.base = CodeVersion(edit.base)
        self.edited = CodeVersion(edit.edited)
        self.old = old
        self.finder = AnchorFinder(self.base, old, exact)
        self.dependencies = Dependencies(self.edited, self.finder)

    def texts(self) -> dict[str, str]:
        """Return the files that change, with the edit in them.

        Each is proved to be the old one without it.
        """
        puts = [put for group in self._groups() for put in self._placed(group)]
        by_path: dict[str, list[SplicedText]] = {}
        for put in puts + self.dependencies.puts():
            by_path.setdefault(put.path, []).append(put)
        return {
            path: _proved(self.old.texts[path], path, put_in(self.old.texts[path], puts), puts)
            for path, puts in by_path.items()
        }

    def _groups(self) -> list[StatementGroup]:
        """Return the statements that have a place of their own.

        The others come along as they are needed.
        """
        groups: list[StatementGroup] = []
        for insertion in sorted(self.edit.insertions, key=attrgetter("path", "line")):
            if insertion.path not in self.base.trees or _comes_along(insertion):
                continue
            node = self._node(insertion)
            last = groups[-1] if groups else None
            if last and last.first.point == insertion.point:
                groups[-1] = StatementGroup((*last.insertions, insertion), (*last.nodes, node))
            else:
                groups.append(StatementGroup((insertion,), (node,)))
        return groups

    def _node(self, insertion: Insertion) -> ast.stmt:
        """Return the statement in the edited file."""
        meant = insertion.node
        here = [
            node
            for node in ast.walk(self.edited.trees[insertion.path])
            if isinstance(node, ast.stmt) and insertion.line in (node.lineno, first_line(node))
        ]
        # A text that was moved to the left margin may hold a docstring that was, too.
        same = [node for node in here if shape(node) == shape(meant)]
        nodes = same or [node for node in here if type(node) is type(meant)]
        if not nodes:
            raise CannotCarry(
                f"{insertion.path}:{insertion.line} is not what it was when the edit was read. "
                f"Ask again."
            )
        return nodes[0]

    def _placed(self, group: StatementGroup) -> list[SplicedText]:
        anchor = self.finder.find(group)
        block = anchor.block
        puts = []
        for insertion, node in zip(group.insertions, group.nodes, strict=True):
            statement = str(StatementGroup((insertion,), (node,)))
            self._check_binds(node, block.scope, statement)
            names = {name: self._name(name, group, anchor, statement) for name in reads(node)}
            text = rewritten(taken(self.edited.texts[insertion.path], node), names, statement)
            puts.append(SplicedText(block.scope.path, block.body, anchor.index, text))
        return puts

    def _check_binds(self, node: ast.stmt, scope: Scope, statement: str) -> None:
        """What the statement defines must be new: else it would change the training."""
        new = binds(node)
        own_attributes = {name for name in new if name.startswith("self.")}
        owner = self.old.class_of(scope)
        known = attributes(self.old, owner) if owner is not None else set()
        if scope.is_class:
            own_attributes, used = new, set()
        else:
            names = {part.id for part in ast.walk(scope.node) if isinstance(part, ast.Name)}
            used = (names | function_locals(self.old, scope)) & new
        used |= known & {name.removeprefix("self.") for name in own_attributes}
        if used:
            raise CannotCarry(
                f"{statement} defines {min(used)!r}, and {scope} of this version has that name "
                f"already: it would change "
                "the training. Give it another name in the working tree."
            )

    def _name(self, name: str, group: StatementGroup, anchor: Anchor, statement: str) -> str:
        """Return what a name that the group reads is called where it goes."""
        if name.startswith("self."):
            return self._attribute(name, anchor, statement)
        first, base_scope, old_scope = group.first, anchor.source, anchor.block.scope
        source = self.edited.scope(first.path, first.scope)
        assert source is not None
        if name in function_locals(self.base, base_scope) or self._is_script_variable(
            name, base_scope
        ):
            return self._variable(name, anchor, statement)
        if name in function_locals(self.edited, source):  # the edit's own, placed above
            return name
        there = self.dependencies.bring(name, first.path, old_scope.path, statement)
        if there in function_locals(self.old, old_scope):
            raise CannotCarry(
                f"{statement} reads {name!r}; in {old_scope} {there!r} is a variable. Rename it."
            )
        return there

    def _is_script_variable(self, name: str, source: Scope) -> bool:
        """Whether it is a variable of code that stands outside of functions."""
        if source.names or resolve(self.base, source.path, name) != NamedObject(source.path, name):
            return False
        return self.base.scope(source.path, (name,)) is None

    def _variable(self, name: str, anchor: Anchor, statement: str) -> str:
        scope, body, index = anchor.block.scope, anchor.block.body, anchor.index
        choices = self.finder.votes_of(anchor).names(name) or [name]
        if len(choices) > 1:
            raise CannotCarry(
                f"{statement} reads {name!r}, which may be "
                f"{' or '.join(map(repr, choices[:2]))} in {scope}. "
                "Log it with a hook, or leave this run out."
            )
        line = first_line(body[index]) if index < len(body) else anchor.line
        if not is_bound_before(self.old, scope, choices[0], line):
            called = "" if choices[0] == name else f" (there {choices[0]!r})"
            raise CannotCarry(
                f"{statement} reads {name!r}{called}, which {scope} does not define before line "
                f"{line}."
            )
        return choices[0]

    def _attribute(self, name: str, anchor: Anchor, statement: str) -> str:
        base_class = self.base.class_of(anchor.source)
        old_class = self.old.class_of(anchor.block.scope)
        attribute = name.removeprefix("self.")
        if (
            base_class is None
            or old_class is None
            or attribute not in attributes(self.base, base_class)
        ):
            return name  # of the framework, or of the edit
        votes = self.finder.votes_of(anchor).names(name) or self.finder.votes.names(name)
        there = attributes(self.old, old_class)
        known = [choice for choice in votes or [name] if choice.removeprefix("self.") in there]
        if len(known) != 1:
            choices = " or ".join(map(repr, known[:2])) if known else "nothing like it"
            raise CannotCarry(
                f"{statement} reads {name}; {old_class} of this version has {choices}. "
                f"Leave this run out."
            )
        return known[0]


def _comes_along(insertion: Insertion) -> bool:
    """Whether it stands at module level and is an import or a definition.

    A statement there that only does something has a place.
    """
    if insertion.scope or insertion.kind == "log":
        return False
    return insertion.kind == "import" or not insertion.point.block


def _proved(old: str, path: str, text: str, puts: Iterable[SplicedText]) -> str:
    """Return the text, if it is the old file with exactly these statements in it."""
    extras = extras_of_text(path, old, text)
    meant = shapes(ast.parse(put.text).body[0] for put in puts)
    if extras is None or shapes(extra.node for extra in extras) != meant:
        raise CannotCarry(
            f"the edit was put into {path}, and without it the file is not what it was. Log it "
            f"with a hook, "
            "or leave this run out."
        )
    return text
