"""Which files are code, and which of them may go into a snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

MAX_FILE_BYTES = 10_000_000
MAX_FILES = 5_000
MAX_TOTAL_BYTES = 100_000_000
MAX_SCANNED = 200_000  # a script in a home folder must not make us walk a whole disk
CODE_SUFFIXES = frozenset(
    (".py", ".yaml", ".yml", ".json", ".toml", ".cfg", ".ini", ".txt", ".sh", ".md", ".ipynb")
)
SECRETS = (".env", ".env.*", "*.pem", "*.key", "id_rsa*", ".netrc", "credentials*", "secrets*")
NOT_CODE_FOLDERS = frozenset(("node_modules", "__pycache__"))


def why_unchanged(path: Path) -> str:
    """Return why the change of a tracked file stays out; "" if it goes in.

    Its committed version stays in.
    """
    size = _size(path)
    if size > MAX_FILE_BYTES:
        return f"{_megabytes(size)}, over 10 MB: its change is left out"
    is_locked = path.exists() and not os.access(path, os.R_OK)
    return "not readable: its change is left out" if is_locked else ""


def within_limits(root: Path, paths: Iterable[str], left_out: list[str]) -> list[str]:
    """Those untracked files that may go into a snapshot; the others are added to left_out.

    Code first, so that it is data that is cut where there is too much.
    """
    kept, total, cut = [], 0, 0
    for path in sorted(
        paths, key=lambda path: (Path(path).suffix.lower() not in CODE_SUFFIXES, path)
    ):
        size = _size(root / path)
        why = _why_not(root / path, size, is_folder=path.endswith("/"))
        if why:
            left_out.append(f"{path} ({why})")
        elif len(kept) >= MAX_FILES or total + size > MAX_TOTAL_BYTES:
            cut += 1
        else:
            kept.append(path)
            total += size
    if cut:
        left_out.append(
            f"{cut} more files (over {MAX_FILES} files or {_megabytes(MAX_TOTAL_BYTES)} in all)"
        )
    return kept


def _why_not(path: Path, size: int, is_folder: bool) -> str:
    if is_folder:  # git lists a folder, not its files, where another repository begins
        return "a git repository of its own"
    if any(fnmatch(path.name.lower(), pattern) for pattern in SECRETS):
        return "looks like a secret"
    if size > MAX_FILE_BYTES:
        return f"{_megabytes(size)}, over 10 MB"
    return "" if os.access(path, os.R_OK) or path.is_symlink() else "not readable"


def scan(folder: Path, store: Path, left_out: list[str]) -> list[str]:
    """Return the code-like files beneath a folder without git, relative to it.

    Nested repositories end with /.
    """
    found, scanned = [], 0
    for here, folders, files in os.walk(folder):
        inside = os.path.relpath(here, folder)
        scanned += len(files) + len(folders)
        if scanned > MAX_SCANNED:
            left_out.append(f"{inside} and what follows (over {MAX_SCANNED} files to look at)")
            break
        nested = [name for name in folders if os.path.exists(os.path.join(here, name, ".git"))]
        found += [os.path.normpath(os.path.join(inside, name)) + "/" for name in nested]
        kept = [
            name for name in folders if name not in nested and _may_hold_code(here, name, store)
        ]
        folders[:] = sorted(kept)
        code = [name for name in files if os.path.splitext(name)[1].lower() in CODE_SUFFIXES]
        found += [os.path.normpath(os.path.join(inside, name)) for name in code]
    return found


def _may_hold_code(here: str, name: str, store: Path) -> bool:
    path = Path(here, name)
    hidden = name.startswith(".") or name in NOT_CODE_FOLDERS
    return not (hidden or path == store or (path / "pyvenv.cfg").exists())


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone since git listed it, or deleted by the user: nothing to store
        return 0


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.0f} MB"
