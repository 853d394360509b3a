"""How numpy values, and torch values that are no tensors, stand in a state's JSON tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flor_plugins.errors import EncodingError
from flor_plugins.records import JsonObject, JsonValue
from flor_plugins.store.codec.tags import (
    LostLeaf,
    Packer,
    PackFunction,
    Unpacker,
    UnpackFunction,
    join,
)
from flor_plugins.store.codec.tensors import NATIVE

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


def _pack_torch(value: Any, to: Packer, path: str) -> JsonValue:
    return {"$": "torch", "name": str(value).removeprefix("torch.")}


def _unpack_torch(node: JsonObject, of: Unpacker) -> object:
    found = vars(torch).get(node["name"])
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        return LostLeaf(f"this torch ({torch.__version__}) has no torch.{node['name']}")
    return found


def _pack_device(value: torch.device, to: Packer, path: str) -> JsonValue:
    return {"$": "device", "text": str(value)}


def _unpack_device(node: JsonObject, of: Unpacker) -> torch.device:
    return torch.device(node["text"])


def _pack_generator(value: torch.Generator, to: Packer, path: str) -> JsonValue:
    key = to.raw(value.get_state(), join(path, "state"))
    return {"$": "Generator", "device": str(value.device), "key": key}


def _unpack_generator(node: JsonObject, of: Unpacker) -> object:
    state = of.raw(node["key"])
    try:
        made = torch.Generator(device=node["device"])
    except RuntimeError as error:
        return LostLeaf(f"a generator on {node['device']} can't be made here: {error}")
    made.set_state(state.clone())
    return made


def _pack_array(value: np.ndarray, to: Packer, path: str) -> JsonValue:
    code = _dtype_code(value.dtype)
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    node = {
        "$": "ndarray",
        "dtype": code,
        "shape": list(value.shape),
        "order": "F" if fortran else "C",
    }
    return node | {"key": to.raw(_as_tensor(value.copy(order="C")), path)}


def _unpack_array(node: JsonObject, of: Unpacker) -> np.ndarray:
    raw = of.raw(node["key"]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    # the constructor and not frombuffer, which refuses items of no bytes such as ''
    array = np.ndarray(node["shape"], np.dtype(node["dtype"]), raw)
    return array.copy(order=node["order"])


def _pack_scalar(value: np.generic, to: Packer, path: str) -> JsonValue:
    return {"$": "npscalar", "dtype": _dtype_code(value.dtype), "hex": value.tobytes().hex()}


def _unpack_scalar(node: JsonObject, of: Unpacker) -> object:
    return np.ndarray((), np.dtype(node["dtype"]), bytes.fromhex(node["hex"]))[()]


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    try:
        tensor = torch.from_numpy(array)
    except (TypeError, ValueError):  # text, dates, foreign byte order: torch has no such dtype
        tensor = None
    if tensor is not None and tensor.dtype in NATIVE:
        return tensor
    return torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())


def _dtype_code(dtype: np.dtype) -> str:
    if dtype.hasobject or dtype.names or np.dtype(dtype.str) != dtype:
        raise EncodingError(
            f"numpy values of dtype {dtype} can't be stored; convert them to a plain dtype"
        )
    return dtype.str


def _pack_nprandom(value: Any, to: Packer, path: str) -> JsonValue:
    legacy = isinstance(value, np.random.RandomState)
    state = value.get_state(legacy=False) if legacy else value.bit_generator.state
    if state["bit_generator"] not in BIT_GENERATORS:
        raise EncodingError(
            f"the bit generator {state['bit_generator']} can't be stored; numpy's own can"
        )
    return {"$": "nprandom", "kind": type(value).__name__, "state": to.value(state, path)}


def _unpack_nprandom(node: JsonObject, of: Unpacker) -> object:
    state = of.value(node["state"])
    if state["bit_generator"] not in BIT_GENERATORS:
        raise EncodingError(f"the bit generator {state['bit_generator']!r} is not one of numpy's")
    bits = getattr(np.random, state["bit_generator"])()
    if node["kind"] == "Generator":
        bits.state = state
        return np.random.Generator(bits)
    made = np.random.RandomState(bits)
    made.set_state(state)
    return made


PACK: dict[type, PackFunction] = {
    torch.dtype: _pack_torch,
    torch.layout: _pack_torch,
    torch.memory_format: _pack_torch,
    torch.device: _pack_device,
    torch.Generator: _pack_generator,
    np.ndarray: _pack_array,
    np.random.Generator: _pack_nprandom,
    np.random.RandomState: _pack_nprandom,
} | dict.fromkeys(set(np.sctypeDict.values()), _pack_scalar)

UNPACK: dict[str, UnpackFunction] = {
    "torch": _unpack_torch,
    "device": _unpack_device,
    "Generator": _unpack_generator,
    "ndarray": _unpack_array,
    "npscalar": _unpack_scalar,
    "nprandom": _unpack_nprandom,
}
