"""A safetensors file of tensors whose lengths are known only when they have been written.

Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flor_plugins.records import JsonObject

LONGEST = 10**15  # no offset in a file has more digits


class StreamingSafetensors:
    """A safetensors file to which tensors are added one after the other.

    The header before them is written last, in the place kept for it.

    shapes: of all tensors that will be added, by name; any may become a row of bytes instead. A
    context manager: a file that is left without an error is whole.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self._header: JsonObject = {}
        self._end = 0
        widest = {
            name: _entry("F8_E4M3FNUZ", [*shape, LONGEST], LONGEST, LONGEST)
            for name, shape in shapes.items()
        }
        length = len(_text(widest))
        self._room = length + -length % 8
        self._handle = os.open(path, os.O_WRONLY)
        os.lseek(self._handle, 8 + self._room, os.SEEK_SET)

    def __enter__(self) -> StreamingSafetensors:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                text = _text(self._header).ljust(self._room)
                os.pwrite(self._handle, len(text).to_bytes(8, "little") + text, 0)
        finally:
            os.close(self._handle)

    def add(
        self,
        name: str,
        pieces: Iterable[bytes | memoryview],
        dtype: str,
        shape: Iterable[int] | None,
    ) -> None:
        """Write a tensor.

        dtype: as safetensors calls it. shape: None for as many items of a byte as there are.
        """
        start = self._end
        for piece in pieces:
            self._end += len(piece)
            _write_all(self._handle, memoryview(piece))
        self._header[name] = _entry(
            dtype, [self._end - start] if shape is None else list(shape), start, self._end
        )


def _entry(dtype: str, shape: list[int], start: int, end: int) -> JsonObject:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _text(header: JsonObject) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _write_all(handle: int, memory: memoryview) -> None:
    while memory:
        memory = memory[os.write(handle, memory) :]
