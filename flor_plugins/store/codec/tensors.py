"""Tensors of a state: named by their path, kept once however often they are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from flor_plugins.errors import EncodingError
from flor_plugins.records import JsonObject

# what safetensors stores as it is; all else goes as its real parts or as its bytes
_NATIVE = """bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64
complex64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"""
NATIVE = frozenset(getattr(torch, name) for name in _NATIVE.split() if hasattr(torch, name))
_ALL = [one for one in vars(torch).values() if isinstance(one, torch.dtype)]
DTYPES = {str(one).removeprefix("torch."): one for one in _ALL}
DTYPE_NAMES = {one: name for name, one in DTYPES.items()}
_KINDS = frozenset((torch.Tensor, torch.nn.Parameter))
RESERVED = "__metadata__"  # safetensors keeps this name for itself


class TensorTable:
    """The tensors of one state, by key: what `keep` makes of each."""

    def __init__(self, keep: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self.stored: dict[str, torch.Tensor] = {}
        self._keep = keep
        self._keys: dict[Any, str] = {}
        # met tensors stay alive while encoding: a freed one's address may be given to another
        self._met: list[torch.Tensor] = []

    def pack(self, tensor: torch.Tensor, path: str) -> JsonObject:
        """The JSON that stands for a tensor.

        Raises EncodingError for those that have no plain memory.
        """
        # A training waits while its hundreds of tensors pass here: each is asked as little as
        # possible.
        _refuse(tensor)
        dtype, shape, strides = tensor.dtype, tensor.shape, tensor.stride()
        node: JsonObject = {
            "$": "tensor",
            "key": "",
            "dtype": DTYPE_NAMES[dtype],
            "shape": [*shape],
        }
        if not tensor.is_cpu:
            node["device"] = str(tensor.device)
        if type(tensor) is torch.nn.Parameter:
            node["parameter"] = True
        if tensor.requires_grad:
            node["requires_grad"] = True
        if strides != (1,) and [*strides] != _row_major(shape) and _is_dense(shape, strides):
            node["strides"] = [*strides]
        if not tensor.numel():  # no memory, which two names could have in common
            node["key"] = self.add(_storable(tensor.detach()), path)
            return node
        lazy = (tensor.is_conj(), tensor.is_neg())  # same memory, other values
        memory = (tensor.data_ptr(), tensor.device, dtype, shape, strides, lazy)
        key = self._keys.get(memory)
        if key is None:
            key = self._keys[memory] = self.add(_storable(tensor.detach()), path)
            self._met.append(tensor)
        node["key"] = key
        return node

    def add(self, tensor: torch.Tensor, path: str) -> str:
        """Keep a tensor of a native dtype under a key like `path`; returns the key."""
        section, _, name = path.partition("/")
        if (
            not name.isprintable()
        ):  # surrogates are legal in a str and not in the header of a safetensors file
            name = name.encode("utf-8", "replace").decode().replace("\0", "?")
        name = name or "value"
        key, number = f"{section}/{name}", 1
        while key in self.stored or name == RESERVED:
            number += 1
            key, name = f"{section}/{name}~{number}", f"{name}~{number}"
        self.stored[key] = self._keep(key, tensor)
        return key


def copying(reuse: Mapping[str, torch.Tensor]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Copies to the CPU, into tensors of `reuse` where they fit."""

    def keep(key: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = reuse.get(key)
        if buffer is None or buffer.dtype != tensor.dtype or buffer.shape != tensor.shape:
            # the device is named: the user may have set another default
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return buffer.copy_(tensor)

    return keep


def find(key: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a tensor by its key. Raises EncodingError."""
    try:
        return tensors[key]
    except KeyError:
        raise EncodingError(
            f"the tensor {key!r} is named by the tree and not given with it."
        ) from None


def unpack(
    node: JsonObject, tensors: Mapping[str, torch.Tensor], seen: dict[Any, torch.Tensor]
) -> torch.Tensor:
    """The tensor that `pack` described, on the CPU. seen: the tensors that were unpacked so far."""
    key, shape, strides = node["key"], node["shape"], node.get("strides")
    same = (
        key,
        tuple(shape),
        str(strides),
        bool(node.get("parameter")),
        bool(node.get("requires_grad")),
    )
    if same in seen:
        return seen[same]
    memory = (key, str(strides))
    if memory not in seen:
        seen[memory] = _restored(find(key, tensors), node)
    tensor = seen[memory]
    if node.get("parameter"):
        tensor = torch.nn.Parameter(tensor, requires_grad=bool(node.get("requires_grad")))
    elif node.get("requires_grad"):
        tensor = tensor.detach().requires_grad_()
    seen[same] = tensor
    return tensor


def _refuse(tensor: torch.Tensor) -> None:
    kind = type(tensor)
    if kind not in _KINDS:
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise EncodingError(
            f"a tensor of the subclass {name} can't be stored; store its plain parts"
        )
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.device.type == "meta":
        what = "quantized" if tensor.is_quantized else tensor.layout
        what = "meta" if tensor.device.type == "meta" else what
        raise EncodingError(f"a {what} tensor can't be stored; store a dense one")


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in NATIVE:
        return (
            tensor.resolve_conj().resolve_neg() if tensor.is_conj() or tensor.is_neg() else tensor
        )
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _restored(stored: torch.Tensor, node: JsonObject) -> torch.Tensor:
    dtype, shape, strides = DTYPES[node["dtype"]], node["shape"], node.get("strides")
    tensor = stored
    if dtype not in NATIVE:
        tensor = (
            torch.view_as_complex(stored) if dtype.is_complex else stored.view(dtype).reshape(shape)
        )
    if tensor.dtype != dtype or list(tensor.shape) != shape:
        raise EncodingError(
            f"the tensor {node['key']!r} is said to be {node['dtype']} {shape} "
            f"and is {tensor.dtype} {list(tensor.shape)}."
        )
    if strides is None or not _is_dense(shape, strides):
        return tensor
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu").copy_(tensor)


def _row_major(shape: Any) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _is_dense(shape: Any, strides: Any) -> bool:
    """Whether the elements fill their memory without gap or overlap, as channels_last does.

    Only then are strides worth keeping: others would bring the memory around a slice with them.
    """
    if 0 in shape or len(shape) != len(strides):
        return False
    step = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != step:
            return False
        step *= size
    return True
