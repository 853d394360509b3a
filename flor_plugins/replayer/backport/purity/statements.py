"""Statements of the edit, and functions that they call: do they only compute and log?"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from flor_plugins.replayer.backport.names import defaults, is_own_attribute, parameters
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.purity.calls import (
    CallPurity,
    Impurities,
    PurityContext,
    loader_problems,
    root_name,
)
from flor_plugins.replayer.backport.purity.local_objects import defined, fresh_names
from flor_plugins.replayer.backport.syntax import CodeVersion, Definition, FunctionNode, Scope

_DECORATORS = (
    "staticmethod",
    "classmethod",
    "property",
    "dataclass",
    "dataclasses.",
    "torch.no_grad",
    "torch.inference_mode",
    "functools.",
    "cache",
    "lru_cache",
)
# Around other statements; what they switch they switch back.
_CONTEXTS = (
    "torch.no_grad",
    "torch.inference_mode",
    "torch.enable_grad",
    "torch.autocast",
    "torch.amp.autocast",
    "torch.set_grad_enabled",
    "torch.random.fork_rng",
    "contextlib.",
)


class StatementPurity:
    """Answers for the working tree's version. verdicts: of functions that were followed."""

    def __init__(self, edited: CodeVersion) -> None:
        self.calls = CallPurity(edited, self.why_not)
        self.verdicts: dict[tuple[Scope, bool], str] = {}

    def why_not(self, scope: Scope, in_validation: bool) -> str:
        """Return why a function of the project must not be called; "" if it may.

        One that calls itself is judged by the rest of it.
        """
        key = scope, in_validation
        if key not in self.verdicts:
            self.verdicts[key] = ""
            context = PurityContext(scope.path, scope.names[:-1], in_validation=in_validation)
            assert not isinstance(scope.node, ast.Module)
            for line, what in self._definition(scope.node, context):
                why = f"does more than compute: line {line} of {scope.path}: {what}"
                self.verdicts[key] = why
                break
        return self.verdicts[key]

    def problems(self, node: ast.stmt, context: PurityContext, in_class: bool) -> Impurities:
        """Yield (line, what) of one statement that was put in."""
        is_hook = (
            in_class
            and isinstance(node, FunctionNode)
            and (known_effects.is_hook(node.name) or node.name in known_effects.FRAMEWORK_METHODS)
        )
        if isinstance(node, Definition):
            yield from self._definition(node, context, is_hook)
        else:
            yield from self._statement(node, context, 0, False)

    def _definition(
        self, node: Definition, context: PurityContext, is_hook: bool = False
    ) -> Impurities:
        if not isinstance(node, ast.ClassDef):
            yield from self._function(node, context, is_hook)
            return
        if node.keywords:
            yield node.lineno, f"class {node.name} has a metaclass or arguments of its bases"
        yield from _decorator_problems(node)
        scope = (*context.scope, node.name)
        inner = PurityContext(context.path, scope, in_validation=context.in_validation)
        for statement in node.body:
            if isinstance(statement, FunctionNode):
                yield from self._function(statement, inner, False, is_of_new_class=True)
            else:
                yield from self._statement(statement, inner, 0, True)

    def _function(
        self,
        node: FunctionNode,
        context: PurityContext,
        is_hook: bool,
        *,
        is_of_new_class: bool = False,
    ) -> Impurities:
        yield from _decorator_problems(node)
        for default in defaults(node.args):
            yield from self.calls.problems(default, context)
        names = parameters(node.args)
        fresh = fresh_names(node.body) - names
        if not is_hook:  # what a new hook sets is new, which is looked at with its name
            fresh = {name for name in fresh if not name.startswith("self.")}
        if is_of_new_class:  # its self is of the edit
            attributes = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
            fresh = fresh | {f"self.{attribute.attr}" for attribute in attributes}
        inner = PurityContext(
            context.path,
            (*context.scope, node.name),
            frozenset(fresh),
            frozenset(defined(node.body)) - names,
            context.in_validation or known_effects.is_of_validation(node.name),
            node.name,
        )
        keeps_self = not is_of_new_class and not is_hook
        for statement in node.body:
            yield from self._statement(statement, inner, 0, not is_hook, keeps_self)

    def _statement(
        self,
        node: ast.stmt,
        context: PurityContext,
        loops: int,
        is_helper: bool,
        keeps_self: bool = False,
    ) -> Impurities:
        """Yield what is wrong with a statement and those inside it.

        is_helper: in a function of its own, which may return and raise. keeps_self: it must not
        set attributes.
        """
        if isinstance(node, Definition):
            yield from self._definition(node, context)
            return
        if why := _control(node, loops, is_helper, context.method):
            yield node.lineno, why
        yield from self._targets(node, context, keeps_self)
        if isinstance(node, ast.With | ast.AsyncWith):
            yield from self._with(node, context)
        if isinstance(node, ast.For):
            yield from loader_problems(node.iter)
        inner_loops = loops + isinstance(node, ast.For | ast.While)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from self.calls.problems(child, context, isinstance(node, ast.Expr))
            elif isinstance(child, ast.stmt):
                yield from self._statement(child, context, inner_loops, is_helper, keeps_self)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                for inner in child.body:
                    yield from self._statement(inner, context, loops, is_helper, keeps_self)

    def _with(self, node: ast.With | ast.AsyncWith, context: PurityContext) -> Impurities:
        for item in node.items:
            called = item.context_expr
            if isinstance(called, ast.Call):
                called = called.func
            if not (self.calls.dotted(called, context) or "").startswith(_CONTEXTS):
                what = f"`with {ast.unparse(item)}` may do anything around what stands in it"
                yield node.lineno, what

    def _targets(self, node: ast.stmt, context: PurityContext, keeps_self: bool) -> Impurities:
        """Yield targets that are neither new nor made by the edit itself."""
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for target in (inner for outer in targets if outer is not None for inner in _flat(outer)):
            root, text = root_name(target), ast.unparse(target)
            is_fresh, is_attribute = root in context.fresh, is_own_attribute(target)
            if isinstance(target, ast.Name) or is_attribute:
                if isinstance(node, ast.AugAssign) and not is_fresh:
                    what = f"changes `{text}` in place, which may be an object of the training"
                    yield node.lineno, what
                if is_attribute and keeps_self and not is_fresh:
                    yield node.lineno, f"sets `{text}`; a helper gives its result back"
            elif not is_fresh or ast.unparse(target.value) != root:  # type: ignore[attr-defined]
                yield node.lineno, f"changes `{text}`, which is not of the edit"


def _decorator_problems(node: Definition) -> Impurities:
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        if not text.startswith(_DECORATORS):
            yield decorator.lineno, f"`@{text}` may do anything to what it is put on"


def _flat(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _flat(element)
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
