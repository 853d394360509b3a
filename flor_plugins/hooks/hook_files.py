"""Hook files: what is in them (read without running them), and loading them in a worker."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from flor_plugins.errors import HookError
from flor_plugins.hooks.metric import MOMENTS, Metric
from flor_plugins.hooks.source_digest import digest_of, digests
from flor_plugins.records import Strategy

# Methods of the frameworks' callbacks that a validation pass alone calls.
_VALIDATION_ONLY = ("on_validation", "on_evaluate", "on_prediction_step")


@dataclass(frozen=True, slots=True)
class DeclaredHook:
    """A hook as the source shows it. way: the cheapest way that calls it.

    digest: sha256 of its source and what it uses (`digests`); of a callback and compute_metrics
    that of the file.
    file_digest: sha256 of the whole file.
    """

    name: str
    kind: str
    way: Strategy
    line: int
    digest: str = ""
    file_digest: str = ""


@dataclass(frozen=True, slots=True)
class HookFile:
    """A hook file, imported. digest: sha256 of the file. digests: of each of its functions."""

    path: Path
    digest: str
    metrics: tuple[Metric, ...]
    callbacks: tuple[type, ...]
    compute_metrics: Callable[..., Any] | None
    digests: Mapping[str, str] = field(default_factory=dict)

    def digest_of(self, metric: str) -> str:
        """Return what the values of a metric of this file are known by.

        It is the same as `DeclaredHook.digest`.
        """
        return self.digests.get(metric, self.digest)


def scan(path: Path) -> list[DeclaredHook]:
    """Return the hooks of a file, in order, without importing it.

    They are @metric functions, callbacks and compute_metrics.

    Raises HookError when the file can't be read or parsed, or when `at` is unknown.
    """
    try:
        source = path.read_bytes()
        tree = ast.parse(source.decode(), filename=str(path))
        each, whole = digests(source), digest_of(source)
    except FileNotFoundError as error:
        raise HookError(f"hook file {path} does not exist") from error
    except (SyntaxError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise HookError(f"{path}:{line}: the hook file is not Python: {error}") from error
    found: list[DeclaredHook] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found += _found_function(node, path)
        elif isinstance(node, ast.ClassDef) and any(
            _last_name(b).endswith("Callback") for b in node.bases
        ):
            methods = [
                n.name
                for n in node.body
                if isinstance(n, ast.FunctionDef) and n.name.startswith("on_")
            ]
            only = bool(methods) and all(m.startswith(_VALIDATION_ONLY) for m in methods)
            found.append(
                DeclaredHook(node.name, "callback", "validate" if only else "train", node.lineno)
            )
    return [
        replace(one, digest=each[one.name] if one.kind == "metric" else whole, file_digest=whole)
        for one in found
    ]


def load(path: Path) -> HookFile:
    """Import a hook file under a name of its own. Raises HookError with file and line."""
    source = path.read_bytes()
    digest = digest_of(source)
    name = f"flor_hook_{path.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except HookError:
        raise
    except Exception as error:
        line = _line_in(error, path)
        raise HookError(
            f"{path}:{line}: the hook file can't be loaded: {type(error).__name__}: {error}"
        ) from error
    compute_metrics = getattr(module, "compute_metrics", None)
    return HookFile(
        path, digest, _metrics(module), _callbacks(module), compute_metrics, digests(source)
    )


def check_callback(made: type, base: type) -> None:
    """Every `on_*` method must exist on the framework's callback class and take what it passes."""
    known = [name for name in dir(base) if name.startswith("on_")]
    for name, method in vars(made).items():
        if not name.startswith("on_") or not inspect.isfunction(method):
            continue
        place = f"{method.__code__.co_filename}:{method.__code__.co_firstlineno}"
        if name not in known:
            close = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known)}"
            raise HookError(
                f"{place}: {made.__name__}.{name} is no hook of {base.__qualname__}; {hint}"
            )
        _check_signature(made, name, method, getattr(base, name), place)


def _check_signature(
    made: type,
    name: str,
    method: Callable[..., object],
    expected: Callable[..., object],
    place: str,
) -> None:
    wanted = inspect.signature(expected)
    positional = [p for p in wanted.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = (
        {"model": None} if any(p.kind is p.VAR_KEYWORD for p in wanted.parameters.values()) else {}
    )
    required = [p for p in positional if p.default is p.empty]
    try:
        inspect.signature(method).bind(*[None] * len(required), **keywords)
    except TypeError as error:
        raise HookError(
            f"{place}: {made.__name__}.{name} does not take what the trainer passes ({error}): "
            f"def {name}{wanted}"
        ) from error


def _found_function(node: ast.FunctionDef, path: Path) -> list[DeclaredHook]:
    if node.name == "compute_metrics" and not node.decorator_list:
        return [DeclaredHook(node.name, "compute_metrics", "validate", node.lineno)]
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if _last_name(call) != "metric":
            continue
        at = "epoch"
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
            if keyword.arg == "at" and isinstance(keyword.value, ast.Constant):
                at = keyword.value.value
        ways: dict[str, Strategy] = {"epoch": "state", "validation": "validate", "step": "train"}
        if at not in ways:
            raise HookError(
                f"{path}:{node.lineno}: metric {node.name!r} asks for at={at!r}; "
                f"there are {', '.join(map(repr, MOMENTS))}"
            )
        return [DeclaredHook(node.name, "metric", ways[at], node.lineno)]
    return []


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _metrics(module: ModuleType) -> tuple[Metric, ...]:
    return tuple(value for value in vars(module).values() if isinstance(value, Metric))


def _callbacks(module: ModuleType) -> tuple[type, ...]:
    return tuple(
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and any(base.__name__.endswith("Callback") for base in value.__mro__[1:])
    )


def _line_in(error: BaseException, path: Path) -> int:
    trace, line = error.__traceback__, 1
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
