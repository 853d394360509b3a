"""Bring what a statement of the edit needs to where it goes.

That is what it uses of other modules and of the edit itself.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from operator import itemgetter

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.anchors import AnchorFinder
from flor_plugins.replayer.backport.imports import (
    NamedObject,
    has_star,
    import_text,
    imports,
    leads_to,
    module_names,
    resolve,
)
from flor_plugins.replayer.backport.names import binds, captured, reads, renamed
from flor_plugins.replayer.backport.splice import SplicedText, taken
from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    Definition,
    FunctionNode,
    ImportNode,
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

    def bring(self, name: str, source: str, target: str, statement: str) -> str:
        """Make what `name` means in `source` known in `target`, and return its name there.

        source: a file of the edit. target: a file of the old version. Raises CannotCarry where it
        does not exist in the old version, or its name there means something else.
        """
        meant = resolve(self.edited, source, name)
        if meant is None:
            if hasattr(builtins, name) or name in ("__file__", "__name__"):
                return name
            if has_star(self.old, target):
                return name
            raise CannotCarry(
                f"{statement} reads {name!r}, which neither the working tree nor {target} defines."
            )
        if not meant.path:
            return self._import_from_outside(name, source, target, meant, statement)
        if self._is_new(meant):
            return self._bring_new(name, meant, source, target, statement)
        there = self._counterpart(meant, statement)
        if there is None:
            self._define(meant, target, statement)
            return meant.name
        return self._import_object(target, there, name, statement)

    def _is_new(self, meant: NamedObject) -> bool:
        """Whether the edit brings it."""
        if meant.path not in self.base.trees:
            return True
        return bool(meant.name) and meant.name not in module_names(self.base, meant.path)

    def _names_of(self, meant: NamedObject, target: str) -> list[str]:
        """Return the names by which a file imports it, the last one first."""
        return [
            binding.name
            for binding in reversed(imports(self.old, target))
            if resolve(self.old, target, binding.name) == meant
        ]

    def _import_from_outside(
        self, name: str, source: str, target: str, meant: NamedObject, statement: str
    ) -> str:
        if known := self._names_of(meant, target):
            return name if name in known else known[0]
        nodes = {binding.name: binding.node for binding in imports(self.edited, source)}
        return self._add_import(target, name, ast.unparse(nodes[name]), statement)

    def _add_import(self, target: str, name: str, text: str, statement: str) -> str:
        there = self.imports.setdefault(target, {})
        if there.get(name, text) != text or name in module_names(self.old, target):
            raise CannotCarry(
                f"{statement} needs `{text}`, and in {target} of this version {name!r} is "
                f"something else. "
                "Import it by another name in the working tree."
            )
        there[name] = text
        return name

    def _bring_new(
        self, name: str, meant: NamedObject, source: str, target: str, statement: str
    ) -> str:
        if meant.path in self.base.texts:  # else it is in a file that the edit adds whole
            is_here = meant.path == source or meant.path not in self.old.trees
            # It is defined once, so that all share it: where it has already been brought to.
            homes = [path for path, known in self.definitions if known == meant.name]
            home = homes[0] if homes else target if is_here else meant.path
            self._define(meant, home, statement)
            meant = NamedObject(home, meant.name)
        return self._import_object(target, meant, name, statement)

    def _import_object(self, target: str, meant: NamedObject, name: str, statement: str) -> str:
        if meant.path == target and meant.name:
            return meant.name
        if known := self._names_of(meant, target):
            return known[0]
        if meant.path in self.old.trees and leads_to(self.old, meant.path, target):
            raise CannotCarry(
                f"{statement} needs {meant.name or 'the module'} of {meant.path}, which itself "
                f"imports {target} in this version: "
                "they can't import each other. Use a hook, or leave this run out."
            )
        version = self.old
        if meant.path not in version.texts:
            version = CodeVersion({**self.edited.texts, **version.texts})
        return self._add_import(target, name, import_text(version, target, meant, name), statement)

    def _counterpart(self, meant: NamedObject, statement: str) -> NamedObject | None:
        """Return the same thing in the old version, wherever it is and whatever its name.

        None if there is none.
        """
        if not meant.name:
            if meant.path in self.old.texts:
                return meant
            raise CannotCarry(
                f"{statement} uses the module {meant.path}, which this version has not. Import its "
                f"names one by one."
            )
        there = resolve(self.old, meant.path, meant.name)
        if there is not None:
            return there if there.path else meant  # meant: that module takes it from outside
        candidates = [
            NamedObject(path, name)
            for name in {meant.name, *self.finder.votes.names(meant.name)}
            for path in self.old.trees
            if resolve(self.old, path, name) == NamedObject(path, name)
        ]
        if not candidates and (scope := self.base.scope(meant.path, (meant.name,))) is not None:
            candidates = [
                NamedObject(other.path, other.name)
                for other in self.old.scopes
                if len(other.names) == 1 and self.finder.scope_likeness(scope, other) >= MIN_SAME
            ]
        if len(candidates) > 1:
            where = " and ".join(f"{other.path} ({other.name})" for other in candidates[:2])
            raise CannotCarry(
                f"{statement} reads {meant.name!r}, which may be either of {where} in this version."
            )
        return candidates[0] if candidates else None

    def _define(self, meant: NamedObject, target: str, statement: str) -> None:
        """Copy a definition, and what it needs, into a file."""
        name = meant.name
        if (target, name) in self.definitions:
            return
        nodes = _defining_nodes(self.edited, meant.path, name)
        there = _defining_nodes(self.old, target, name)
        if there:
            if list(map(shape, there)) == list(map(shape, nodes)):
                return
            raise CannotCarry(
                f"{statement} needs {name!r} of {meant.path}, and {target} of this version defines "
                f"another {name!r}. "
                "Give it another name in the working tree."
            )
        if not self._is_new(meant) and not all(map(may_be_copied, nodes)):
            raise CannotCarry(
                f"{statement} reads {name!r} of {meant.path}, which this version has not."
            )
        puts = self.definitions[target, name] = []
        body, source = self.old.trees[target].body, self.edited.trees[meant.path].body
        for node in nodes:
            wanted = {
                read: self.bring(read, meant.path, target, statement)
                for read in reads(node)
                if read != name and not read.startswith("self.")
            }
            text = rewritten(taken(self.edited.texts[meant.path], node), wanted, statement)
            puts.append(SplicedText(target, body, definition_index(source, node, body), text))

    def puts(self) -> list[SplicedText]:
        """Return all of it in the order in which it must stand: as the edit defines it."""
        lines = {
            name: first_line(node)
            for tree in self.edited.trees.values()
            for node in statements(tree.body)
            for name in binds(node)
        }
        ordered: list[tuple[int, SplicedText]] = []
        for path, texts in self.imports.items():
            body = self.old.trees[path].body
            index = import_index(body)
            imported = [
                (lines.get(name, 0), SplicedText(path, body, index, text))
                for name, text in texts.items()
            ]
            ordered += sorted(imported, key=itemgetter(0))
        defined = [
            (lines.get(name, 0), put)
            for (_, name), puts in self.definitions.items()
            for put in puts
        ]
        ordered += sorted(defined, key=itemgetter(0))
        return [put for _, put in ordered]


def rewritten(text: str, names: Mapping[str, str], statement: str) -> str:
    """Return the text by the names of the old version.

    Raises CannotCarry where one of them would be taken for another one.
    """
    if lost := captured(ast.parse(text).body[0], names):
        raise CannotCarry(
            f"{statement} uses {lost[0]!r} for something of its own, and so does this version. "
            f"Rename it."
        )
    return renamed(text, names)


def _defining_nodes(version: CodeVersion, path: str, name: str) -> list[ast.stmt]:
    tree = version.trees.get(path)
    return [node for node in tree.body if name in binds(node)] if tree is not None else []


def may_be_copied(node: ast.stmt) -> bool:
    """Whether it is a function, which keeps nothing between its calls, or a constant."""
    if isinstance(node, FunctionNode):
        return not node.decorator_list
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def import_index(body: list[ast.stmt]) -> int:
    """Return the place behind the imports at the head of a file, or behind its docstring."""
    heads = 0
    for index, node in enumerate(body):
        if isinstance(node, ImportNode) or (index == 0 and is_docstring(node)):
            heads = index + 1
        elif isinstance(node, Definition | ast.If):
            break
    return heads


def definition_index(source: list[ast.stmt], node: ast.stmt, body: list[ast.stmt]) -> int:
    """Return where a definition goes.

    It stands beside a neighbour that both files have, and before anything that is run.
    """
    heads = import_index(body)
    places = {other.name: i for i, other in enumerate(body) if isinstance(other, Definition)}
    run = [
        i
        for i, other in enumerate(body)
        if i >= heads and isinstance(other, ast.If | ast.Expr | ast.For)
    ]
    last = min([*run, len(body)])
    first_definition = min([*places.values(), last])
    at = source.index(node)
    above, below = (
        [places[name] for other in part if (name := getattr(other, "name", None)) in places]
        for part in (source[:at], source[at + 1 :])
    )
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return min([first_definition, *below])
    constants = {name for other in body if isinstance(other, ast.Assign) for name in binds(other)}
    needed = constants & set(reads(node))
    assigned = [i + 1 for i, other in enumerate(body) if binds(other) & needed]
    chosen = above[-1] + 1 if above else below[0] if below else first_definition
    return min(max([chosen, *assigned]), max([last, *assigned]))
