"""Statements of the edit, and functions that they call: do they only compute and log?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from flor_plugins.replayer.backport.names import parameters
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import (
    CallPurity,
    PurityContext,
    is_loader,
    root_name,
)
from flor_plugins.replayer.backport.purity.local_objects import defined, fresh_names
from flor_plugins.replayer.backport.syntax import DEFINITIONS, FUNCTIONS, Scope

_DECORATORS = ("staticmethod", "classmethod", "property", "dataclass", "dataclasses.", "torch.no_grad",
               "torch.inference_mode", "functools.", "cache", "lru_cache")  # fmt: skip
# Around other statements; what they switch they switch back.
_CONTEXTS = ("torch.no_grad", "torch.inference_mode", "torch.enable_grad", "torch.autocast", "torch.amp.autocast",
             "torch.set_grad_enabled", "torch.random.fork_rng", "contextlib.")  # fmt: skip
Impurities = Iterator[tuple[int, str]]


@dataclass
class StatementPurity:
    """calls: its `follow` becomes this. verdicts: functions that were followed, to why not."""

    calls: CallPurity
    verdicts: dict[tuple[str, tuple[str, ...], bool], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.calls.follow = self.why_not

    def why_not(self, scope: Scope, in_validation: bool) -> str:
        """Why a function of the project must not be called; one that calls itself is judged
        by the rest of it.
        """
        key = (scope.path, scope.names, in_validation)
        if key not in self.verdicts:
            self.verdicts[key] = ""
            ground = PurityContext(scope.path, scope.names[:-1], in_validation=in_validation)
            assert not isinstance(scope.node, ast.Module)
            first = next(self._definition(scope.node, ground), None)
            self.verdicts[key] = (
                f"does more than compute: line {first[0]} of {scope.path}: {first[1]}"
                if first
                else ""
            )
        return self.verdicts[key]

    def problems(self, node: ast.stmt, ground: PurityContext, in_class: bool) -> Impurities:
        """(line, what) of one statement that was put in."""
        is_hook = (
            in_class
            and isinstance(node, FUNCTIONS)
            and (known_effects.is_hook(node.name) or node.name in known_effects.FRAMEWORK_METHODS)
        )
        yield from (
            self._definition(node, ground, is_hook)
            if isinstance(node, DEFINITIONS)
            else self._statement(node, ground, 0, False)
        )

    def _definition(
        self, node: ast.AST, ground: PurityContext, is_hook: bool = False
    ) -> Impurities:
        if isinstance(node, ast.ClassDef):
            yield from self._class(node, ground)
        elif isinstance(node, FUNCTIONS):
            yield from self._function(node, ground, is_hook)

    def _class(self, node: ast.ClassDef, ground: PurityContext) -> Impurities:
        if node.keywords:
            yield node.lineno, f"class {node.name} has a metaclass or arguments of its bases"
        yield from self._decorators(node)
        inner = PurityContext(
            ground.path, (*ground.scope, node.name), in_validation=ground.in_validation
        )
        for one in node.body:
            if isinstance(one, FUNCTIONS):
                yield from self._function(
                    one, inner, False, {name for name in defined([one]) if name[:5] == "self."}
                )
            else:
                yield from self._statement(one, inner, 0, True)

    def _function(
        self,
        node: ast.FunctionDef | ast.AsyncFunctionDef,
        ground: PurityContext,
        is_hook: bool,
        mine: set[str] | None = None,
    ) -> Impurities:
        yield from self._decorators(node)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            yield from self.calls.problems(default, ground)
        names = parameters(node.args)
        fresh = fresh_names(node.body) - names
        if not is_hook:  # what a new hook sets is new, which is looked at with its name
            fresh = frozenset(name for name in fresh if not name.startswith("self."))
        if mine is not None:  # a method of a new class: its self is of the edit
            fresh |= {
                f"self.{one.attr}" for one in ast.walk(node) if isinstance(one, ast.Attribute)
            }
        own = frozenset(defined(node.body)) - names
        scope = (*ground.scope, node.name)
        is_validating = ground.in_validation or known_effects.is_of_validation(node.name)
        inner = PurityContext(ground.path, scope, frozenset(fresh), own, is_validating, node.name)
        for one in node.body:
            yield from self._statement(one, inner, 0, not is_hook, mine is None and not is_hook)

    def _decorators(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    ) -> Impurities:
        for one in node.decorator_list:
            text = ast.unparse(one)
            if not text.startswith(_DECORATORS):
                yield one.lineno, f"`@{text}` may do anything to what it is put on"

    def _statement(
        self,
        node: ast.stmt,
        ground: PurityContext,
        loops: int,
        is_helper: bool,
        keeps_self: bool = False,
    ) -> Impurities:
        """is_helper: in a function of its own, which may return and raise. keeps_self: it
        must not set attributes.
        """
        if isinstance(node, DEFINITIONS):
            yield from self._definition(node, ground)
            return
        if why := _control(node, loops, is_helper, ground.method):
            yield node.lineno, why
        yield from self._targets(node, ground, keeps_self)
        if isinstance(node, ast.With | ast.AsyncWith):
            yield from self._contexts(node, ground)
        if isinstance(node, ast.For) and is_loader(node.iter):
            yield node.lineno, f"`{ast.unparse(node.iter)}` is a loader: going through it draws"
        inner_loops = loops + isinstance(node, ast.For | ast.While)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from self.calls.problems(child, ground, isinstance(node, ast.Expr))
            elif isinstance(child, ast.stmt):
                yield from self._statement(child, ground, inner_loops, is_helper, keeps_self)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                for one in child.body:
                    yield from self._statement(one, ground, loops, is_helper, keeps_self)

    def _contexts(self, node: ast.With | ast.AsyncWith, ground: PurityContext) -> Impurities:
        for item in node.items:
            called = (
                item.context_expr.func
                if isinstance(item.context_expr, ast.Call)
                else item.context_expr
            )
            dotted = self.calls.dotted(called, ground) or ""
            if not dotted.startswith(_CONTEXTS):
                yield (
                    node.lineno,
                    f"`with {ast.unparse(item)}` may do anything around what stands in it",
                )

    def _targets(self, node: ast.stmt, ground: PurityContext, keeps_self: bool) -> Impurities:
        """What it writes to must be new, or made by the edit itself."""
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for target in (one for given in targets if given is not None for one in _flat(given)):
            root, text = root_name(target), ast.unparse(target)
            is_own_attribute = isinstance(target, ast.Attribute) and root == text
            if isinstance(target, ast.Name) or is_own_attribute:
                if isinstance(node, ast.AugAssign) and root not in ground.fresh:
                    yield (
                        node.lineno,
                        f"changes `{text}` in place, which may be an object of the training",
                    )
                if is_own_attribute and keeps_self and root not in ground.fresh:
                    yield node.lineno, f"sets `{text}`; a helper gives its result back"
            elif root not in ground.fresh or ast.unparse(target.value) != root:  # type: ignore[attr-defined]
                yield node.lineno, f"changes `{text}`, which is not of the edit"


def _flat(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for one in target.elts:
            yield from _flat(one)
    else:
        yield target.value if isinstance(target, ast.Starred) else target


def _control(node: ast.stmt, loops: int, is_helper: bool, method: str) -> str:
    match node:
        case ast.Delete() | ast.Global() | ast.Nonlocal():
            return f"`{ast.unparse(node)}` reaches names of the training"
        case ast.Break() | ast.Continue() if not loops:
            return f"`{ast.unparse(node)}` leaves a loop of the training"
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            return "imports any number of names"
        case ast.ImportFrom(module="__future__"):
            return "changes what all of the file means"
        case ast.AsyncFor() | ast.AsyncWith():
            return "gives up control in the middle of the training"
        case ast.Return(value=None) if method:
            return ""
        case ast.Return(value=ast.expr() as value) if method and not is_helper:
            through_super = ast.unparse(value).startswith(f"super().{method}(")
            is_result = isinstance(value, ast.Name) or through_super
            return "" if is_result else "gives the framework a value, which may change what it does"
        case ast.Return() | ast.Raise() | ast.Assert() if not is_helper:
            return f"`{ast.unparse(node)}` may end the function early"
    return ""
