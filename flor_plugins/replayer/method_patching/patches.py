"""`patch:`: a method of a run's own code is replaced, by name, by a function of the user's."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from flor_plugins.errors import HookError, ReplayError
from flor_plugins.hooks.source_digest import joined
from flor_plugins.records import Launch, MethodPatch, Run, Strategy
from flor_plugins.replayer.backport.logged_names import logged, patterns_of
from flor_plugins.replayer.backport.purity import known_effects
from flor_plugins.replayer.backport.snapshots import SnapshotSources, entry_of
from flor_plugins.replayer.backport.syntax import CodeVersion
from flor_plugins.replayer.method_patching import signatures

_MAKER = "_flor_make"
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True, slots=True)
class MethodPatches:
    """The functions of a `patch`, and the versions into which they may fit."""

    methods: tuple[MethodPatch, ...]
    recorded: SnapshotSources

    def check(self, run: Run) -> None:
        """Raises CannotCarry where the run's version has no such method, HookError where
        parameters do not fit.
        """
        assert run.code is not None
        version = CodeVersion(self.recorded.of(run.code))
        for one in self.methods:
            signatures.check(one, version, entry_of(run, version) or "")


def read(patch: Mapping[str, str]) -> tuple[MethodPatch, ...]:
    """The functions that a `patch` names. patch: `module:Class.method` to `file.py:function`.

    Raises HookError for a target or a function that is not there.
    """
    return tuple(_read(target, source) for target, source in patch.items())


def _read(target: str, source: str) -> MethodPatch:
    if not _TARGET.fullmatch(target):
        raise HookError(
            f"patch: {target!r} was to be replaced; write it as module:Class.method, like "
            f"bert:Net.forward"
        )
    name, colon, function = source.rpartition(":")
    if not colon or not function.isidentifier():
        raise HookError(
            f"patch: {target} was to be replaced by {source!r}; write that as file.py:function"
        )
    path = Path(name).absolute()
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except FileNotFoundError as error:
        raise HookError(
            f"patch: {target} was to be replaced by {function} of {path}; there is no such file"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise HookError(
            f"{path}:{getattr(error, 'lineno', None) or 1}: the patch is not Python: {error}"
        ) from error
    if _function(tree, function) is None:
        known = [one.name for one in tree.body if isinstance(one, ast.FunctionDef)]
        raise HookError(
            f"{path}:1: patch: {target} was to be replaced by {function!r}, which is no "
            f"function there; "
            f"there are {', '.join(known) or 'none'}"
        )
    return MethodPatch(target, function, str(path), text)


def may_log(methods: Sequence[MethodPatch], metric: str) -> bool:
    """Does one of the files log that metric? Also where a name is made only when it runs."""
    for one in methods:
        names, unclear = logged(ast.parse(one.text))
        if unclear or patterns_of(metric, names):
            return True
    return False


def way_of(methods: Sequence[MethodPatch]) -> Strategy:
    """Must training be run again for what they log?"""
    last = [one.target.rpartition(".")[2] for one in methods]
    return "validate" if methods and all(map(known_effects.is_of_validation, last)) else "train"


def digest_of(methods: Sequence[MethodPatch]) -> str | None:
    """What the values are known by: the files, and which methods they replace."""
    parts = [f"{one.target}={one.function}\n{one.text}" for one in methods]
    return joined(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def replace_methods(methods: Sequence[MethodPatch], launch: Launch) -> None:
    """In a worker, where the script has built its trainer: put the functions onto the classes
    of its modules.

    Raises ReplayError where a module, class or method is not there.
    """
    for one in methods:
        module, _, dotted = one.target.partition(":")
        owners = [owner for found in _modules(module, launch) for owner in _owners(found, dotted)]
        if not owners:
            raise ReplayError(
                f"{one.target} was to be replaced by {one.function} of {one.path}; when the "
                f"training began no module "
                f"{module!r} with it was imported. Write the module as the script imports it."
            )
        for owner in owners:
            _put(one, owner, dotted.rpartition(".")[2])


def _modules(name: str, launch: Launch) -> Iterator[ModuleType]:
    """The module of that name; also the script, which runs by the name of __main__."""
    is_script = launch.kind == "script" and Path(launch.target).stem == name
    is_main = is_script or (launch.kind == "module" and launch.target == name) or name == "__main__"
    for one in dict.fromkeys((name, "__main__") if is_main else (name,)):
        if one in sys.modules:
            yield sys.modules[one]


def _owners(module: ModuleType, dotted: str) -> Iterator[type]:
    found: Any = module
    *classes, method = dotted.split(".")
    for name in classes:
        found = getattr(found, name, None)
    if isinstance(found, type) and hasattr(found, method):
        yield found


def _put(one: MethodPatch, owner: type, method: str) -> None:
    own = next(vars(base)[method] for base in owner.__mro__ if method in vars(base))
    function = _made(one, owner)
    kind = type(own) if isinstance(own, staticmethod | classmethod) else None
    setattr(owner, method, kind(function) if kind is not None else function)


def _made(one: MethodPatch, owner: type) -> FunctionType:
    """The function, with `__class__` around it as in a class: so that it may say `super()`."""
    module = ModuleType(f"flor_patch_{Path(one.path).stem}")
    module.__file__ = one.path
    sys.modules[module.__name__] = module
    tree = ast.parse(one.text, one.path)
    try:
        exec(compile(tree, one.path, "exec"), vars(module))
        node = _function(tree, one.function)
        assert node is not None
        maker = ast.parse(f"def {_MAKER}(__class__): ...").body[0]
        assert isinstance(maker, ast.FunctionDef)
        maker.body = [node, ast.Return(ast.Name(one.function, ast.Load()))]
        made = ast.fix_missing_locations(ast.Module([ast.copy_location(maker, node)], []))
        exec(compile(made, one.path, "exec"), vars(module))
        return vars(module).pop(_MAKER)(owner)
    except Exception as error:
        trace, line = error.__traceback__, 1
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == one.path else line
            trace = trace.tb_next
        raise HookError(
            f"{one.path}:{line}: the patch can't be loaded: {type(error).__name__}: {error}"
        ) from error


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    return next(
        (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name), None
    )
