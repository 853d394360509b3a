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
from flor_plugins.records import JsonObject, JsonValue

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
    """What a packer may ask for.

    That is the JSON of a part, or the key under which a tensor's copy is kept.
    """

    def value(self, value: object, path: str) -> JsonValue:
        """Return the JSON of a part."""
        ...

    def raw(self, tensor: torch.Tensor, path: str) -> str:
        """Keep a tensor, and return its key."""
        ...


class Unpacker(Protocol):
    """What an unpacker may ask for: the value of a part, or a tensor by its key."""

    def value(self, node: JsonValue) -> Any:
        """Return the value of a part."""
        ...

    def raw(self, key: str) -> torch.Tensor:
        """Return a tensor by its key."""
        ...


PackFunction = Callable[[Any, Packer, str], JsonValue]
UnpackFunction = Callable[[JsonObject, Unpacker], object]


def join(path: str, part: object) -> str:
    """Return the path of a part.

    `optimizer/` and `state` give optimizer/state; then 0 gives optimizer/state.0.
    """
    text = part if type(part) is str else repr(part)[:60]
    return f"{path}{text}" if path.endswith("/") else f"{path}.{text}"


def is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is.

    Most of a state's leaves are so (625 numbers of each random.Random).
    """
    kind = type(value)
    if kind is int:
        # other readers know 64 bits, and Python itself refuses 4300 digits
        return -(2**63) <= value < 2**63
    return value is None or kind is str or kind is bool or (kind is float and math.isfinite(value))


def _unpack_lost(node: JsonObject, of: Unpacker) -> LostLeaf:
    return LostLeaf(node["why"])


def _pack_int(value: int, to: Packer, path: str) -> JsonValue:
    return value if is_plain(value) else {"$": "int", "hex": f"{value:x}"}


def _unpack_int(node: JsonObject, of: Unpacker) -> int:
    return int(node["hex"], 16)


def _pack_float(value: float, to: Packer, path: str) -> JsonValue:
    # the bits, so that a NaN keeps its payload; finite numbers survive JSON's decimals
    return value if is_plain(value) else {"$": "float", "bits": struct.pack(">d", value).hex()}


def _unpack_float(node: JsonObject, of: Unpacker) -> float:
    return struct.unpack(">d", bytes.fromhex(node["bits"]))[0]


def _pack_complex(value: complex, to: Packer, path: str) -> JsonValue:
    return {"$": "complex", "bits": struct.pack(">2d", value.real, value.imag).hex()}


def _unpack_complex(node: JsonObject, of: Unpacker) -> complex:
    return complex(*struct.unpack(">2d", bytes.fromhex(node["bits"])))


def _pack_bytes(value: bytes | bytearray, to: Packer, path: str) -> JsonValue:
    return {"$": type(value).__name__, "base64": base64.b64encode(value).decode()}


def _unpack_bytes(node: JsonObject, of: Unpacker) -> bytes | bytearray:
    data = base64.b64decode(node["base64"])
    return data if node["$"] == "bytes" else bytearray(data)


def _pack_list(value: list[object], to: Packer, path: str) -> JsonValue:
    return _items(value, to, path)


def _pack_sequence(value: Any, to: Packer, path: str) -> JsonValue:
    return {"$": type(value).__name__, "items": _items(value, to, path)}


def _pack_set(value: set[object] | frozenset[object], to: Packer, path: str) -> JsonValue:
    # a set has no order of its own: sorted, the same state gives the same file
    return {"$": type(value).__name__, "items": _items(sorted(value, key=repr), to, path)}


def _unpack_sequence(node: JsonObject, of: Unpacker) -> object:
    return _SEQUENCES[node["$"]](of.value(node["items"]))


def _pack_deque(value: deque[object], to: Packer, path: str) -> JsonValue:
    return {"$": "deque", "maxlen": value.maxlen, "items": _items(value, to, path)}


def _unpack_deque(node: JsonObject, of: Unpacker) -> deque[object]:
    return deque((of.value(one) for one in node["items"]), maxlen=node["maxlen"])


def _pack_dict(value: dict[Any, Any], to: Packer, path: str) -> JsonValue:
    if type(value) is dict and all(type(key) is str for key in value) and "$" not in value:
        return {
            key: one if is_plain(one) else to.value(one, join(path, key))
            for key, one in value.items()
        }
    node: JsonObject = {"$": "dict", "kind": type(value).__name__}
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


def _unpack_dict(node: JsonObject, of: Unpacker) -> dict[object, object]:
    kind = node["kind"]
    if kind == "defaultdict":
        result: dict[object, object] = defaultdict(node["factory"] and FACTORIES[node["factory"]])
    else:
        result = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}[kind]()
    for key, one in node["items"]:
        result[of.value(key)] = of.value(one)
    attributes = of.value(node.get("attributes"))
    if isinstance(attributes, dict):  # else there are none, or they were lost
        vars(result).update(attributes)
    return result


def _pack_span(value: range | slice, to: Packer, path: str) -> JsonValue:
    return {
        "$": type(value).__name__,
        "items": _items((value.start, value.stop, value.step), to, path),
    }


def _pack_timedelta(value: datetime.timedelta, to: Packer, path: str) -> JsonValue:
    return {"$": "timedelta", "items": [value.days, value.seconds, value.microseconds]}


def _unpack_arguments(node: JsonObject, of: Unpacker) -> object:
    return _ARGUMENTS[node["$"]](*of.value(node["items"]))


def _pack_moment(value: Any, to: Packer, path: str) -> JsonValue:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone:
        raise EncodingError(f"a time in the zone {zone} can't be stored; convert it to UTC")
    return {"$": type(value).__name__, "iso": value.isoformat(), "fold": getattr(value, "fold", 0)}


def _unpack_moment(node: JsonObject, of: Unpacker) -> object:
    kind = {"date": datetime.date, "time": datetime.time, "datetime": datetime.datetime}[node["$"]]
    value = kind.fromisoformat(node["iso"])
    return value.replace(fold=1) if node["fold"] else value  # type: ignore[call-arg]


def _pack_path(value: pathlib.PurePath, to: Packer, path: str) -> JsonValue:
    concrete = isinstance(value, pathlib.Path)  # opens on whatever system reads it
    return {"$": "path", "kind": "Path" if concrete else type(value).__name__, "text": str(value)}


def _unpack_path(node: JsonObject, of: Unpacker) -> pathlib.PurePath:
    kinds = (pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath)
    return {one.__name__: one for one in kinds}[node["kind"]](node["text"])


def _pack_random(value: random.Random, to: Packer, path: str) -> JsonValue:
    return {"$": "random", "state": to.value(value.getstate(), path)}


def _unpack_random(node: JsonObject, of: Unpacker) -> random.Random:
    made = random.Random()
    made.setstate(of.value(node["state"]))
    return made


def _items(values: Iterable[object], to: Packer, path: str) -> list[object]:
    return [one if is_plain(one) else to.value(one, join(path, i)) for i, one in enumerate(values)]


_SEQUENCES: dict[str, Callable[..., object]] = {
    "tuple": tuple,
    "Size": torch.Size,
    "set": set,
    "frozenset": frozenset,
}
_ARGUMENTS: dict[str, Callable[..., object]] = {
    "range": range,
    "slice": slice,
    "timedelta": datetime.timedelta,
}

# By exact type: a subclass may hold more than its base, and would come back as something else.
PACK: dict[type, PackFunction] = {
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

UNPACK: dict[str, UnpackFunction] = {
    "lost": _unpack_lost,
    "int": _unpack_int,
    "float": _unpack_float,
    "complex": _unpack_complex,
    "bytes": _unpack_bytes,
    "bytearray": _unpack_bytes,
    "tuple": _unpack_sequence,
    "Size": _unpack_sequence,
    "set": _unpack_sequence,
    "frozenset": _unpack_sequence,
    "deque": _unpack_deque,
    "dict": _unpack_dict,
    "range": _unpack_arguments,
    "slice": _unpack_arguments,
    "timedelta": _unpack_arguments,
    "date": _unpack_moment,
    "time": _unpack_moment,
    "datetime": _unpack_moment,
    "path": _unpack_path,
    "random": _unpack_random,
}
