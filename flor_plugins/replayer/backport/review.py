"""What an edit may hold: logging statements, and what only they need.

Anything else may change the training.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Literal

from flor_plugins.replayer.backport.insertion import Insertion
from flor_plugins.replayer.backport.logged_names import logged, logging_calls, names_in
from flor_plugins.replayer.backport.names import family
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import Impurities, PurityContext
from flor_plugins.replayer.backport.purity.local_objects import defined, fresh_names
from flor_plugins.replayer.backport.purity.statements import StatementPurity
from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    Definition,
    FunctionNode,
    Nesting,
    Scope,
    bound_name,
    first_line,
)
from flor_plugins.replayer.backport.tree_diff import AddedStatement, ForbiddenChange


def review(
    base: CodeVersion, edited: CodeVersion, added: Sequence[AddedStatement]
) -> list[ForbiddenChange]:
    """Return what of the added statements may change the training, each with its line."""
    edit_review = _EditReview(base, edited, added)
    return [problem for statement in added for problem in edit_review.problems(statement)]


def moment(insertion: Insertion, edited: CodeVersion) -> Literal["train", "validate"]:
    """Whether the statement is only reached while validating, or the training must be run again.

    edited: the working tree. Functions that are not called by a framework are followed to their
    callers by name.
    """
    node = insertion.node
    inside = (node.name,) if isinstance(node, FunctionNode) else ()
    return "validate" if _is_of_validation((*insertion.scope, *inside), edited) else "train"


def _is_of_validation(
    scope: Nesting, edited: CodeVersion, seen: frozenset[str] = frozenset()
) -> bool:
    if not scope:
        return False
    name = scope[-1]
    if known_effects.is_of_validation(name):
        return True
    if name in seen or known_effects.is_hook(name) or name in known_effects.FRAMEWORK_METHODS:
        return False
    callers = [
        caller
        for caller in edited.scopes
        if (caller.names != scope or not caller.is_function) and _calls(caller, name)
    ]
    return bool(callers) and all(
        caller.is_function and _is_of_validation(caller.names, edited, seen | {name})
        for caller in callers
    )


def _calls(scope: Scope, name: str) -> bool:
    """Whether it names the function in its own body.

    Functions inside it speak for themselves.
    """
    nodes: list[ast.AST] = [*scope.node.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Definition):
            continue
        if name in (getattr(node, "id", None), getattr(node, "attr", None)):
            return True
        nodes += ast.iter_child_nodes(node)
    return False


class _EditReview:
    def __init__(
        self, base: CodeVersion, edited: CodeVersion, added: Sequence[AddedStatement]
    ) -> None:
        self.base, self.edited, self.added = base, edited, added
        self.purity = StatementPurity(edited)
        trees = base.trees.values()
        self.logged = {name for name in names_in(trees) if "*" not in name}
        self.watched: set[object] = set()
        # Attributes are reached from anywhere, by name or by a string.
        self.attributes: set[object] = set()
        for node in (node for tree in trees for node in ast.walk(tree)):
            match node:
                case ast.Attribute(attr=name):
                    self.attributes.add(name)
                case ast.Call(
                    func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                    args=[_, ast.Constant(value=name), *_],
                ):
                    self.attributes.add(name)
                case ast.keyword(
                    arg="monitor" | "metric_for_best_model", value=ast.Constant(value=name)
                ):
                    self.watched.add(name)

    def problems(self, added: AddedStatement) -> Iterator[ForbiddenChange]:
        problems = {
            *self._names(added),
            *self._metrics(added.node),
            *self.purity.problems(added.node, self._context(added), added.is_in_class),
        }
        for line, what in sorted(problems):
            yield ForbiddenChange(added.point.path, line, f"{what}, in {added}")

    def _context(self, added: AddedStatement) -> PurityContext:
        path, scope = added.point.path, added.point.scope
        siblings = [
            other.node
            for other in self.added
            if (other.point.path, other.point.scope) == (path, scope)
        ]
        return PurityContext(
            path,
            scope,
            fresh_names(siblings),
            frozenset(defined(siblings)),
            _is_of_validation(scope, self.edited),
        )

    def _names(self, added: AddedStatement) -> Impurities:
        """Yield what it defines that is not new."""
        node, in_class = added.node, added.is_in_class
        scope = self.base.scope(added.point.path, added.point.scope)
        if scope is None:  # a new file
            return
        # A class's names are read as attributes, a function's and a module's by themselves.
        used = _class_names(self.base, scope) if in_class else _names_in(scope.node)
        for name in sorted(defined([node])):
            plain = name.removeprefix("self.")
            is_attribute = name != plain or in_class
            if not is_attribute and plain in used:
                yield first_line(node), f"gives {name!r} another meaning, which the training reads"
            is_method = name == plain and isinstance(node, FunctionNode)
            is_set = is_attribute and not is_method and not isinstance(node, ast.ClassDef)
            if is_set and self._is_known(plain):
                what = f"sets {name!r}, which the training or its framework reads"
                yield first_line(node), what
        if in_class and isinstance(node, FunctionNode):
            name = node.name
            is_special = name.startswith("__") and name.endswith("__")
            is_known = name in used or self._is_known(name)
            if is_special or (is_known and not passes_through(node)):
                what = (
                    f"overrides {name!r} and does not only pass on what `super().{name}(...)` gives"
                )
                yield first_line(node), what

    def _is_known(self, name: str) -> bool:
        """Whether the training or its framework reads that attribute."""
        of_framework = known_effects.FRAMEWORK_SETTINGS | known_effects.FRAMEWORK_METHODS
        return name in self.attributes or name in of_framework

    def _metrics(self, node: ast.stmt) -> Impurities:
        for call in logged(node)[1]:
            what = (
                'logs under a name that can\'t be told; begin it with a literal, as f"grad/{name}"'
            )
            yield call.lineno, what
        for call in logging_calls(node):
            for name in logged(call)[0]:
                if name in self.logged:
                    why = "which the training logs already"
                elif name in self.watched:
                    why = "which a callback of the training watches"
                else:
                    continue
                yield call.lineno, f"logs {name!r}, {why}; give it another name"


def passes_through(node: FunctionNode) -> bool:
    """Whether a method gives exactly what its super method gives for exactly its own arguments."""
    calls, returns = [], []
    for part in ast.walk(node):
        if isinstance(part, ast.Return):
            returns.append(part)
        elif isinstance(part, ast.Call) and ast.unparse(part.func) == f"super().{node.name}":
            calls.append(part)
    if len(calls) != 1 or returns != node.body[-1:] or not _has_own_arguments(calls[0], node):
        return False
    value = returns[0].value
    if value is calls[0]:
        return True
    targets = [
        [ast.unparse(target) for target in statement.targets]
        for statement in node.body
        if isinstance(statement, ast.Assign) and statement.value is calls[0]
    ]
    if not isinstance(value, ast.Name) or _assigned(node).count(value.id) != 1:
        return False
    return targets == [[value.id]]


def _assigned(node: ast.AST) -> list[str]:
    return [
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]


def _has_own_arguments(call: ast.Call, node: FunctionNode) -> bool:
    args = node.args
    plain = [arg.arg for arg in (*args.posonlyargs, *args.args)][1:]
    names = {*plain, *(arg.arg for arg in args.kwonlyargs)}
    given = [ast.unparse(arg) for arg in call.args]
    starred = [f"*{args.vararg.arg}"] if args.vararg else []
    passed = plain[: len(given) - len(starred)]
    by_name: dict[str | None, str] = {name: name for name in names - set(passed)}
    if args.kwarg:
        by_name[None] = args.kwarg.arg
    return (
        names.isdisjoint(_assigned(node))
        and given == [*passed, *starred]
        and by_name == {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    )


def _names_in(node: ast.AST) -> set[str]:
    names: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Name(id=name) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name):
                names.add(name)
            case ast.alias():
                names.add(bound_name(part))
            case ast.Global(names=outside) | ast.Nonlocal(names=outside):
                names |= set(outside)
    return names


def _class_names(version: CodeVersion, scope: Scope) -> set[str]:
    """Return what a class and its relatives in the project define."""
    return {name for relative in family(version, scope) for name in defined(relative.node.body)}
