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
        """Look whether the functions fit into a run's version.

        Raises CannotCarry where it has no such method, HookError where parameters do not fit.
        """
        assert run.code is not None
        version = CodeVersion(self.recorded.of(run.code))
        entry = entry_of(run, version) or ""
        for method in self.methods:
            signatures.check(method, version, entry)


def read(patch: Mapping[str, str]) -> tuple[MethodPatch, ...]:
    """Return the functions that a `patch` names.

    patch: `module:Class.method` to `file.py:function`. Raises HookError for a target or a function
    that is not there.
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
    known = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function not in known:
        raise HookError(
            f"{path}:1: patch: {target} was to be replaced by {function!r}, which is no "
            f"function there; "
            f"there are {', '.join(known) or 'none'}"
        )
    return MethodPatch(target, function, str(path), text)


def may_log(methods: Sequence[MethodPatch], metric: str) -> bool:
    """Whether one of the files logs that metric, or a name that is made only when it runs."""
    for method in methods:
        names, unclear = logged(ast.parse(method.text))
        if unclear or patterns_of(metric, names):
            return True
    return False


def way_of(methods: Sequence[MethodPatch]) -> Strategy:
    """Return "train" where training must be run again for what they log."""
    names = [method.target.rpartition(".")[2] for method in methods]
    return "validate" if methods and all(map(known_effects.is_of_validation, names)) else "train"


def digest_of(methods: Sequence[MethodPatch]) -> str | None:
    """Return what the values are known by: the files, and which methods they replace."""
    parts = [f"{method.target}={method.function}\n{method.text}" for method in methods]
    return joined(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def replace_methods(methods: Sequence[MethodPatch], launch: Launch) -> None:
    """Put the functions onto the classes of the script's modules.

    Called in a worker, where the script has built its trainer. Raises ReplayError where a module,
    class or method is not there.
    """
    for patch in methods:
        name, _, dotted = patch.target.partition(":")
        owners = [owner for module in _modules(name, launch) for owner in _owners(module, dotted)]
        if not owners:
            raise ReplayError(
                f"{patch.target} was to be replaced by {patch.function} of {patch.path}; when the "
                f"training began no module "
                f"{name!r} with it was imported. Write the module as the script imports it."
            )
        for owner in owners:
            _put(patch, owner, dotted.rpartition(".")[2])


def _modules(name: str, launch: Launch) -> Iterator[ModuleType]:
    """Yield the module of that name; also the script, which runs by the name of __main__."""
    is_script = launch.kind == "script" and Path(launch.target).stem == name
    is_main = is_script or (launch.kind == "module" and launch.target == name) or name == "__main__"
    for module in dict.fromkeys((name, "__main__") if is_main else (name,)):
        if module in sys.modules:
            yield sys.modules[module]


def _owners(module: ModuleType, dotted: str) -> Iterator[type]:
    owner: object = module
    *classes, method = dotted.split(".")
    for name in classes:
        owner = getattr(owner, name, None)
    if isinstance(owner, type) and hasattr(owner, method):
        yield owner


def _put(patch: MethodPatch, owner: type, method: str) -> None:
    own = next(vars(base)[method] for base in owner.__mro__ if method in vars(base))
    function = _load(patch, owner)
    kind = type(own) if isinstance(own, staticmethod | classmethod) else None
    setattr(owner, method, kind(function) if kind is not None else function)


def _load(patch: MethodPatch, owner: type) -> FunctionType:
    """Return the function, with `__class__` around it as in a class: it may say `super()`."""
    path = patch.path
    module = ModuleType(f"flor_patch_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module
    tree = ast.parse(patch.text, path)
    try:
        exec(compile(tree, path, "exec"), vars(module))
        node = signatures.function_of(tree, patch.function)
        maker = ast.parse(f"def {_MAKER}(__class__): ...").body[0]
        assert isinstance(maker, ast.FunctionDef)
        maker.body = [node, ast.Return(ast.Name(patch.function, ast.Load()))]
        made = ast.fix_missing_locations(ast.Module([ast.copy_location(maker, node)], []))
        exec(compile(made, path, "exec"), vars(module))
        return vars(module).pop(_MAKER)(owner)
    except Exception as error:
        trace, line = error.__traceback__, 1
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else line
            trace = trace.tb_next
        raise HookError(
            f"{path}:{line}: the patch can't be loaded: {type(error).__name__}: {error}"
        ) from error
