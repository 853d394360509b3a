"""Does an edit keep anything from one step to the next? Then what it logs depends on all
steps before.
"""

from __future__ import annotations

import ast

from flor_plugins.replayer.backport.edit import Edit, Insertion
from flor_plugins.replayer.backport.syntax import CodeVersion


def keeps_state(edit: Edit) -> bool:
    """Attributes of objects, and objects that live as long as a module or class. Rather once
    too often.

    No checkpoint of an old version holds them: its values are those of a training only from the
    beginning on."""
    edited = CodeVersion(edit.edited)
    return any(_keeps(one, edited) for one in edit.insertions)


def _keeps(one: Insertion, edited: CodeVersion) -> bool:
    if any(name.startswith("self.") for name in one.binds):
        return True
    scope = edited.scope(one.path, one.scope)
    lives_on = scope is not None and not scope.is_function
    return lives_on and one.kind == "assignment" and _makes_object(ast.parse(one.text))


def _makes_object(tree: ast.AST) -> bool:
    """Constants, and displays of them, change nowhere: an edit that changes what it has not
    just made is refused.
    """
    return any(isinstance(one, ast.Call) for one in ast.walk(tree))
