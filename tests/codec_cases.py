"""Values that the state codec must carry, and what it means that they came back the same."""

from __future__ import annotations

import datetime as dt
import enum
import gc
import math
import pathlib
import random
import re
import struct
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Pair = namedtuple("Pair", "left right")


class Typed(NamedTuple):
    a: int
    b: Any = None


class Color(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796 (an alias, on purpose)
    BLUE = 2


class Mode(str, enum.Enum):  # noqa: UP042 (as transformers does it)
    MIN = "min"


class Access(enum.IntFlag):
    R = 1
    W = 2


@dataclass
class Counts:
    n: int = 0
    tensor: Any = None
    later: Any = field(init=False)

    def __post_init__(self) -> None:
        raise AssertionError("__init__ must not run while decoding")


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Any


class Text(str):
    pass


class Outer:
    class Inner(enum.Enum):
        A = 1

    @staticmethod
    def helper() -> None: ...


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, types, orders and strides included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if (a.dtype, a.shape, a.requires_grad) != (b.dtype, b.shape, b.requires_grad):
            return False
        if a.numel() and a.stride() != b.stride():
            return False
        x, y = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (a, b))
        return torch.equal(x, y)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return bits(a) == bits(b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, random.Random):
        return a.getstate() == b.getstate()
    if isinstance(a, np.random.Generator):
        return repr(a.bit_generator.state) == repr(b.bit_generator.state)
    if isinstance(a, np.random.RandomState):
        return repr(a.get_state(legacy=False)) == repr(b.get_state(legacy=False))
    if isinstance(a, Frozen):
        return same(a.x, b.x)
    if is_dataclass(a):
        return same(vars(a), vars(b))
    return a == b


NUMBERS = st.one_of(st.integers(), st.floats(), st.complex_numbers(), st.booleans(), st.none())
TIMES = st.one_of(
    st.timedeltas(), st.datetimes(), st.datetimes(timezones=st.just(dt.UTC)), st.dates(), st.times()
)
KEYS = st.one_of(
    st.text(),
    st.integers(),
    st.booleans(),
    st.none(),
    st.binary(),
    st.tuples(st.integers(), st.text()),
)
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits at all in any dtype, with any order of the dimensions."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        raw = bytes(one & 1 for one in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(shape).permute(draw(st.permutations(range(len(shape)))))


ARRAYS = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes()),
    hnp.array_shapes(min_dims=0),
)
LEAVES = st.one_of(
    NUMBERS,
    TIMES,
    tensors(),
    ARRAYS,
    st.text(),
    st.binary(),
    st.binary().map(bytearray),
    st.sampled_from(
        [*Color, *Mode, *Outer.Inner, Access.R, Access.R | Access.W, Access(0), re.I | re.M]
    ),
    st.sampled_from(
        [
            torch.float16,
            torch.channels_last,
            torch.strided,
            torch.device("cuda", 1),
            torch.Size([1, 2]),
        ]
    ),
    st.sampled_from([torch.nn.Linear, gc.collect, Outer, Outer.helper, same, int]),
    st.builds(range, st.integers(0, 9), st.integers(-9, 9)),
    st.builds(slice, st.none() | st.integers(), st.integers()),
    st.builds(pathlib.Path, st.sampled_from(["a", "/b/c", "."])),
    st.builds(pathlib.PureWindowsPath, st.just("c:\\x")),
    st.sets(KEYS),
    st.frozensets(st.text()),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(st.sampled_from(["$", "v", "key", "a.b", "a"]), inner),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(0, 2)),
        st.builds(Pair, inner, inner),
        st.builds(Typed, st.integers(), inner),
        st.builds(Frozen, inner),
    ),
    max_leaves=8,
)


JSON = st.recursive(
    NUMBERS.filter(lambda one: not isinstance(one, complex)) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "$",
                    "items",
                    "kind",
                    "key",
                    "hex",
                    "bits",
                    "name",
                    "class",
                    "fields",
                    "shape",
                    "state",
                ]
            ),
            inner,
        )
    ),
    max_leaves=8,
)
TAGS = [
    "tensor",
    "ndarray",
    "npscalar",
    "nprandom",
    "dict",
    "deque",
    "enum",
    "namedtuple",
    "dataclass",
    "reference",
    "lost",
    "float",
    "int",
    "path",
    "random",
    "Generator",
    "device",
    "torch",
    "Size",
    "range",
    "x",
]
