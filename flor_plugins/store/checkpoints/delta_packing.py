"""Tensors made smaller without loss: a delta to another tensor, sorted, in planes of bytes, zstd.

A method is a comma-separated list of steps, in the order in which they are taken:

  delta    the items are seen as unsigned integers of `width` bytes, those of the base are
           subtracted (wrapping around), and the sign goes to the lowest bit (0, -1, 1, -2 ...
           become 0, 1, 2, 3 ...). Weights that moved little have zeros in front.
  sort     the items of a chunk are put in the order of the nine highest bits of the base, less
           the first: the exponent of a float32 or bfloat16. How far an item moved, in units of
           its last place, depends on its exponent; equals side by side are 2 to 3 % smaller. A
           reader that has the base knows the order: it is not stored.
  shuffle  all lowest bytes, then all second bytes ...: exponents are alike, the ends of
           mantissas are noise.
  zstd     each plane in segments of 32 KiB, each on its own: noise is stored as it is and costs
           nothing to read.

The tensor is packed in chunks of 1 MiB, so that neither side needs memory for more. A packed
tensor is its chunks, zeros that make its length a multiple of 8, and the length of each chunk
as uint32. A chunk is a uint16 for each segment of each plane, lowest byte first, and the
segments: a length of 0 stands for zeros, the full length for bytes as they are, less for one
zstd frame. All numbers are little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow

PLAIN, DELTA, SORTED = "shuffle,zstd", "delta,shuffle,zstd", "delta,sort,shuffle,zstd"
METHODS = (PLAIN, DELTA, SORTED)
CHUNK = 1 << 20  # bytes
ALIGNED = 8  # bytes; so that what follows in a file is aligned to its items
# bytes of a plane; sorted items want tables of zstd of their own, half of it is no smaller
SEGMENT = 1 << 15
LEVEL = 1  # higher ones look for repetitions, which are not there: slower and no smaller
WIDTHS = {
    "float64": 8,
    "int64": 8,
    "uint64": 8,
    "float32": 4,
    "complex64": 4,
    "int32": 4,
    "uint32": 4,
}
WIDTHS |= {"float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2}
WORTH = 0.99  # of two methods that differ by less, the one that is faster to undo

Array = np.ndarray[Any, Any]


def width_of(dtype: str) -> int:
    """Bytes of the integers that the items of a dtype are seen as."""
    return WIDTHS.get(dtype, 1)


def choose(memory: memoryview, width: int, base: memoryview | None = None) -> tuple[str, float]:
    """Return the method for a tensor, and about how many bytes it makes of one.

    It is tried on the chunk in the middle.
    """
    start = len(memory) // CHUNK // 2 * CHUNK
    items = _items(memory[start : start + CHUNK], width)
    origin = None if base is None else _items(base[start : start + CHUNK], width)
    best, least = PLAIN, len(_chunk(items, PLAIN, None))
    for method in METHODS[1:] if origin is not None else ():
        nbytes = len(_chunk(items, method, origin))
        if nbytes < WORTH * least:
            best, least = method, nbytes
    return best, least / max(1, items.nbytes)


def pack(
    memory: memoryview, width: int, method: str, base: memoryview | None = None
) -> Iterator[bytes]:
    """The pieces of a packed tensor.

    base: a tensor of the same dtype and shape, where the method has a delta.
    """
    lengths = []
    for start in range(0, len(memory), CHUNK):
        items = _items(memory[start : start + CHUNK], width)
        origin = None if base is None else _items(base[start : start + CHUNK], width)
        packed = _chunk(items, method, origin)
        lengths.append(len(packed))
        yield packed
    yield bytes(-(sum(lengths) + 4 * len(lengths)) % ALIGNED) + np.array(lengths, "<u4").tobytes()


def unpack(packed: memoryview, width: int, method: str, into: memoryview) -> None:
    """Undo `pack`.

    into: memory of the tensor's length that holds the base, if there is one.

    Raises ValueError if the bytes are not what `pack` makes; what came out is to be hashed in
    any case.
    """
    spans = chunks(packed[len(packed) - tail(len(into)) :], len(into))
    for start, (begin, end) in zip(range(0, len(into), CHUNK), spans, strict=True):
        unpack_chunk(packed[begin:end], width, method, into[start : start + CHUNK])


def tail(nbytes: int) -> int:
    """How many of a packed tensor's last bytes hold the lengths of its chunks.

    nbytes: of the tensor itself.
    """
    return 4 * -(-nbytes // CHUNK)


def chunks(packed_tail: memoryview | bytes, nbytes: int) -> list[tuple[int, int]]:
    """Where the chunks of a packed tensor begin and end in it."""
    if len(packed_tail) != tail(nbytes):
        raise ValueError("a packed tensor is shorter than it should be")
    ends = np.cumsum(np.frombuffer(packed_tail, "<u4"), dtype=np.int64)
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=False))


def unpack_chunk(packed: memoryview, width: int, method: str, into: memoryview) -> None:
    """One chunk of a tensor; as `unpack`."""
    items = _items(into, width)
    if method == PLAIN:
        _join(packed, items)
    elif method in METHODS:
        change = np.empty_like(items)
        _join(packed, change)
        one = items.dtype.type(1)
        sign = change & one
        np.negative(sign, out=sign)
        change >>= one
        change ^= sign
        if method == SORTED:
            order = _order(items)
            sign[order] = change  # its memory is free
            change = sign
        items += change
    else:
        raise ValueError(
            f"it is packed with {method!r}, which is none of {', '.join(map(repr, METHODS))}"
        )


def _chunk(items: Array, method: str, base: Array | None) -> bytes:
    if method != PLAIN:
        assert base is not None
        change = items - base
        one, highest = change.dtype.type(1), change.dtype.type(8 * change.itemsize - 1)
        sign = change >> highest
        np.negative(sign, out=sign)
        change <<= one
        change ^= sign
        items = change[_order(base)] if method == SORTED else change
    return _split(items)


def _order(base: Array) -> Array:
    """The items of a chunk by the highest bits of the base, equals as they come."""
    width = base.itemsize
    key = base >> base.dtype.type(8 * width - 9) if width > 1 else base
    # numpy sorts uint32 with vector instructions: twice as fast as the indirect sort of single
    # bytes
    place = (key & base.dtype.type(255)).astype(np.uint32)
    place <<= np.uint32(24)
    place |= np.arange(len(base), dtype=np.uint32)
    place.sort()
    place &= np.uint32((1 << 24) - 1)
    return place


def _split(items: Array) -> bytes:
    codec = pyarrow.Codec("zstd", LEVEL)
    lengths: list[int] = []
    segments: list[bytes] = []
    for number in range(items.itemsize):
        plane = np.ascontiguousarray(_planes(items)[:, number])
        for start in range(0, len(plane), SEGMENT):
            segment = plane[start : start + SEGMENT]
            packed = codec.compress(segment, asbytes=True) if segment.any() else b""
            segments.append(packed if len(packed) < len(segment) else segment.tobytes())
            lengths.append(len(segments[-1]))
    return np.array(lengths, "<u2").tobytes() + b"".join(segments)


def _join(packed: memoryview, items: Array) -> None:
    codec, planes = pyarrow.Codec("zstd"), _planes(items)
    count, each = items.itemsize, -(-len(items) // SEGMENT)
    begin = 2 * count * each
    if len(packed) < begin:
        raise ValueError("a chunk of a packed tensor is shorter than it should be")
    lengths = np.frombuffer(packed[:begin], "<u2").reshape(count, each).tolist()
    for number, ones in enumerate(lengths):
        if sum(ones) == len(items):  # nothing of this plane is packed
            end = begin + len(items)
            planes[:, number] = np.frombuffer(packed[begin:end], np.uint8)
            begin = end
            continue
        for start, length in zip(range(0, len(items), SEGMENT), ones, strict=True):
            size, end = min(SEGMENT, len(items) - start), begin + length
            planes[start : start + size, number] = _segment(
                packed[begin:end], size, codec.decompress
            )
            begin = end


def _segment(packed: memoryview, size: int, decompress: Callable[..., Any]) -> Array | int:
    if not packed:
        return 0
    if len(packed) < size:
        try:
            packed = memoryview(decompress(packed, decompressed_size=size))
        except OSError as error:
            raise ValueError(f"a chunk of a packed tensor can't be read: {error}") from error
    return np.frombuffer(packed, np.uint8, size)


def _items(memory: memoryview, width: int) -> Array:
    return np.frombuffer(memory, f"<u{width}")


def _planes(items: Array) -> Array:
    return items.view(np.uint8).reshape(-1, items.itemsize)
