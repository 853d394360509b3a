"""Trees of tensors, arrays and plain values: copied, compared bit for bit, and measured."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_SAME = (str, bytes, int, float, complex, bool, type(None))  # nobody can change one


class UncopyableBatchError(Exception):
    """A batch holds what can't be copied with certainty; says what."""


def still(values: Mapping[str, object]) -> dict[str, Any]:
    """Return values that the training can't change any more.

    Tensors are copied where they are, without a synchronisation.
    """
    return {name: _still(value) for name, value in values.items()}


def _still(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return [_still(part) for part in value]
    if type(value) is dict:
        return {key: _still(part) for key, part in value.items()}
    return value


def copied(tree: Any) -> Any:
    """Return a copy that shares no memory.

    Nobody can tell it from the original by types, bits, strides and devices. Raises
    UncopyableBatchError where somebody could.

    tree: dicts, lists, tuples (named ones, too) and UserDicts of dense tensors, numpy arrays
    and plain values. What stands in it twice stands twice in the copy.
    """
    return _copied(tree, {}, set())


def nbytes_of(tree: object) -> int:
    """Return the bytes of all tensors and arrays, each as often as it stands there."""
    if isinstance(tree, torch.Tensor | np.ndarray):
        return tree.nbytes
    if isinstance(tree, dict | UserDict):
        return sum(map(nbytes_of, tree.values()))
    return sum(map(nbytes_of, tree)) if isinstance(tree, list | tuple) else 0


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two trees are equal bit for bit, NaN too.

    Types, shapes, strides and devices count, and the order of keys.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        places = [(t.dtype, t.shape, t.layout, t.device) for t in (one, other)]
        is_alike = places[0] == places[1] and one.stride() == other.stride()
        return is_alike and torch.equal(_bits(one), _bits(other))
    if isinstance(one, np.ndarray | np.generic):
        places = [(array.dtype, array.shape, array.strides) for array in (one, other)]
        return places[0] == places[1] and one.tobytes() == other.tobytes()
    if isinstance(one, dict | UserDict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other or (one != one and other != other)


def _copied(one: Any, seen: dict[int, Any], memory: set[int]) -> Any:
    if isinstance(one, _SAME) and type(one) in _SAME:
        return one
    if id(one) not in seen:
        seen[id(one)] = _copy(one, seen, memory)
    return seen[id(one)]


def _copy(one: Any, seen: dict[int, Any], memory: set[int]) -> Any:
    kind = type(one)
    if kind is torch.Tensor:
        return _tensor(one, memory)
    if kind is np.ndarray:
        if one.dtype.hasobject or (one.base is not None and not isinstance(one.base, bytes)):
            raise UncopyableBatchError(
                "a batch holds an array of objects or a view of another array"
            )
        return one.copy(order="K")
    if kind in (dict, OrderedDict):
        return kind((key, _copied(value, seen, memory)) for key, value in one.items())
    if kind is list:
        return [_copied(value, seen, memory) for value in one]
    if isinstance(one, tuple) and (kind is tuple or hasattr(kind, "_make")):
        values = [_copied(value, seen, memory) for value in one]
        return tuple(values) if kind is tuple else kind._make(values)  # type: ignore[attr-defined]
    if isinstance(one, UserDict):  # what tokenizers return
        made = copy.copy(one)
        made.data = _copied(dict(one.data), seen, memory)
        return made
    raise UncopyableBatchError(f"a batch holds a {kind.__module__}.{kind.__qualname__}")


def _tensor(one: torch.Tensor, memory: set[int]) -> torch.Tensor:
    if (
        one.layout is not torch.strided
        or one.is_quantized
        or one.requires_grad
        or one.is_conj()
        or one.is_neg()
    ):
        raise UncopyableBatchError(
            "a batch holds a tensor that is sparse, quantized or of an autograd graph"
        )
    place = one.untyped_storage().data_ptr()
    made = one.clone()
    if made.stride() != one.stride() or (place in memory and one.numel()):
        raise UncopyableBatchError("a batch holds tensors that share memory")
    memory.add(place)
    return made


def _bits(one: torch.Tensor) -> torch.Tensor:
    plain = one.detach().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)
