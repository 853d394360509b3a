"""Data that a recipe has prepared once: kept in the user's cache folder, never in the repository."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def folder(recipe: str) -> Path:
    """`flor-recipes/RECIPE` in the user's cache folder (XDG_CACHE_HOME). It may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flor-recipes" / recipe


def digest(*parts: str) -> str:
    """16 hexadecimal digits that change with all that prepared data depends on: texts, code, versions of packages."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def text(path: Path, make: Callable[[], str]) -> str:
    """The text of a prepared file; made where there is none."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    made = make()
    _keep(path, lambda written: written.write_text(made, encoding="utf-8"))
    return made


def tensors(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a prepared safetensors file, on the CPU; made where there is none."""
    if path.is_file():
        return load_file(path)
    made = make()
    _keep(path, lambda written: save_file(made, written))
    return made


def _keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole. Where it can't be written, the next run makes it again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as scratch:
            written = Path(scratch) / path.name
            write(written)
            os.replace(written, path)
