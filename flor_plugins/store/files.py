"""A file is whole or absent: written beside its target, fsynced, renamed."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flor_plugins.errors import StoreError

PARTIAL = ".partial-"  # what begins so was never finished: readers pass over it, gc removes it


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a folder: only one process or thread is in such a block at a time.

    The lock is on the folder itself: nothing is left in it, and a process that is killed gives
    it up. Raises OSError if the folder can't be opened.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(
            OSError
        ):  # some network file systems have no locks; there one must not do two things at once
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a scratch file beside `path` that becomes `path` only if the block succeeds.

    An older `path` is replaced in one step. Readers that have it open keep the old one.
    """
    make_folder(path.parent)
    scratch = scratch_path(path)
    # made here, by open and not mkstemp, so that the umask decides who may read it
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = scratch.stat().st_mode & 0o777
    try:
        yield scratch
        scratch.chmod(mode)  # some writers replace the scratch file by a private one
        sync(scratch)
        scratch.replace(path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes `path` only if the block succeeds.

    Raises StoreError if `path` exists: a folder that a reader may have mapped is
    never replaced. All files get the modes that the umask gives.
    """
    if path.exists():
        raise _exists(path)
    make_folder(path.parent)
    scratch = scratch_path(path)
    scratch.mkdir()
    mode = scratch.stat().st_mode & 0o666
    try:
        yield scratch
        _sync_tree(scratch, mode)
        try:
            scratch.rename(path)
        except OSError as error:
            raise (_exists(path) if path.exists() else error) from error
        sync(path.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_json(path: Path, obj: Any, indent: int | None = 1) -> None:
    """Write `obj` as strict JSON (no NaN), whole. Raises ValueError or TypeError if it is none."""
    # encoded first: what can't be written must not leave a scratch file behind
    text = json.dumps(obj, allow_nan=False, indent=indent)
    with whole_file(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises StoreError, naming the path, if it is absent, torn or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"a file of the store was asked for and is not there: {path}") from error
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"a file of the store can't be read: {why}, at {path}") from error
    except ValueError as error:
        raise StoreError(
            f"a file of the store is torn or was altered ({error}): {path}. "
            f"Restore it from a copy, or delete the folder it lies in."
        ) from error


def scratch_path(path: Path) -> Path:
    """Return a new name in the same folder that readers pass over."""
    # a short name: the target's own may already be as long as the file system allows
    return path.with_name(f"{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")


def _exists(path: Path) -> StoreError:
    return StoreError(
        f"{path} can't be written: it exists already. Delete it first to make it again."
    )


def _sync_tree(folder: Path, mode: int) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)
        sync(path)
    sync(folder)


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, and sync their names.

    Else a machine that loses its power forgets them.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync(one.parent)


def sync(path: Path) -> None:
    """Have the disk hold what a file or a folder is now."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows can't open folders; the rename is as durable as it gets there
    try:
        os.fsync(handle)
    except OSError:
        # some network and FUSE file systems refuse fsync on folders, none on files
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
