"""Values that only their class explains (enums, named tuples, dataclasses), and functions.

The class is found by its name among modules that are loaded already. Nothing is
imported, no attribute hook and no property runs, no `__init__` is called.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from contextlib import suppress
from typing import Any

from flor_plugins.errors import EncodingError
from flor_plugins.records import JsonObject, JsonValue
from flor_plugins.store.codec.tags import (
    LostLeaf,
    Packer,
    Unpacker,
    join,
)

FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def pack_named(value: Any, to: Packer, path: str) -> JsonValue:
    """The JSON of such a value. Raises EncodingError for everything else."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return _pack_enum(value, to, path)
    if isinstance(value, (type, *FUNCTIONS)):
        return {"$": "reference", "name": _name(value)}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        _refuse_own_new(kind, tuple, getattr(value, "__dict__", None))
        return {
            "$": "namedtuple",
            "class": _name(kind),
            "items": _parts(kind._fields, value, to, path),
        }
    if dataclasses.is_dataclass(value):
        _refuse_own_new(kind, object, None)
        fields = {name: to.value(one, join(path, name)) for name, one in _attributes(value).items()}
        return {"$": "dataclass", "class": _name(kind), "fields": fields}
    name = f"{kind.__module__}.{kind.__qualname__}"
    raise EncodingError(f"a value of type {name} can't be stored without pickle")


def _pack_enum(value: enum.Enum, to: Packer, path: str) -> JsonValue:
    kind = type(value)
    if kind.__members__.get(value.name) is value:
        return {"$": "enum", "class": _name(kind), "member": value.name}
    if isinstance(value, enum.Flag):  # several flags together: no member, but a number
        return {"$": "enum", "class": _name(kind), "flags": to.value(int(value.value), path)}
    raise EncodingError(f"{value!r} is no member of its own enum")


def _unpack_enum(node: JsonObject, of: Unpacker) -> object:
    kind = find_named(node["class"])
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return _unknown(node["class"], "enum")
    if "flags" in node:
        is_flag = issubclass(kind, enum.Flag)
        return kind(of.value(node["flags"])) if is_flag else _unknown(node["class"], "flag")
    member = kind.__members__.get(node["member"])
    return (
        member
        if member is not None
        else LostLeaf(f"{node['class']} has no member {node['member']!r}")
    )


def _unpack_namedtuple(node: JsonObject, of: Unpacker) -> object:
    kind = find_named(node["class"])
    items = [of.value(one) for one in node["items"]]
    if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return _unknown(node["class"], "named tuple")
    count = len(getattr(kind, "_fields"))  # noqa: B009 (tuple itself has none)
    if count != len(items):
        return LostLeaf(f"{node['class']} had {len(items)} fields and has {count} now")
    return tuple.__new__(kind, items)


def _unpack_dataclass(node: JsonObject, of: Unpacker) -> object:
    kind = find_named(node["class"])
    fields = {name: of.value(one) for name, one in node["fields"].items()}
    if not (
        isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__
    ):
        return _unknown(node["class"], "dataclass")
    made = object.__new__(kind)
    slots = _slots(kind)
    for name, one in fields.items():
        if name in slots:
            slots[name].__set__(made, one)
        elif hasattr(made, "__dict__"):
            made.__dict__[name] = one
        else:
            return LostLeaf(f"{node['class']} has no field {name!r} any more")
    return made


def _unpack_reference(node: JsonObject, of: Unpacker) -> object:
    found = find_named(node["name"])
    return (
        found
        if isinstance(found, (type, *FUNCTIONS))
        else _unknown(node["name"], "function or type")
    )


def find_named(name: str) -> Any:
    """What `module:qualified.name` stands for among the loaded modules, or None.

    Looks into the namespaces themselves: getattr would let lazy modules import.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        space = vars(found) if isinstance(found, (types.ModuleType, type)) else {}
        found = space.get(part)
        found = found.__func__ if isinstance(found, staticmethod) else found
    return found


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or "builtins"
    name = f"{module}:{value.__qualname__}"
    if find_named(name) is not value:
        raise EncodingError(
            f"{name} can't be stored without pickle: that name does not lead back to it; "
            f"define it at the top level of a module"
        )
    return name


def _refuse_own_new(kind: type, base: type, attributes: Any) -> None:
    own = next(one for one in kind.__mro__ if "__new__" in vars(one))
    # collections.namedtuple writes a __new__ into each class it makes; that one only packs the
    # tuple
    generated = base is tuple and "_fields" in vars(own)
    if attributes or not (own is base or generated):
        raise EncodingError(
            f"a {kind.__module__}.{kind.__qualname__} can't be stored without pickle: "
            f"it keeps more than its fields"
        )


def _parts(names: Any, values: Any, to: Packer, path: str) -> list[object]:
    return [to.value(one, join(path, name)) for name, one in zip(names, values, strict=True)]


def _slots(kind: type) -> dict[str, types.MemberDescriptorType]:
    slots: dict[str, types.MemberDescriptorType] = {}
    for base in reversed(kind.__mro__):
        members = vars(base).items()
        slots |= {
            name: member
            for name, member in members
            if isinstance(member, types.MemberDescriptorType)
        }
    return slots


def _attributes(value: Any) -> dict[str, object]:
    """What an object holds, read from where it lies and not through its properties."""
    held = dict(getattr(value, "__dict__", {}))
    for name, slot in _slots(type(value)).items():
        with suppress(AttributeError):  # an empty slot
            held[name] = slot.__get__(value, type(value))
    return held


def _unknown(name: str, what: str) -> LostLeaf:
    return LostLeaf(
        f"{name} is not a {what} that is loaded here; import its module before loading the state"
    )


UNPACK = {
    "enum": _unpack_enum,
    "namedtuple": _unpack_namedtuple,
    "dataclass": _unpack_dataclass,
    "reference": _unpack_reference,
}
