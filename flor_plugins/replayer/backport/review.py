"""What an edit may hold: logging statements, and what only they need.

Anything else may change the training.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from flor_plugins.replayer.backport.logged_names import logged, logging_calls
from flor_plugins.replayer.backport.names import family
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import CallPurity, PurityContext
from flor_plugins.replayer.backport.purity.local_objects import defined, fresh_names
from flor_plugins.replayer.backport.purity.statements import StatementPurity
from flor_plugins.replayer.backport.syntax import (
    DEFINITIONS,
    FUNCTIONS,
    CodeVersion,
    Scope,
    first_line,
)
from flor_plugins.replayer.backport.tree_diff import AddedStatement, ForbiddenChange

if TYPE_CHECKING:
    from flor_plugins.replayer.backport.edit import Insertion


def review(
    base: CodeVersion, now: CodeVersion, added: Sequence[AddedStatement]
) -> list[ForbiddenChange]:
    """What of the statements that were put in may change the training, each with its line."""
    reviewing = _EditReview(base, now, tuple(added))
    return [problem for one in added for problem in reviewing.of(one)]


def moment(insertion: Insertion, now: CodeVersion) -> Literal["train", "validate"]:
    """Is the statement only reached while validating, or must the training be run again for it?

    now: the working tree. Functions that are not called by a framework are followed to their
    callers by name."""
    node = ast.parse(insertion.text).body[0]
    inside = (node.name,) if isinstance(node, FUNCTIONS) else ()
    return "validate" if _is_of_validation((*insertion.scope, *inside), now) else "train"


def logged_by(one: AddedStatement, now: CodeVersion) -> tuple[str, ...]:
    """The metrics that a statement logs."""
    return logged(one.node)[0]


def _is_of_validation(
    scope: tuple[str, ...], now: CodeVersion, seen: frozenset[str] = frozenset()
) -> bool:
    if not scope:
        return False
    name = scope[-1]
    if known_effects.is_of_validation(name):
        return True
    if name in seen or known_effects.is_hook(name) or name in known_effects.FRAMEWORK_METHODS:
        return False
    callers = [
        one for one in now.scopes if one.is_function and one.names != scope and _calls(one, name)
    ]
    at_module = any(_calls(one, name) for one in now.scopes if not one.is_function)
    return (
        bool(callers)
        and not at_module
        and all(_is_of_validation(one.names, now, seen | {name}) for one in callers)
    )


def _calls(scope: Scope, name: str) -> bool:
    """Does it name the function in its own body? Functions inside it speak for themselves."""
    coming: list[ast.AST] = list(scope.node.body)
    while coming:
        one = coming.pop()
        if isinstance(one, DEFINITIONS):
            continue
        if (
            isinstance(one, ast.Name | ast.Attribute)
            and (one.id if isinstance(one, ast.Name) else one.attr) == name
        ):
            return True
        coming += ast.iter_child_nodes(one)
    return False


@dataclass
class _EditReview:
    base: CodeVersion
    now: CodeVersion
    added: tuple[AddedStatement, ...]
    bodies: StatementPurity = field(init=False)
    read: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = StatementPurity(CallPurity(self.now))
        every = [node for tree in self.base.trees.values() for node in ast.walk(tree)]
        # Attributes are reached from anywhere, by name or by a string.
        self.read = {one.attr for one in every if isinstance(one, ast.Attribute)}
        self.read |= {one.args[1].value for one in every if _is_getattr(one)}  # type: ignore[attr-defined]
        self.logged = {
            name for tree in self.base.trees.values() for name in logged(tree)[0] if "*" not in name
        }
        self.watched = {
            one.value.value for one in every
            if isinstance(one, ast.keyword) and one.arg in ("monitor", "metric_for_best_model")
            and isinstance(one.value, ast.Constant)
        }  # fmt: skip

    def of(self, one: AddedStatement) -> Iterator[ForbiddenChange]:
        ground = self._ground(one)
        problems = [
            *self._names(one),
            *self._metrics(one),
            *self.bodies.problems(one.node, ground, one.is_in_class),
        ]
        for line, what in sorted(set(problems)):
            yield ForbiddenChange(one.path, line, f"{what}, in {one}")

    def _ground(self, one: AddedStatement) -> PurityContext:
        siblings = [
            other.node for other in self.added if (other.path, other.scope) == (one.path, one.scope)
        ]
        return PurityContext(
            one.path, one.scope, fresh_names(siblings), frozenset(defined(siblings)),
            _is_of_validation(one.scope, self.now),
        )  # fmt: skip

    def _names(self, one: AddedStatement) -> Iterator[tuple[int, str]]:
        """What it defines must be new."""
        line, scope = first_line(one.node), self.base.scope(one.path, one.scope)
        if scope is None:  # a new file
            return
        # A class's names are read as attributes, a function's and a module's by themselves.
        around = self.base.outer(scope) if one.is_in_class else None
        known = self.read | known_effects.FRAMEWORK_SETTINGS | known_effects.FRAMEWORK_METHODS
        used = _names_in(scope.node) if around is None else _class_names(self.base, scope)
        for name in sorted(defined([one.node])):
            plain = name.removeprefix("self.")
            is_attribute = name != plain or one.is_in_class
            if not is_attribute and plain in used:
                yield line, f"gives {name!r} another meaning, which the training reads"
            is_set = name != plain or not isinstance(one.node, DEFINITIONS)
            if (
                is_attribute
                and is_set
                and not isinstance(one.node, ast.ClassDef)
                and plain in known
            ):
                yield line, f"sets {name!r}, which the training or its framework reads"
        if one.is_in_class and isinstance(one.node, FUNCTIONS):
            yield from self._method(one.node, used)

    def _method(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, used: set[str]
    ) -> Iterator[tuple[int, str]]:
        name = node.name
        is_private = name.startswith("__") and name.endswith("__")
        known = (
            name in known_effects.FRAMEWORK_METHODS | known_effects.FRAMEWORK_SETTINGS
            or name in used
            or name in self.read
        )
        if is_private or (known and not passes_through(node)):
            yield (
                first_line(node),
                f"overrides {name!r} and does not only pass on what `super().{name}(...)` gives",
            )

    def _metrics(self, one: AddedStatement) -> Iterator[tuple[int, str]]:
        _, unclear = logged(one.node)
        for call in unclear:
            yield (
                call.lineno,
                'logs under a name that can\'t be told; begin it with a literal, as f"grad/{name}"',
            )
        for call in logging_calls(one.node):
            for name in logged(call)[0]:
                if name in self.logged:
                    yield (
                        call.lineno,
                        f"logs {name!r}, which the training logs already; give it another name",
                    )
                elif name in self.watched:
                    yield (
                        call.lineno,
                        f"logs {name!r}, which a callback of the training watches; give it "
                        f"another name",
                    )


def passes_through(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Does a method give exactly what its super method gives for exactly its own arguments?"""
    calls = [
        one
        for one in ast.walk(node)
        if isinstance(one, ast.Call) and _is_super(one.func, node.name)
    ]
    returns = [one for one in ast.walk(node) if isinstance(one, ast.Return)]
    last = node.body[-1]
    if (
        len(calls) != 1
        or len(returns) != 1
        or returns[0] is not last
        or not _has_own_arguments(calls[0], node)
    ):
        return False
    first = [one for one in node.body if any(inner is calls[0] for inner in ast.walk(one))]
    if first == [last]:
        return isinstance(last, ast.Return) and last.value is calls[0]
    result = first[0] if first else None
    if not (
        isinstance(result, ast.Assign) and result.value is calls[0] and isinstance(last, ast.Return)
    ):
        return False
    targets = [
        one
        for one in ast.walk(node)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    ]
    names = [one.id for one in targets]
    own = isinstance(last.value, ast.Name) and names.count(last.value.id) == 1
    return own and [ast.unparse(one) for one in result.targets] == [ast.unparse(last.value)]  # type: ignore[arg-type]


