"""What differs between the environment of a recording and the present one.

Plain data in, lines out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

ChangeKind = Literal["package", "device", "numerics", "interpreter", "machine", "variable"]

# Those that compute come first, the others by name.
FIRST_PACKAGES = (
    "torch",
    "numpy",
    "lightning",
    "transformers",
    "accelerate",
    "torchmetrics",
    "peft",
)
# Of determinism, what is more likely to matter comes first, the others by name.
FIRST_SWITCHES = ("num_threads", "deterministic_algorithms", "default_dtype", "cpu_capability")
INTERPRETER = ("python", "implementation")
# Not of the computation, but of where the process runs; a replay sets these for itself.
PLACES = re.compile(
    r"PYTHONPATH|(LOCAL_)?RANK|MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES"
    r"|(HF|TORCH|TRANSFORMERS)_(.*_)?(HOME|CACHE|OFFLINE)"
)
_UNNAMED = re.compile(r"cuda:\d+")
MAX_VALUE = 120


@dataclass(frozen=True, slots=True)
class EnvironmentChange:
    """One thing around the training that was otherwise when it was recorded. was, now: as text."""

    kind: ChangeKind
    name: str
    was: str
    now: str

    def __str__(self) -> str:
        label = f"{self.kind} {self.name}" if self.kind in ("package", "variable") else self.name
        return one_line(f"{label}: {self.was} recorded, {self.now} now")


def differences(then: Any, now: Any) -> list[str]:
    """One line for each thing that differs, such as "package toy: 1.0 recorded, 2.0 now"; []
    where nothing does.

    then: `run.environment`; now: the present `environment()`. What only one of them knows is not
    compared: earlier versions recorded less. Never raises, whatever was recorded.
    """
    return [str(one) for one in environment_changes(then, now)]


def environment_changes(then: Any, now: Any) -> list[EnvironmentChange]:
    """The same as records: devices, switches of torch, packages, interpreter, machine, in
    this order.
    """
    then, now = as_mapping(then), as_mapping(now)
    return [
        *_devices(then.get("devices"), now.get("devices")),
        *_of(
            "numerics",
            as_mapping(then.get("determinism")),
            as_mapping(now.get("determinism")),
            FIRST_SWITCHES,
        ),
        *_packages(then, now),
        *_of("interpreter", _only(then, INTERPRETER), _only(now, INTERPRETER), INTERPRETER),
        *_of("machine", _rest(then), _rest(now), ("cpu", "machine", "platform", "cpus")),
    ]


def variable_changes(then: Any, now: Any) -> list[EnvironmentChange]:
    """Environment variables that differ or that only one side has; not those that say where
    a process runs.
    """
    then, now = as_mapping(then), as_mapping(now)
    names = sorted(
        (name for name in then.keys() | now.keys() if not PLACES.fullmatch(str(name))), key=str
    )
    return list(_of("variable", *_filled(then, now, names, "not set")))


def compared_parts(then: Any, now: Any) -> list[str]:
    """What both environments know, so that it could be compared, in words."""
    then, now = as_mapping(then), as_mapping(now)
    names = {
        "packages": "packages",
        "determinism": "switches of torch",
        "devices": "devices",
        "python": "python",
    }
    return [
        word
        for name, word in names.items()
        if all(one.get(name) not in (None, {}) for one in (then, now))
    ]


def _devices(was: Any, now: Any) -> Iterator[EnvironmentChange]:
    if not isinstance(was, list) or not isinstance(now, list) or _same(was, now):
        return
    # A GPU has no name before CUDA is initialised: then only their number can be compared.
    unnamed = any(isinstance(one, str) and _UNNAMED.fullmatch(one) for one in (*was, *now))
    if not unnamed or len(was) != len(now):
        yield EnvironmentChange("device", "device", _text(was), _text(now))


def _packages(then: Mapping[Any, Any], now: Mapping[Any, Any]) -> Iterator[EnvironmentChange]:
    was, present = as_mapping(then.get("packages")), as_mapping(now.get("packages"))
    if was and present and then.get("every_package") is True and now.get("every_package") is True:
        was, present = _filled(was, present, was.keys() | present.keys(), "not installed")
    yield from _of("package", was, present, FIRST_PACKAGES)


def _filled(
    was: Mapping[Any, Any], now: Mapping[Any, Any], names: Iterable[Any], absent: str
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    return {name: was.get(name, absent) for name in names}, {
        name: now.get(name, absent) for name in names
    }


def _of(
    kind: ChangeKind, was: Mapping[Any, Any], now: Mapping[Any, Any], first: tuple[str, ...] = ()
) -> Iterator[EnvironmentChange]:
    def order(name: Any) -> tuple[int, str]:
        return (first.index(name) if name in first else len(first), str(name))

    for name in sorted(was.keys() & now.keys(), key=order):
        if not _same(was[name], now[name]):
            yield EnvironmentChange(kind, str(name), _text(was[name]), _text(now[name]))


def _only(values: Mapping[Any, Any], names: tuple[str, ...]) -> dict[Any, Any]:
    return {name: values[name] for name in names if name in values}


def _rest(values: Mapping[Any, Any]) -> dict[Any, Any]:
    known = ("devices", "determinism", "packages", "every_package", *INTERPRETER)
    return {name: value for name, value in values.items() if name not in known}


def one_line(text: str) -> str:
    """Names and values may hold line breaks."""
    return " ".join(text.split())


def as_mapping(value: Any) -> Mapping[Any, Any]:
    """What was read from a file may be anything."""
    return value if isinstance(value, Mapping) else {}


def _same(was: Any, now: Any) -> bool:
    """Equal as JSON: a tuple is a list, NaN is NaN, True is not 1."""
    return _json(was) == _json(now)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # keys of several types, a list that holds itself
        return repr(value)


def _text(value: Any) -> str:
    """On one line, and short."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = one_line(text) or ("none" if isinstance(value, list) else '""')
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
