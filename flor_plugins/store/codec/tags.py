"""How plain Python values stand in a state's JSON tree.

Each `_pack_*` stands above the `_unpack_*` that reads what it wrote. A packer
raises EncodingError for a value that it would not get back the same.
"""

from __future__ import annotations

import base64
import datetime
import math
import pathlib
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flor_plugins.errors import EncodingError

FACTORIES = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "set": set,
}


@dataclass(frozen=True, slots=True)
class LostLeaf:
    """Stands where a state held something that could not be stored, or can't be built here."""

    why: str


class Packer(Protocol):
    """What a packer may ask for: the JSON of a part, or the key under which a tensor's copy
    is kept.
    """

    def value(self, value: Any, path: str) -> Any: ...
    def raw(self, tensor: torch.Tensor, path: str) -> str: ...


class Unpacker(Protocol):
    """What an unpacker may ask for: the value of a part, or a tensor by its key."""

    def value(self, node: Any) -> Any: ...
    def raw(self, key: str) -> torch.Tensor: ...


def join(path: str, part: object) -> str:
    """The path of a part: `optimizer/` and `state` give optimizer/state; then 0 gives
    optimizer/state.0.
    """
    text = part if type(part) is str else repr(part)[:60]
    return f"{path}{text}" if path.endswith("/") else f"{path}.{text}"


