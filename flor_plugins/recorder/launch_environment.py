"""How this process was started, and parameters as plain values. Imports no torch."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any, Literal

from flor_plugins.records import Launch
from flor_plugins.state.environment import environment as environment
from flor_plugins.state.environment import variables

PlainValue = bool | int | float | str | list | None

MAX_REPR = 200
MAX_ITEMS = 1_000
MAX_DEPTH = 20  # a mapping that holds itself ends here


def launch() -> Launch:
    """How this process was started, enough to start it again; `call` is left at 0."""
    kind, target = _target()
    return Launch(
        kind=kind, target=target, argv=tuple(sys.argv[1:]), cwd=_first_cwd(), env=variables()
    )


def _target() -> tuple[Literal["interactive", "script", "module"], str]:
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if file is None or file.startswith("<") or hasattr(sys, "ps1"):  # a notebook, python -c, a pipe
        return "interactive", ""
    if spec is None:
        return "script", os.path.normpath(os.path.abspath(file))
    if spec.name == "__main__":  # python FOLDER, or a zip file
        return "script", os.path.normpath(os.path.dirname(file))
    return "module", spec.name.removesuffix(".__main__")


def _first_cwd() -> str:
    """The folder in which the process began.

    Scripts change theirs (hydra does it for everybody). Python makes __file__ of a script
    absolute by putting the first folder before argv[0], so that it can be read off.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    given = sys.argv[0].rstrip(os.sep) if sys.argv else ""
    if given and not os.path.isabs(given):
        for started in (file, os.path.dirname(file)):  # the second where a folder was named
            if os.path.isabs(started) and started.endswith(os.sep + given):
                return started[: -len(given) - 1] or os.sep
    return os.getcwd()


def seconds_since_start() -> float | None:
    """The age of this process in seconds; None where the system does not tell (only Linux does)."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # The second field is a name in brackets that may itself hold spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def flatten(prefix: str, mapping: object) -> dict[str, PlainValue]:
    """Parameters under dotted names, as values that JSON knows.

    mapping: a mapping, a dataclass, a Namespace or None. Sets become sorted lists; NaN and
    infinities become "nan", "inf", "-inf"; what is not plain becomes its repr of at most
    200 characters, without memory addresses.
    """
    flat: dict[str, PlainValue] = {}
    _flatten(prefix, mapping, flat, depth=0)
    return flat


def _flatten(name: str, value: object, flat: dict[str, PlainValue], depth: int) -> None:
    items = _items(value)
    if items is None or depth > MAX_DEPTH or (not items and depth):
        flat[name] = _plain(value)
        return
    for key, each in items.items():
        _flatten(f"{name}.{_key(key)}" if name else _key(key), each, flat, depth + 1)


def _items(value: object) -> Mapping[Any, Any] | None:
    """What a container of named values holds; None if it is not one."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict: it copies deeply, and a field may hold a model.
        return {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    return None


def _key(key: object) -> str:
    return key if isinstance(key, str) else str(_plain(key))


def _plain(value: object, depth: int = 0) -> PlainValue:
    if isinstance(value, enum.Enum):
        return (
            _plain(value.value) if isinstance(value.value, bool | int | float | str) else value.name
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, int | str):
        return int(value) if isinstance(value, int) else str(value)
    if isinstance(value, PurePath):
        return str(value)
    if (
        isinstance(value, list | tuple | set | frozenset)
        and len(value) <= MAX_ITEMS
        and depth < MAX_DEPTH
    ):
        items = [_plain(each, depth + 1) for each in value]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    return _short(value)


def _short(value: Any) -> PlainValue:
    """A number out of a numpy scalar, the kind of an array, else the short repr."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            return _plain(value.item())
        # Never the values of a tensor: they may have to come from a device.
        return f"{type(value).__name__}(shape={tuple(value.shape)}, dtype={value.dtype})"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"[:MAX_REPR]
    try:
        text = repr(value)
    except Exception as error:  # somebody else's repr must not end a training
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return text if len(text) <= MAX_REPR else text[: MAX_REPR - 3] + "..."
