"""A state as a JSON tree and named tensors, without pickle and without loss.

What JSON can't hold becomes `{"$": tag, ...}`; the tags are in tags.py (plain
Python), tensors.py, arrays.py (numpy) and names.py (what is found
by the name of its class). Decoding runs nothing that the file chooses: no import, no
call but to constructors of the types named in those files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flor_plugins.errors import EncodingError
from flor_plugins.records import JsonObject
from flor_plugins.records.sections import MODEL, LoadedSections, Sections
from flor_plugins.store.codec import arrays, names, tags, tensors
from flor_plugins.store.codec.tags import LostLeaf

__all__ = ["Encoded", "LostLeaf", "decode", "encode", "survey"]

MAX_DEPTH = 100  # Python's own recursion limit must not be met inside a user's training


@dataclass(frozen=True, slots=True)
class Encoded:
    """A state in two parts.

    tree: section to JSON. tensors: "<section>/<dotted path>" to a tensor of a dtype
    that safetensors knows; contiguous, on the CPU and nobody else's after `encode`. lost:
    "path: why" of each leaf that could not be encoded; `decode` puts a LostLeaf in its place.
    """

    tree: JsonObject
    tensors: dict[str, torch.Tensor]
    lost: tuple[str, ...] = ()


def encode(sections: Sections, reuse: Mapping[str, torch.Tensor] | None = None) -> Encoded:
    """Copy a state into a JSON tree and CPU tensors.

    sections: name to any nesting of the types that the tags know. A tensor met
    twice is stored once. reuse: the tensors of an earlier `Encoded` that nobody
    reads any more: those that fit are overwritten, which saves the page faults of
    fresh memory. Raises EncodingError for a section name that can't be a file
    name; a leaf that can't be encoded raises nothing and is listed in `lost`.
    """
    return _encode(sections, tensors.copying(reuse or {}))


def survey(sections: Sections) -> Encoded:
    """Encode a state as `encode` does, but with the state's own tensors, where and as they are.

    They are still to be copied.

    All else is as it was at this moment, whatever the training does with it.
    """
    return _encode(sections, lambda key, tensor: tensor)


def _encode(sections: Sections, keep: Callable[[str, torch.Tensor], torch.Tensor]) -> Encoded:
    for name in sections:
        if type(name) is not str or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
            raise EncodingError(
                f"a section of a state is named {name!r}, and its tensors go to a file of that "
                f"name. "
                f"Use letters, digits, '_', '-' and '.' only."
            )
    encoder = _Encoder(tensors.TensorTable(keep))
    # the model first: a tensor that others refer to is stored under its name there
    order = sorted(sections, key=lambda name: name != MODEL)
    trees = {name: encoder.value(sections[name], f"{name}/") for name in order}
    return Encoded(
        {name: trees[name] for name in sections}, encoder.table.stored, tuple(encoder.lost)
    )


def decode(tree: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> LoadedSections:
    """The inverse of `encode`: section to value.

    Tensors are on the CPU and may share memory with `tensors`; names that stood
    for one tensor get one tensor again. Raises EncodingError, naming the
    section, if the tree is malformed or names a tensor that is not given.
    """
    decoder = _Decoder(tensors)
    sections = {}
    for name, part in tree.items():
        try:
            sections[name] = decoder.value(part)
        except EncodingError as error:
            raise EncodingError(f"section {name!r} of a state can't be decoded: {error}") from error
        except Exception as error:  # whatever a malformed tree makes the constructors say
            raise EncodingError(
                f"section {name!r} of a state can't be decoded: {type(error).__name__}: {error}. "
                f"It was altered, or written by another version of flor-plugins."
            ) from error
    return sections


class _Encoder:
    """Walks a value; what it meets and can't encode goes to `lost`."""

    def __init__(self, table: tensors.TensorTable) -> None:
        self.table = table
        self.lost: list[str] = []
        self._open: set[int] = set()  # containers around the present one

    def value(self, value: Any, path: str) -> Any:
        if tags.is_plain(value):
            return value
        try:
            return (
                self.table.pack(value, path)
                if isinstance(value, torch.Tensor)
                else self._pack(value, path)
            )
        except Exception as error:  # any type's own code may run here, and a training must go on
            why = (
                str(error)
                if isinstance(error, EncodingError)
                else f"{type(error).__name__}: {error}"
            )
            self.lost.append(f"{path}: {why}")
            return {"$": "lost", "why": self.lost[-1]}

    def raw(self, tensor: torch.Tensor, path: str) -> str:
        return self.table.add(tensor, path)

    def _pack(self, value: Any, path: str) -> Any:
        if id(value) in self._open:
            raise EncodingError("a container that holds itself can't be stored")
        if len(self._open) >= MAX_DEPTH:
            raise EncodingError(f"nested deeper than {MAX_DEPTH} levels")
        kind = type(value)
        pack = tags.PACK.get(kind) or arrays.PACK.get(kind) or names.pack_named
        self._open.add(id(value))
        try:
            return pack(value, self, path)
        finally:
            self._open.discard(id(value))


class _Decoder:
    """Builds values back; `seen` makes tied tensors one tensor again."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.seen: dict[Any, torch.Tensor] = {}

    def value(self, node: Any) -> Any:
        if type(node) is list:
            return [self.value(one) for one in node]
        if type(node) is not dict:
            return node
        tag = node.get("$")
        if tag is None:
            return {key: self.value(one) for key, one in node.items()}
        if tag == "tensor":
            return tensors.unpack(node, self.tensors, self.seen)
        tables = (tags.UNPACK, arrays.UNPACK, names.UNPACK)
        unpack = next((one[tag] for one in tables if tag in one), None)
        if unpack is None:
            raise EncodingError(
                f"the tag {tag!r} is unknown; a newer version of flor-plugins may know it."
            )
        return unpack(node, self)

    def raw(self, key: str) -> torch.Tensor:
        return tensors.find(key, self.tensors)