def is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is.

    Most of a state's leaves are so (625 numbers of each random.Random).
    """
    kind = type(value)
    if kind is int:
        return (
            -(2**63) <= value < 2**63
        )  # other readers know 64 bits, and Python itself refuses 4300 digits
    return value is None or kind is str or kind is bool or (kind is float and math.isfinite(value))


def _pack_int(value: int, to: Packer, path: str) -> Any:
    return value if is_plain(value) else {"$": "int", "hex": f"{value:x}"}


def _pack_float(value: float, to: Packer, path: str) -> Any:
    # the bits, so that a NaN keeps its payload; finite numbers survive JSON's decimals
    return value if is_plain(value) else {"$": "float", "bits": struct.pack(">d", value).hex()}


def _unpack_float(node: Any, of: Unpacker) -> float:
    return struct.unpack(">d", bytes.fromhex(node["bits"]))[0]


def _pack_complex(value: complex, to: Packer, path: str) -> Any:
    return {"$": "complex", "bits": struct.pack(">2d", value.real, value.imag).hex()}


def _unpack_complex(node: Any, of: Unpacker) -> complex:
    return complex(*struct.unpack(">2d", bytes.fromhex(node["bits"])))


def _pack_bytes(value: bytes | bytearray, to: Packer, path: str) -> Any:
    return {"$": type(value).__name__, "base64": base64.b64encode(value).decode()}


def _pack_list(value: list[Any], to: Packer, path: str) -> Any:
    return _items(value, to, path)


def _pack_sequence(value: Any, to: Packer, path: str) -> Any:
    return {"$": type(value).__name__, "items": _items(value, to, path)}


def _pack_set(value: set[Any] | frozenset[Any], to: Packer, path: str) -> Any:
    # a set has no order of its own: sorted, the same state gives the same file
    return {"$": type(value).__name__, "items": _items(sorted(value, key=repr), to, path)}


def _unpack_sequence(build: Callable[[Iterable[Any]], Any]) -> Callable[[Any, Unpacker], Any]:
    return lambda node, of: build(of.value(one) for one in node["items"])


def _pack_deque(value: deque[Any], to: Packer, path: str) -> Any:
    return {"$": "deque", "maxlen": value.maxlen, "items": _items(value, to, path)}


def _unpack_deque(node: Any, of: Unpacker) -> deque[Any]:
    return deque((of.value(one) for one in node["items"]), maxlen=node["maxlen"])


def _pack_dict(value: dict[Any, Any], to: Packer, path: str) -> Any:
    if type(value) is dict and all(type(key) is str for key in value) and "$" not in value:
        return {
            key: one if is_plain(one) else to.value(one, join(path, key))
            for key, one in value.items()
        }
    node: dict[str, Any] = {"$": "dict", "kind": type(value).__name__}
    if isinstance(value, defaultdict):
        factory = value.default_factory
        if factory is not None and FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
            names = ", ".join(FACTORIES)
            raise EncodingError(f"a defaultdict of {factory!r} can't be stored; use one of {names}")
        node["factory"] = None if factory is None else factory.__name__
    # pairs, and not an object: keys may be of any type
    node["items"] = [
        [
            key if is_plain(key) else to.value(key, join(path, f"key{i}")),
            one if is_plain(one) else to.value(one, join(path, key)),
        ]
        for i, (key, one) in enumerate(value.items())
    ]
    if getattr(value, "__dict__", None):  # torch keeps the versions of modules on its state dicts
        node["attributes"] = to.value(vars(value), join(path, "attributes"))
    return node


def _unpack_dict(node: Any, of: Unpacker) -> dict[Any, Any]:
    kind = node["kind"]
    if kind == "defaultdict":
        result: dict[Any, Any] = defaultdict(node["factory"] and FACTORIES[node["factory"]])
    else:
        result = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}[kind]()
    for key, one in node["items"]:
        result[of.value(key)] = of.value(one)
    attributes = of.value(node.get("attributes"))
    if isinstance(attributes, dict):  # else there are none, or they were lost
        vars(result).update(attributes)
    return result


def _pack_span(value: range | slice, to: Packer, path: str) -> Any:
    return {
        "$": type(value).__name__,
        "items": _items((value.start, value.stop, value.step), to, path),
    }


def _pack_timedelta(value: datetime.timedelta, to: Packer, path: str) -> Any:
    return {"$": "timedelta", "items": [value.days, value.seconds, value.microseconds]}


def _pack_moment(value: Any, to: Packer, path: str) -> Any:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone:
        raise EncodingError(f"a time in the zone {zone} can't be stored; convert it to UTC")
    return {"$": type(value).__name__, "iso": value.isoformat(), "fold": getattr(value, "fold", 0)}


def _unpack_moment(node: Any, of: Unpacker) -> Any:
    kind = {"date": datetime.date, "time": datetime.time, "datetime": datetime.datetime}[node["$"]]
    value = kind.fromisoformat(node["iso"])
    return value.replace(fold=1) if node["fold"] else value  # type: ignore[call-arg]


def _pack_path(value: pathlib.PurePath, to: Packer, path: str) -> Any:
    concrete = isinstance(value, pathlib.Path)  # opens on whatever system reads it
    return {"$": "path", "kind": "Path" if concrete else type(value).__name__, "text": str(value)}


def _unpack_path(node: Any, of: Unpacker) -> pathlib.PurePath:
    kinds = (pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath)
    return {one.__name__: one for one in kinds}[node["kind"]](node["text"])


def _pack_random(value: random.Random, to: Packer, path: str) -> Any:
    return {"$": "random", "state": to.value(value.getstate(), path)}


def _unpack_random(node: Any, of: Unpacker) -> random.Random:
    made = random.Random()
    made.setstate(of.value(node["state"]))
    return made


def _items(values: Iterable[Any], to: Packer, path: str) -> list[Any]:
    return [one if is_plain(one) else to.value(one, join(path, i)) for i, one in enumerate(values)]


# By exact type: a subclass may hold more than its base, and would come back as something else.
PACK: dict[type, Callable[[Any, Packer, str], Any]] = {
    int: _pack_int,
    float: _pack_float,
    complex: _pack_complex,
    bytes: _pack_bytes,
    bytearray: _pack_bytes,
    list: _pack_list,
    tuple: _pack_sequence,
    torch.Size: _pack_sequence,
    set: _pack_set,
    frozenset: _pack_set,
    deque: _pack_deque,
    dict: _pack_dict,
    OrderedDict: _pack_dict,
    defaultdict: _pack_dict,
    Counter: _pack_dict,
    range: _pack_span,
    slice: _pack_span,
    datetime.timedelta: _pack_timedelta,
    datetime.date: _pack_moment,
    datetime.time: _pack_moment,
    datetime.datetime: _pack_moment,
    random.Random: _pack_random,
    type(pathlib.Path()): _pack_path,
    pathlib.PurePosixPath: _pack_path,
    pathlib.PureWindowsPath: _pack_path,
}

UNPACK: dict[str, Callable[[Any, Unpacker], Any]] = {
    "lost": lambda node, of: LostLeaf(node["why"]),
    "int": lambda node, of: int(node["hex"], 16),
    "float": _unpack_float,
    "complex": _unpack_complex,
    "bytes": lambda node, of: base64.b64decode(node["base64"]),
    "bytearray": lambda node, of: bytearray(base64.b64decode(node["base64"])),
    "tuple": _unpack_sequence(tuple),
    "Size": _unpack_sequence(torch.Size),
    "set": _unpack_sequence(set),
    "frozenset": _unpack_sequence(frozenset),
    "deque": _unpack_deque,
    "dict": _unpack_dict,
    "range": lambda node, of: range(*of.value(node["items"])),
    "slice": lambda node, of: slice(*of.value(node["items"])),
    "timedelta": lambda node, of: datetime.timedelta(*node["items"]),
    "date": _unpack_moment,
    "time": _unpack_moment,
    "datetime": _unpack_moment,
    "path": _unpack_path,
    "random": _unpack_random,
}