def _is_super(func: ast.expr, name: str) -> bool:
    return ast.unparse(func) == f"super().{name}"


def _has_own_arguments(call: ast.Call, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    args = node.args
    plain = [one.arg for one in (*args.posonlyargs, *args.args)][1:]
    names = {*plain, *(one.arg for one in args.kwonlyargs)}
    if any(
        isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store) and one.id in names
        for one in ast.walk(node)
    ):
        return False
    given = [ast.unparse(one) for one in call.args]
    starred = [f"*{args.vararg.arg}"] if args.vararg else []
    keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
    if (args.kwarg is not None) != (None in keywords) or (
        args.kwarg and keywords.pop(None) != args.kwarg.arg
    ):
        return False
    positional = [one for one in given if not one.startswith("*")]
    if [one for one in given if one.startswith("*")] != starred or positional != plain[
        : len(positional)
    ]:
        return False
    rest = names - set(positional)
    return set(keywords) == rest and all(key == value for key, value in keywords.items())


def _names_in(node: ast.AST) -> set[str]:
    found: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            found.add(one.id)
        elif isinstance(one, ast.arg):
            found.add(one.arg)
        elif isinstance(one, DEFINITIONS):
            found.add(one.name)
        elif isinstance(one, ast.alias):
            found.add((one.asname or one.name).partition(".")[0])
        elif isinstance(one, ast.Global | ast.Nonlocal):
            found |= set(one.names)
    return found


def _class_names(version: CodeVersion, scope: Scope) -> set[str]:
    """What a class and its relatives in the project define."""
    found: set[str] = set()
    for one in family(version, scope):
        found |= defined(one.node.body)
    return found


def _is_getattr(one: ast.AST) -> bool:
    if not (
        isinstance(one, ast.Call) and len(one.args) > 1 and isinstance(one.args[1], ast.Constant)
    ):
        return False
    return isinstance(one.func, ast.Name) and one.func.id in ("getattr", "hasattr", "setattr")
