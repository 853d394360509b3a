"""Whether an expression of the edit may be computed beside a training.

What it calls is followed into the project.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flor_plugins.replayer.backport.imports import NamedObject, module_path, resolve
from flor_plugins.replayer.backport.names import family, is_own_attribute
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    ImportNode,
    Nesting,
    Scope,
    bound_name,
)

Impurities = Iterator[tuple[int, str]]  # line, and what is wrong there
LOGS = frozenset(("log", "log_dict"))
LOGGERS = frozenset(("self", "pl_module", "model", "module", "trainer", "self.trainer"))
OURS = frozenset(("flor_plugins.log", "flor_plugins.hooks.log.log"))
_MODULE_CALL = (
    "may run a module, where dropout draws and batch norm counts; use values that "
    "are there, or a metric hook"
)


@dataclass(frozen=True)
class PurityContext:
    """Where an expression stands.

    fresh: names for objects that the edit itself made and may change. own: names that the edit
    defines. in_validation: nothing there draws or counts. method: the new method around it.
    """

    path: str
    scope: Nesting
    fresh: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    in_validation: bool = False
    method: str = ""


@dataclass(frozen=True)
class CallPurity:
    """Answers for one version, the working tree's.

    follow: why a function of the project must not be called, "" if it may; in validation or not.
    """

    edited: CodeVersion
    follow: Callable[[Scope, bool], str]

    def problems(
        self, node: ast.AST, context: PurityContext, is_statement: bool = False
    ) -> Impurities:
        """Yield (line, what) for each call in an expression that must not be made there."""
        for part in ast.walk(node):
            match part:
                case ast.Call():
                    is_used = not (is_statement and part is node)
                    if is_used and _gives_copy(part):
                        continue  # of a tensor: its value is used
                    if why := self.why_not(part, context):
                        yield part.lineno, f"`{ast.unparse(part.func)}(...)` {why}"
                case ast.comprehension():
                    yield from loader_problems(part.iter)
                case ast.Await() | ast.Yield() | ast.YieldFrom():
                    what = f"`{ast.unparse(part)}` gives up control in the middle of the training"
                    yield part.lineno, what

    def why_not(self, call: ast.Call, context: PurityContext) -> str:
        """Return why a call must not be made; "" if it may."""
        if _keyword(call, "out"):
            return "writes into what is given as `out=`"
        generator = _keyword(call, "generator")
        if generator and (root_name(generator) in context.fresh or _is_generator(generator)):
            return ""
        dotted = self.dotted(call.func, context)
        if dotted is not None:
            return self._outside(dotted, call)
        called = self._definition(call.func, context)
        if called is not None:
            return self.follow(called, context.in_validation)
        match call.func:
            case ast.Name(id=name):
                return self._named(name, context)
            case ast.Attribute():
                return self._method(call.func, context)
            case ast.Lambda():
                return ""
        return "" if context.in_validation else _MODULE_CALL

    def dotted(self, node: ast.AST, context: PurityContext) -> str | None:
        """Return what a name of another package means in full, as "torch.nn.functional.relu".

        None for anything else.
        """
        attributes = ""
        while isinstance(node, ast.Attribute):
            attributes = f".{node.attr}{attributes}"
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        meant = self._resolve(node.id, context)
        if meant is None or meant.path or not meant.name:
            return None
        return meant.name + attributes

    def _resolve(self, name: str, context: PurityContext) -> NamedObject | None:
        for function in self._functions_around(context):
            for node in ast.walk(function.node):
                if isinstance(node, ImportNode):
                    imported = self._imported(node, name, context.path)
                    if imported is not None:
                        return imported
        return resolve(self.edited, context.path, name)

    def _imported(self, node: ImportNode, name: str, path: str) -> NamedObject | None:
        for alias in node.names:
            if name != bound_name(alias):
                continue
            if isinstance(node, ast.Import):
                return NamedObject("", alias.name if alias.asname else name)
            if file := module_path(self.edited, path, node.module or "", node.level):
                return resolve(self.edited, file, alias.name)
            return NamedObject("", f"{node.module}.{alias.name}")
        return None

    def _functions_around(self, context: PurityContext) -> Iterator[Scope]:
        here = self.edited.scope(context.path, context.scope)
        for scope in self.edited.enclosing(here) if here is not None else ():
            if scope.is_function:
                yield scope

    def _definition(self, func: ast.expr, context: PurityContext) -> Scope | None:
        """Return the function or class of the project that is meant."""
        match func:
            case ast.Name(id=name):
                for function in self._functions_around(context):
                    inner = self.edited.scope(context.path, (*function.names, name))
                    if inner is not None:
                        return inner
                names: Nesting = ()
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=attribute):
                return self._own_method(attribute, context)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                names = (attribute,)
            case _:
                return None
        meant = self._resolve(name, context)
        if meant is None or not meant.path:
            return None
        full = (meant.name, *names) if meant.name else names
        return self.edited.scope(meant.path, full) if full else None

    def _own_method(self, name: str, context: PurityContext) -> Scope | None:
        here = self.edited.scope(context.path, context.scope)
        owner = self.edited.class_of(here)
        for relative in family(self.edited, owner) if owner is not None else ():
            method = self.edited.scope(relative.path, (*relative.names, name))
            if method is not None:
                return method
        return None

    def _outside(self, dotted: str, call: ast.Call) -> str:
        if dotted in OURS:
            return ""
        if dotted == "torch.autograd.grad":
            if _keyword(call, "retain_graph") or _keyword(call, "create_graph"):
                return ""
            return "frees the graph that the training goes back through; give it retain_graph=True"
        training = _keyword(call, "training")
        is_off = training is not None and ast.unparse(training) == "False"
        if is_off and dotted.rpartition(".")[2].startswith("dropout"):
            return ""
        return known_effects.why_not_function(dotted)

    def _named(self, name: str, context: PurityContext) -> str:
        if name in context.own:
            return ""
        if hasattr(builtins, name):
            is_known = name in known_effects.BUILTINS or name.endswith(known_effects.ERRORS)
            return "" if is_known else "does more than compute a value"
        return "" if context.in_validation else _MODULE_CALL

    def _method(self, func: ast.Attribute, context: PurityContext) -> str:
        receiver, name = ast.unparse(func.value), func.attr
        if receiver == "super()":
            is_same = name == context.method
            return "" if is_same else "runs more of the framework than a logging statement may"
        if name in LOGS:
            if receiver in LOGGERS:
                return ""
            return "is not a way of logging that is known; use flor.log(name, value)"
        is_made_here = receiver in context.fresh or _is_generator(func.value)
        if not is_made_here:
            if why := known_effects.why_not_method(name):
                return why
            if name in known_effects.DRAWS:
                return known_effects.DRAWS_FROM_TRAINING
        if name in known_effects.MOVES and receiver in known_effects.MODULES:
            return "changes the module in place"
        is_getter = name in known_effects.FRAMEWORK_GETTERS or name.startswith(
            ("get_", "is_", "has_")
        )
        return "" if receiver != "self" or is_getter or context.in_validation else _MODULE_CALL


def root_name(node: ast.AST) -> str:
    """Return the variable that an expression starts from.

    "self.x" for an attribute of self; "" for anything else.
    """
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        if is_own_attribute(node):
            return f"self.{node.attr}"
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def loader_problems(node: ast.expr) -> Impurities:
    """Yield a problem if it looks like a loader: starting one draws its workers' seed."""
    for part in ast.walk(node):
        name = getattr(part, "id", getattr(part, "attr", ""))
        if "loader" in name.lower():
            yield node.lineno, f"`{ast.unparse(node)}` is a loader: going through it draws"
            return


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _is_generator(node: ast.AST) -> bool:
    text = ast.unparse(node)
    return "Generator(" in text or "default_rng(" in text or text.startswith("random.Random(")


def _gives_copy(call: ast.Call) -> bool:
    is_method = (
        isinstance(call.func, ast.Attribute) and call.func.attr in known_effects.COPIES_OF_TENSORS
    )
    return is_method and _keyword(call, "out") is None
