"""One statement that an edit puts in, and where in the edited file it stands."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Literal

from flor_plugins.replayer.backport.syntax import Nesting

InsertionKind = Literal["log", "import", "assignment", "helper", "method", "class"]


@dataclass(frozen=True, slots=True)
class InsertionPoint:
    """Where a statement stands that only the edited version has.

    path: file, "/"-separated, beneath the top of the repository, as in the working tree.
    scope: names of the enclosing classes and functions, outermost first; () for the module.
    block: headers of the compound statements around it inside the scope, outermost first.
    before, after: the statements around it in its block that the base has, as `ast.unparse` writes
    them; of before the nearest comes last, of after first.
    """

    path: str
    scope: Nesting = ()
    block: Nesting = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Insertion:
    """One statement that the edit puts in.

    text: its source, dedented, without trailing newline. line: its first line in the edited file.
    metrics: names that it logs; with "*" where a part is known only when it runs.
    """

    point: InsertionPoint
    kind: InsertionKind
    text: str
    line: int
    metrics: tuple[str, ...]

    @property
    def path(self) -> str:
        """The edited file."""
        return self.point.path

    @property
    def scope(self) -> Nesting:
        """The names of the classes and functions around it."""
        return self.point.scope

    @property
    def node(self) -> ast.stmt:
        """The statement as a tree of its own."""
        return ast.parse(self.text).body[0]
