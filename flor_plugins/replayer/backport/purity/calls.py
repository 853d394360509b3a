"""May an expression of the edit be computed beside a training? What it calls is followed
into the project.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flor_plugins.replayer.backport.imports import NamedObject, module_path, thing
from flor_plugins.replayer.backport.names import family
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.syntax import FUNCTIONS, CodeVersion, Scope

LOGS = frozenset(("log", "log_dict"))
OURS = frozenset(("flor_plugins.log", "flor_plugins.hooks.log.log"))
_MODULE_CALL = (
    "may run a module, where dropout draws and batch norm counts; use values that "
    "are there, or a metric hook"
)


@dataclass(frozen=True)
class PurityContext:
    """Where an expression stands. fresh: names for objects that the edit itself made and may
    change.

    own: names that the edit defines. in_validation: nothing there draws or counts. method: the
    new method around it."""

    path: str
    scope: tuple[str, ...]
    fresh: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    in_validation: bool = False
    method: str = ""


@dataclass
class CallPurity:
    """Answers for one version, the working tree's.

    visited: functions that are being followed, or were.
    """

    now: CodeVersion
    follow: Callable[[Scope, bool], str] | None = (
        None  # set by the review: (function, in_validation) -> why not
    )
    visited: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def problems(
        self, node: ast.AST, ground: PurityContext, is_statement: bool = False
    ) -> Iterator[tuple[int, str]]:
        """(line, what) for each call in an expression that must not be made there."""
        for one in ast.walk(node):
            if (
                isinstance(one, ast.Call)
                and _gives_copy(one)
                and not (is_statement and one is node)
            ):
                continue  # of a tensor: its value is used
            if isinstance(one, ast.Call) and (why := self.why_not(one, ground)):
                yield one.lineno, f"`{ast.unparse(one.func)}(...)` {why}"
            elif isinstance(one, ast.comprehension) and is_loader(one.iter):
                yield (
                    one.iter.lineno,
                    f"`{ast.unparse(one.iter)}` is a loader: going through it draws",
                )
            elif isinstance(one, ast.Await | ast.Yield | ast.YieldFrom):
                yield (
                    one.lineno,
                    f"`{ast.unparse(one)}` gives up control in the middle of the training",
                )

    def why_not(self, call: ast.Call, ground: PurityContext) -> str:
        if any(one.arg == "out" for one in call.keywords):
            return "writes into what is given as `out=`"
        if is_drawn_from_own(call, ground):
            return ""
        dotted = self.dotted(call.func, ground)
        if dotted is not None:
            return self._outside(dotted, call)
        found = self._definition(call.func, ground)
        if found is not None:
            return self._followed(found, ground)
        match call.func:
            case ast.Name(id=name):
                return self._named(name, ground)
            case ast.Attribute():
                return self._method(call, call.func, ground)
            case ast.Lambda():
                return ""
        return "" if ground.in_validation else _MODULE_CALL

    def dotted(self, node: ast.AST, ground: PurityContext) -> str | None:
        """What a name of another package means in full, as "torch.nn.functional.relu"; None
        for anything else.
        """
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        of = self._thing(node.id, ground)
        if of is None or of.path or not of.name:
            return None
        return ".".join([of.name, *reversed(parts)])

    def _thing(self, name: str, ground: PurityContext) -> NamedObject | None:
        for one in self._around(ground):
            for node in ast.walk(one.node):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    found = self._imported(node, name, ground.path)
                    if found is not None:
                        return found
        return thing(self.now, ground.path, name)

    def _imported(
        self, node: ast.Import | ast.ImportFrom, name: str, path: str
    ) -> NamedObject | None:
        for alias in node.names:
            if name != (alias.asname or alias.name.partition(".")[0]):
                continue
            if isinstance(node, ast.ImportFrom):
                file = module_path(self.now, path, node.module or "", node.level)
                return (
                    thing(self.now, file, alias.name)
                    if file
                    else NamedObject("", f"{node.module}.{alias.name}")
                )
            return NamedObject("", alias.name if alias.asname else name)
        return None

    def _around(self, ground: PurityContext) -> Iterator[Scope]:
        for end in range(len(ground.scope), 0, -1):
            found = self.now.scope(ground.path, ground.scope[:end])
            if found is not None and found.is_function:
                yield found

    def _definition(self, func: ast.expr, ground: PurityContext) -> Scope | None:
        """The function or class of the project that is meant."""
        if isinstance(func, ast.Name):
            for end in range(len(ground.scope), 0, -1):
                inner = self.now.scope(ground.path, (*ground.scope[:end], func.id))
                if inner is not None and not _is_class(self.now, ground.path, ground.scope[:end]):
                    return inner
            of = self._thing(func.id, ground)
            return (
                self.now.scope(of.path, (of.name,))
                if of is not None and of.path and of.name
                else None
            )
        if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name):
            return None
        if func.value.id in ("self", "cls"):
            return self._own_method(func.attr, ground)
        of = self._thing(func.value.id, ground)
        if of is None or not of.path:
            return None
        return self.now.scope(of.path, (of.name, func.attr) if of.name else (func.attr,))

    def _own_method(self, name: str, ground: PurityContext) -> Scope | None:
        here = self.now.scope(ground.path, ground.scope)
        owner = self.now.class_of(here) if here is not None else None
        for one in family(self.now, owner) if owner is not None else ():
            found = self.now.scope(one.path, (*one.names, name))
            if found is not None:
                return found
        return None

    def _followed(self, found: Scope, ground: PurityContext) -> str:
        return self.follow(found, ground.in_validation) if self.follow is not None else ""

    def _outside(self, dotted: str, call: ast.Call) -> str:
        if dotted in OURS:
            return ""
        if dotted == "torch.autograd.grad":
            kept = any(one.arg in ("retain_graph", "create_graph") for one in call.keywords)
            return (
                ""
                if kept
                else (
                    "frees the graph that the training goes back through; give it retain_graph=True"
                )
            )
        if dotted.rpartition(".")[2].startswith("dropout") and _is_off(call):
            return ""
        return known_effects.why_not_function(dotted)

    def _named(self, name: str, ground: PurityContext) -> str:
        if name in ground.own:
            return ""
        if hasattr(builtins, name):
            is_known = name in known_effects.BUILTINS or name.endswith(known_effects.ERRORS)
            return "" if is_known else "does more than compute a value"
        return "" if ground.in_validation else _MODULE_CALL

    def _method(self, call: ast.Call, func: ast.Attribute, ground: PurityContext) -> str:
        receiver, root = ast.unparse(func.value), root_name(func.value)
        if receiver == "super()":
            is_same = func.attr == ground.method
            return "" if is_same else "runs more of the framework than a logging statement may"
        if func.attr in LOGS:
            is_known = receiver in (
                "self",
                "pl_module",
                "model",
                "module",
                "trainer",
                "self.trainer",
            )
            return (
                ""
                if is_known
                else "is not a way of logging that is known; use flor.log(name, value)"
            )
        made_here = (root == receiver and root in ground.fresh) or _is_generator(func.value)
        if not made_here and (why := known_effects.why_not_method(func.attr)):
            return why
        if func.attr in known_effects.DRAWS and not made_here:
            return "draws from a generator that the training draws from; use a generator of its own"
        if func.attr in known_effects.MOVES and receiver in known_effects.MODULES:
            return "changes the module in place"
        if receiver != "self":
            return ""
        is_getter = func.attr in known_effects.FRAMEWORK_GETTERS or func.attr.startswith(
            ("get_", "is_", "has_")
        )
        return "" if is_getter or ground.in_validation else _MODULE_CALL


def root_name(node: ast.AST) -> str:
    """The variable that an expression starts from; "self.x" for an attribute of self; "" for
    anything else.
    """
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            return f"self.{node.attr}"
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_drawn_from_own(call: ast.Call, ground: PurityContext) -> bool:
    given = [one.value for one in call.keywords if one.arg == "generator"]
    return bool(given) and (root_name(given[0]) in ground.fresh or _is_generator(given[0]))


def is_loader(node: ast.expr) -> bool:
    """Does it look like a loader? Starting to go through one draws its workers' seed."""
    attributes = [one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)]
    names = [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
    return any("loader" in one.lower() for one in (*attributes, *names))


def _is_generator(node: ast.AST) -> bool:
    text = ast.unparse(node)
    return "Generator(" in text or "default_rng(" in text or text.startswith("random.Random(")


def _gives_copy(call: ast.Call) -> bool:
    is_method = (
        isinstance(call.func, ast.Attribute) and call.func.attr in known_effects.COPIES_OF_TENSORS
    )
    return is_method and not any(one.arg == "out" for one in call.keywords)


def _is_off(call: ast.Call) -> bool:
    return any(one.arg == "training" and ast.unparse(one.value) == "False" for one in call.keywords)


def _is_class(version: CodeVersion, path: str, names: tuple[str, ...]) -> bool:
    scope = version.scope(path, names)
    return scope is not None and not isinstance(scope.node, FUNCTIONS)
