"""Metric values as JSON and back, without pickle and without loss.

What JSON can't say is an object with a "$" key: {"$": "float", "v": "nan"},
{"$": "dict", "v": {...}}, {"$": "media", "kind": "array", "path": "media/<sha16>.npy"}.
"""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

from flor_plugins.errors import EncodingError, MissingDependency, StoreError
from flor_plugins.store.files import whole_file

MediaKind = Literal["array", "image", "table"]
SUFFIXES: Mapping[str, str] = {"array": ".npy", "image": ".png", "table": ".parquet"}
# Beyond this a journal line is read more slowly than a file of its own.
LARGEST_INLINE = 4096
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Media:
    """A value that lies in a file of its own: a large array, an image or a table."""

    kind: MediaKind
    path: Path

    def load(self) -> Any:
        """Return the numpy array, PIL image or pandas DataFrame.

        Raises StoreError if the file is gone or torn.
        """
        if not self.path.is_file():
            raise StoreError(
                f"the {self.kind} of a metric was asked for, and its file is gone: {self.path}. "
                f"Restore it, or replay the metric."
            )
        try:
            return _LOADERS[self.kind](self.path)
        except (ValueError, OSError) as error:
            raise StoreError(
                f"the {self.kind} at {self.path} can't be read: {error}. Restore the file, or "
                f"replay the metric."
            ) from error


def encode_value(value: Any, media: Path) -> Any:
    """The JSON for a metric's value; what is large goes into the folder `media`.

    Numbers, strings, lists, tuples (they come back as lists), dicts with string
    keys, numpy and torch scalars and arrays (nested lists when small), PIL images
    and pandas DataFrames. EncodingError for anything else, None included.
    Reading a tensor of a device waits for that device.
    """
    try:
        return _encode(value, media)
    except RecursionError as error:
        raise EncodingError(
            f"a metric returned a {type(value).__name__} that is nested without end or too deeply. "
            f"Return numbers, strings, lists or an array."
        ) from error


def decode_value(encoded: Any, media: Path) -> Any:
    """The inverse of `encode_value`; what lies in a file comes back as `Media`, not loaded."""
    if isinstance(encoded, list):
        return [decode_value(one, media) for one in encoded]
    if not isinstance(encoded, dict):
        return encoded
    match encoded:
        case {"$": "float", "v": str(text)} if text in NOT_FINITE:
            return NOT_FINITE[text]
        case {"$": "dict", "v": dict(items)}:
            return {key: decode_value(one, media) for key, one in items.items()}
        case {"$": "media", "kind": str(kind), "path": str(path)} if kind in SUFFIXES:
            # Only the last part counts, so that a crafted journal can't point outside of its run.
            return Media(kind, media / Path(path).name)  # pyright: ignore[reportArgumentType]
    raise StoreError(
        f"a metric's value has a form that this version does not know: {str(encoded)[:80]} "
        f"(media: {media}). "
        f"Update flor_plugins, or repair the journal."
    )


def _encode(value: Any, media: Path) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _float(float(value))
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, also of a string enum
    if isinstance(value, list | tuple):
        return [_encode(one, media) for one in value]
    if isinstance(value, Mapping):
        return {"$": "dict", "v": {_key(key): _encode(one, media) for key, one in value.items()}}
    if isinstance(value, Media):
        return _refer(value, media)
    for module, name, encode in _FOREIGN:
        # A value of a library's type means that the library is loaded: no import here.
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(value, kind):
            return encode(value, media)
    raise _refused(value)


def _float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return {"$": "float", "v": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise EncodingError(
        f"a metric returned a dict with the key {key!r} of type {type(key).__name__}, and JSON "
        f"knows "
        f"only text as keys. Return str(key) instead."
    )


def _refused(value: Any, why: str = "") -> EncodingError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return EncodingError(
        f"a metric returned a value of type {kind}, which can't be stored without pickle{why}. "
        f"Return a number, a string, a list, a dict with text as keys, an array, a PIL image "
        f"or a DataFrame."
    )


def _encode_tensor(value: Any, media: Path) -> Any:
    torch = sys.modules["torch"]
    try:
        tensor = value.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        tensor = tensor.resolve_conj().resolve_neg().cpu()
        if tensor.is_floating_point() and tensor.dtype not in (
            torch.float16,
            torch.float32,
            torch.float64,
        ):
            tensor = tensor.float()  # numpy has no bfloat16 and no float8
        array = tensor.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise _refused(value, f" ({error})") from error
    return _encode_array(array, media)


def _encode_array(value: Any, media: Path) -> Any:
    import numpy

    if value.dtype.kind not in "biufU" or isinstance(value, numpy.ma.MaskedArray):
        raise _refused(value, f" (dtype {value.dtype})")
    if value.size > LARGEST_INLINE:
        return _store("array", media, partial(numpy.save, arr=value, allow_pickle=False))
    if value.dtype.kind == "f":
        value = value.astype(numpy.float64)  # else a longdouble stays what it is in tolist
    return _encode(value.tolist(), media)


def _encode_scalar(value: Any, media: Path) -> Any:
    import numpy

    return _encode_array(numpy.asarray(value), media)


def _encode_image(value: Any, media: Path) -> Any:
    try:
        return _store("image", media, partial(value.save, format="PNG"))
    except (OSError, ValueError) as error:
        raise _refused(value, f" as PNG ({error}); try image.convert('RGB')") from error


def _encode_table(value: Any, media: Path) -> Any:
    import pyarrow

    try:
        return _store("table", media, partial(value.to_parquet, engine="pyarrow"))
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise _refused(value, f" as Parquet ({error})") from error


def _store(kind: str, media: Path, write: Callable[[io.BytesIO], Any]) -> dict[str, str]:
    """Write once per content: the name is the hash, so the same value twice is one file."""
    buffer = io.BytesIO()
    write(buffer)
    content = buffer.getvalue()
    name = hashlib.sha256(content).hexdigest()[:16] + SUFFIXES[kind]
    if not (media / name).exists():
        media.mkdir(parents=True, exist_ok=True)
        with whole_file(media / name) as scratch:
            scratch.write_bytes(content)
    return {"$": "media", "kind": kind, "path": f"media/{name}"}


def _refer(value: Media, media: Path) -> dict[str, str]:
    """A value that was read from a journal is written again: to another run, it is copied."""
    if value.path.parent == media:
        return {"$": "media", "kind": value.kind, "path": f"media/{value.path.name}"}
    content = value.path.read_bytes()
    return _store(value.kind, media, methodcaller("write", content))


def _load_array(path: Path) -> Any:
    import numpy

    return numpy.load(path, allow_pickle=False)


def _load_table(path: Path) -> Any:
    import pandas

    return pandas.read_parquet(path, engine="pyarrow")


def _load_image(path: Path) -> Any:
    try:
        # Optional: it is no dependency of ours.
        from PIL import Image  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the image {path} was asked for, and PIL is not installed: pip install pillow"
        ) from error
    with Image.open(path) as image:
        image.load()
        return image


_LOADERS: Mapping[str, Callable[[Path], Any]] = {
    "array": _load_array, "image": _load_image, "table": _load_table,
}  # fmt: skip
_FOREIGN: tuple[tuple[str, str, Callable[[Any, Path], Any]], ...] = (
    ("torch", "Tensor", _encode_tensor),
    ("numpy", "ndarray", _encode_array),
    ("numpy", "generic", _encode_scalar),
    ("PIL.Image", "Image", _encode_image),
    ("pandas", "DataFrame", _encode_table),
)
