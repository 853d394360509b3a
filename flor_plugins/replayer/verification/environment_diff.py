"""What differs between the environment of a recording and the present one.

Plain data in, lines out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

Facts = Mapping[str, Any]  # JSON, as it was recorded
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
# Parts of an environment, in words.
PARTS = {"packages": "packages", "determinism": "switches of torch", "devices": "devices"}
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


def differences(then: object, now: object) -> list[str]:
    """Return one line for each thing that differs, such as "package toy: 1.0 recorded, 2.0 now".

    then: `run.environment`; now: the present `environment()`. What only one of them knows is not
    compared: earlier versions recorded less. Never raises, whatever was recorded.
    """
    return [str(change) for change in environment_changes(then, now)]


def environment_changes(then: object, now: object) -> list[EnvironmentChange]:
    """Return the same as records.

    Devices, switches of torch, packages, interpreter, machine: in this order.
    """
    was, present = as_mapping(then), as_mapping(now)
    switches = as_mapping(was.get("determinism")), as_mapping(present.get("determinism"))
    machine = was.keys() - {*PARTS, "every_package", *INTERPRETER}
    return [
        *_devices(was.get("devices"), present.get("devices")),
        *_changes("numerics", *switches, FIRST_SWITCHES),
        *_packages(was, present),
        *_changes("interpreter", was, present, INTERPRETER, set(INTERPRETER)),
        *_changes("machine", was, present, ("cpu", "machine", "platform", "cpus"), machine),
    ]


def variable_changes(then: object, now: object) -> list[EnvironmentChange]:
    """Return environment variables that differ or that only one side has.

    Those that say where a process runs are left out.
    """
    was, present = as_mapping(then), as_mapping(now)
    names = [name for name in was.keys() | present.keys() if not PLACES.fullmatch(str(name))]
    return list(_changes("variable", *_filled(was, present, names, "not set")))


def compared_parts(then: object, now: object) -> list[str]:
    """Return what both environments know, so that it could be compared, in words."""
    both = as_mapping(then), as_mapping(now)
    words = {**PARTS, "python": "python"}
    return [
        word
        for name, word in words.items()
        if all(environment.get(name) not in (None, {}) for environment in both)
    ]


def _devices(was: object, now: object) -> Iterator[EnvironmentChange]:
    if not isinstance(was, list) or not isinstance(now, list) or _same(was, now):
        return
    # A GPU has no name before CUDA is initialised: then only their number can be compared.
    unnamed = any(isinstance(name, str) and _UNNAMED.fullmatch(name) for name in (*was, *now))
    if not unnamed or len(was) != len(now):
        yield EnvironmentChange("device", "device", _text(was), _text(now))


def _packages(then: Facts, now: Facts) -> Iterator[EnvironmentChange]:
    was, present = as_mapping(then.get("packages")), as_mapping(now.get("packages"))
    if was and present and then.get("every_package") is True and now.get("every_package") is True:
        was, present = _filled(was, present, was.keys() | present.keys(), "not installed")
    yield from _changes("package", was, present, FIRST_PACKAGES)


def _filled(was: Facts, now: Facts, names: Collection[str], absent: str) -> tuple[Facts, Facts]:
    """Both with all of the names."""
    return (
        {name: was.get(name, absent) for name in names},
        {name: now.get(name, absent) for name in names},
    )


def _changes(
    kind: ChangeKind,
    was: Facts,
    now: Facts,
    first: tuple[str, ...] = (),
    only: Set[str] | None = None,
) -> Iterator[EnvironmentChange]:
    """What both know and what differs, by name, those in `first` before all others."""

    def order(name: str) -> tuple[int, str]:
        return (first.index(name) if name in first else len(first), str(name))

    common = was.keys() & now.keys()
    for name in sorted(common if only is None else common & only, key=order):
        if not _same(was[name], now[name]):
            yield EnvironmentChange(kind, str(name), _text(was[name]), _text(now[name]))


def one_line(text: str) -> str:
    """Return a text without line breaks, which names and values may hold."""
    return " ".join(text.split())


def as_mapping(value: object) -> Facts:
    """Return a mapping in any case: what was read from a file may be anything."""
    return value if isinstance(value, Mapping) else {}


def _same(was: object, now: object) -> bool:
    """Equal as JSON: a tuple is a list, NaN is NaN, True is not 1."""
    return _json(was) == _json(now)


def _json(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):
        return repr(value)  # keys of several types, a list that holds itself


def _text(value: object) -> str:
    """On one line, and short."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = one_line(text) or ("none" if isinstance(value, list) else '""')
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."
