"""Every record as a JSON object, and back: the form in which processes exchange records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What json.loads makes of an object; which values it holds depends on its keys.
JsonObject = dict[str, Any]
JsonValue = None | bool | int | float | str | list[Any] | JsonObject
Record = TypeVar("Record", bound="DataclassInstance")


def to_json(record: DataclassInstance) -> JsonObject:
    """Return the fields of a record by their names, nested records as objects."""
    return asdict(record)


def from_json(kind: type[Record], data: Mapping[str, object], *, strict: bool = False) -> Record:
    """Build a record from what `to_json` or `json.loads` returned.

    Keys that the record has no field for are ignored, and a field without a key keeps its
    default. strict: an unknown key of a nested record is an error: it may be a damaged known one.
    Raises TypeError for that, and where a field has neither key nor default.
    """
    types = _types_of(kind)
    return kind(
        **{name: _decode(types[name], data[name], strict) for name in types if name in data}
    )


@cache
def _types_of(kind: type[DataclassInstance]) -> dict[str, object]:
    types = get_type_hints(kind)
    return {field.name: types[field.name] for field in fields(kind)}


def _decode(kind: Any, value: Any, strict: bool) -> Any:
    """Make records and tuples again, where the type of a field says that there were any."""
    if is_dataclass(kind):
        unknown = value.keys() - _types_of(kind).keys()  # pyright: ignore[reportArgumentType]
        if strict and unknown:
            raise TypeError(f"{', '.join(sorted(unknown))} is no field of {kind}")
        return from_json(kind, value, strict=strict)  # pyright: ignore[reportArgumentType]
    parts = get_args(kind)
    if NoneType in parts:
        return None if value is None else _decode(parts[0], value, strict)
    if get_origin(kind) is tuple:
        return tuple(_decode(parts[0], item, strict) for item in value)
    if get_origin(kind) is Mapping:
        return {key: _decode(parts[1], item, strict) for key, item in value.items()}
    return value
