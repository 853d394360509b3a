"""Git's own three-way merge, taken only if nothing but the edit's statements came in."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.insert_proof import ExtraStatement, extras_of_text
from flor_plugins.replayer.backport.syntax import Nesting, shape, with_single_imports

TIMEOUT_S = 60


def merged(path: str, *, base: str, edited: str, old: str) -> str | None:
    """Return `old` with the difference from `base` to `edited`; None where git sees a conflict.

    The result is `old`'s very syntax tree with the statements put in that `edited` has more than
    `base`, each in the function and block where it stands in `edited`; else None, too. Raises
    CannotCarry if git can't be started.
    """
    text = _merge_file(path, base=base, edited=edited, old=old)
    if text is None:
        return None
    meant = _places(extras_of_text(path, base, edited))
    return text if meant is not None and meant == _places(extras_of_text(path, old, text)) else None


def _places(
    extras: Sequence[ExtraStatement] | None,
) -> list[tuple[Nesting, Nesting, str]] | None:
    if extras is None:
        return None
    return sorted(
        (extra.scope, extra.block, shape(node))
        for extra in extras
        for node in with_single_imports([extra.node])
    )


def _merge_file(path: str, *, base: str, edited: str, old: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="flor-merge-") as folder:
        files = [Path(folder, name) for name in ("old", "base", "edited")]
        for file, text in zip(files, (old, base, edited), strict=True):
            file.write_bytes(text.encode())
        command = ["git", "merge-file", "-p", "--diff3", "-q", *map(str, files)]
        try:
            process = subprocess.run(
                command, capture_output=True, cwd=folder, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotCarry(
                f"the edit of {path} was to be merged into an old version; git can't be run: "
                f"{error}. Install git."
            ) from error
    return process.stdout.decode() if process.returncode == 0 else None
