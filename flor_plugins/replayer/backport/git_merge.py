"""Git's own three-way merge, taken only if nothing but the edit's statements came in."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.insert_proof import ExtraStatement, extras
from flor_plugins.replayer.backport.syntax import one_by_one, parsed, shape

TIMEOUT_S = 60


def merged(path: str, *, base: str, edited: str, old: str) -> str | None:
    """`old` with the difference from `base` to `edited`, or None where git sees a conflict.

    The result is `old`'s very syntax tree with the statements put in that `edited` has more than
    `base`, each in the function and block where it stands in `edited`; else None, too. Raises
    CannotCarry if git can't be started.
    """
    text = _merge_file(path, base=base, edited=edited, old=old)
    trees = [parsed(path, one or "") for one in (base, edited, old, text)]
    if text is None or None in trees:
        return None
    base_tree, edited_tree, old_tree, tree = trees
    assert (
        base_tree is not None
        and edited_tree is not None
        and old_tree is not None
        and tree is not None
    )
    meant, came = extras(base_tree, edited_tree), extras(old_tree, tree)
    if meant is None or came is None or _places(meant) != _places(came):
        return None
    return text


def _places(found: Sequence[ExtraStatement]) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
    return sorted(
        (one.scope, one.block, shape(node)) for one in found for node in one_by_one([one.node])
    )


def _merge_file(path: str, *, base: str, edited: str, old: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="flor-merge-") as folder:
        files = [Path(folder, name) for name in ("old", "base", "edited")]
        for file, text in zip(files, (old, base, edited), strict=True):
            file.write_bytes(text.encode())
        command = ["git", "merge-file", "-p", "--diff3", "-q", *map(str, files)]
        try:
            done = subprocess.run(
                command, capture_output=True, cwd=folder, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotCarry(
                f"the edit of {path} was to be merged into an old version; git can't be run: "
                f"{error}. Install git."
            ) from error
    return done.stdout.decode() if done.returncode == 0 else None
