"""What a statement of the edit needs of other modules and of the edit itself, brought to
where it goes.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.anchors import AnchorFinder
from flor_plugins.replayer.backport.imports import (
    NamedObject,
    has_star,
    import_text,
    imports,
    leads_to,
    module_names,
    thing,
)
from flor_plugins.replayer.backport.names import binds, captured, reads, renamed
from flor_plugins.replayer.backport.splice import SplicedText, taken
from flor_plugins.replayer.backport.syntax import (
    DEFINITIONS,
    CodeVersion,
    first_line,
    is_docstring,
    shape,
    statements,
)

# a function with another name and nobody who says so is the same one if its body is that alike
MIN_SAME = 0.85


class Dependencies:
    """Imports and definitions that come along into files of one old version."""

    def __init__(self, edited: CodeVersion, finder: AnchorFinder) -> None:
        self.edited = edited
        self.base = finder.base
        self.old = finder.old
        self.finder = finder
        self.imports: dict[str, dict[str, str]] = {}  # file: name: statement
        self.definitions: dict[tuple[str, str], list[SplicedText]] = {}  # (file, name)

    def bring(self, name: str, source: str, target: str, asked: str) -> str:
        """Make what `name` means in `source` (a file of the edit) known in `target` (a file of
        the old version).

        Gives the name that it has there. Raises CannotCarry where it does not exist in the old
        version, or its name there means something else.
        """
        of = thing(self.edited, source, name)
        if of is None:
            if (
                hasattr(builtins, name)
                or name in ("__file__", "__name__")
                or has_star(self.old, target)
            ):
                return name
            raise CannotCarry(
                f"{asked} reads {name!r}, which neither the working tree nor {target} defines."
            )
        if not of.path:
            return self._import_from_outside(name, source, target, of, asked)
        if self._is_new(of):
            return self._bring_new(name, of, source, target, asked)
        return self._bring_known(name, of, target, asked)

    def _is_new(self, of: NamedObject) -> bool:
        """Does the edit bring it?"""
        if of.path not in self.base.trees:
            return True
        return bool(of.name) and of.name not in module_names(self.base, of.path)

    def _import_from_outside(
        self, name: str, source: str, target: str, of: NamedObject, asked: str
    ) -> str:
        known = [
            one.name for one in imports(self.old, target) if thing(self.old, target, one.name) == of
        ]
        if known:
            return name if name in known else known[-1]
        binding = next(one for one in reversed(imports(self.edited, source)) if one.name == name)
        return self._add_import(target, name, ast.unparse(binding.node), asked)

    def _add_import(self, target: str, name: str, text: str, asked: str) -> str:
        there = self.imports.setdefault(target, {})
        if there.get(name, text) != text or (name in module_names(self.old, target)):
            raise CannotCarry(
                f"{asked} needs `{text}`, and in {target} of this version {name!r} is "
                f"something else. "
                "Import it by another name in the working tree."
            )
        there[name] = text
        return name

    def _bring_new(self, name: str, of: NamedObject, source: str, target: str, asked: str) -> str:
        if of.path not in self.base.texts:  # a file that the edit adds whole
            return self._import_thing(target, of, name, asked)
        home = target if of.path == source or of.path not in self.old.trees else of.path
        home = self._beside(of, home)
        self._define(of, home, asked)
        return (
            of.name
            if home == target
            else self._import_thing(target, NamedObject(home, of.name), name, asked)
        )

    def _beside(self, of: NamedObject, home: str) -> str:
        """Where it has already been brought to: it is defined once, so that all share it."""
        return next((path for path, name in self.definitions if name == of.name), home)

    def _bring_known(self, name: str, of: NamedObject, target: str, asked: str) -> str:
        there = self._counterpart(of, asked)
        if there is None:
            self._define(of, target, asked)
            return of.name
        return (
            there.name
            if there.path == target and there.name
            else self._import_thing(target, there, name, asked)
        )

    def _import_thing(self, target: str, of: NamedObject, name: str, asked: str) -> str:
        for one in reversed(imports(self.old, target)):
            if thing(self.old, target, one.name) == of:
                return one.name
        if of.path in self.old.trees and leads_to(self.old, of.path, target):
            raise CannotCarry(
                f"{asked} needs {of.name or 'the module'} of {of.path}, which itself imports "
                f"{target} in this version: "
                "they can't import each other. Use a hook, or leave this run out."
            )
        everything = (
            CodeVersion({**self.edited.texts, **self.old.texts})
            if of.path not in self.old.texts
            else self.old
        )
        return self._add_import(target, name, import_text(everything, target, of, name), asked)

    def _counterpart(self, of: NamedObject, asked: str) -> NamedObject | None:
        """The same thing in the old version, wherever it is and whatever its name; None if
        there is none.
        """
        if not of.name:
            if of.path in self.old.texts:
                return of
            raise CannotCarry(
                f"{asked} uses the module {of.path}, which this version has not. Import its "
                f"names one by one."
            )
        if of.path in self.old.trees and of.name in module_names(self.old, of.path):
            there = thing(self.old, of.path, of.name)
            return (
                there if there is not None and there.path else of
            )  # of: that module takes it from outside
        known = {of.name, *self.finder.votes.names(of.name)}
        found = [NamedObject(path, name) for name in known for path in self._defining(name)]
        if not found and (scope := self.base.scope(of.path, (of.name,))) is not None:
            alike = [
                (self.finder.scope_likeness(scope, one), one)
                for one in self.old.scopes
                if len(one.names) == 1
            ]
            found = [NamedObject(one.path, one.name) for like, one in alike if like >= MIN_SAME]
        if len(found) > 1:
            where = " and ".join(f"{one.path} ({one.name})" for one in found[:2])
            raise CannotCarry(
                f"{asked} reads {of.name!r}, which may be either of {where} in this version."
            )
        return found[0] if found else None

    def _defining(self, name: str) -> list[str]:
        return [
            path
            for path in self.old.trees
            if thing(self.old, path, name) == NamedObject(path, name)
        ]

    def _define(self, of: NamedObject, target: str, asked: str) -> None:
        """Copy a definition, and what it needs, into a file."""
        if (target, of.name) in self.definitions:
            return
        nodes = _defining_nodes(self.edited, of)
        if target in self.old.trees and of.name in module_names(self.old, target):
            there = _defining_nodes(self.old, NamedObject(target, of.name))
            if [shape(one) for one in there] == [shape(one) for one in nodes]:
                return
            raise CannotCarry(
                f"{asked} needs {of.name!r} of {of.path}, and {target} of this version defines "
                f"another {of.name!r}. "
                "Give it another name in the working tree."
            )
        if not self._is_new(of) and not all(_may_be_copied(one) for one in nodes):
            raise CannotCarry(
                f"{asked} reads {of.name!r} of {of.path}, which this version has not."
            )
        puts = self.definitions[target, of.name] = []
        for node in nodes:
            wanted = {
                name: self.bring(name, of.path, target, asked)
                for name in _module_reads(node)
                if name != of.name
            }
            text = rewritten(taken(self.edited.texts[of.path], node), wanted, asked)
            body = self.old.trees[target].body
            puts.append(
                SplicedText(
                    target,
                    body,
                    definition_index(self.edited.trees[of.path].body, node, body),
                    text,
                )
            )

    def puts(self) -> list[SplicedText]:
        """All of it, in the order in which it must stand."""
        found = []
        order = {name: line for line, name in self._order()}
        for path, texts in self.imports.items():
            body = self.old.trees[path].body
            ranked = sorted(texts.items(), key=lambda item: order.get(item[0], 0))
            found += [SplicedText(path, body, import_index(body), text) for _, text in ranked]
        defined = sorted(self.definitions.items(), key=lambda item: order.get(item[0][1], 0))
        return found + [put for _, puts in defined for put in puts]

    def _order(self) -> list[tuple[int, str]]:
        """Where the edit defines what it brings."""
        return [
            (first_line(one), name)
            for path in self.edited.trees
            for one in statements(self.edited.trees[path].body)
            for name in binds(one)
        ]


def rewritten(text: str, names: Mapping[str, str], asked: str) -> str:
    """The text by the names of the old version; CannotCarry where one of them would be taken
    for another one.
    """
    if lost := captured(ast.parse(text).body[0], names):
        raise CannotCarry(
            f"{asked} uses {lost[0]!r} for something of its own, and so does this version. "
            f"Rename it."
        )
    return renamed(text, names)


def _module_reads(node: ast.stmt) -> list[str]:
    return [name for name in reads(node) if not name.startswith("self.")]


def _defining_nodes(version: CodeVersion, of: NamedObject) -> list[ast.stmt]:
    return [one for one in version.trees[of.path].body if of.name in binds(one)]


def _may_be_copied(node: ast.stmt) -> bool:
    """A function keeps nothing between its calls; a constant can't be changed."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return not node.decorator_list
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def import_index(body: list[ast.stmt]) -> int:
    """Behind the imports at the head of a file, or behind its docstring."""
    heads = 0
    for index, one in enumerate(body):
        if isinstance(one, ast.Import | ast.ImportFrom) or (index == 0 and is_docstring(one)):
            heads = index + 1
        elif isinstance(one, (*DEFINITIONS, ast.If)):
            break
    return heads


def definition_index(source: list[ast.stmt], node: ast.stmt, body: list[ast.stmt]) -> int:
    """Where a definition goes: beside a neighbour that both files have, and before anything
    that is run.
    """
    at = source.index(node)
    heads = import_index(body)
    places = {one.name: index for index, one in enumerate(body) if isinstance(one, DEFINITIONS)}
    run = [
        i
        for i, one in enumerate(body)
        if i >= heads and isinstance(one, ast.If | ast.Expr | ast.For)
    ]
    last = min([*run, len(body)])
    needed = {name for one in body for name in (binds(one) if isinstance(one, ast.Assign) else ())}
    above = [
        places[one.name] + 1
        for one in source[:at]
        if isinstance(one, DEFINITIONS) and one.name in places
    ]
    below = [
        places[one.name]
        for one in source[at + 1 :]
        if isinstance(one, DEFINITIONS) and one.name in places
    ]
    first_definition = min([*places.values(), last])
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return min(first_definition, *below) if below else first_definition
    assigned = [i + 1 for i, one in enumerate(body) if binds(one) & needed & set(reads(node))]
    chosen = above[-1] if above else below[0] if below else first_definition
    return min(max([chosen, *assigned]), max([last, *assigned]))
