"""Files of an edit in a sandbox: what is there is replaced, and nothing outside is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from flor_plugins.replayer.backport.snapshots import as_bytes


def lay(sources: Mapping[str, str], sandbox: Path) -> None:
    """Write files into a sandbox: path beneath its top to text. Links on the way become files
    and folders of its own.

    What a link leads to is the user's, or another version's: it is never written through.
    """
    for path, text in sources.items():
        folder = sandbox
        for part in PurePosixPath(path).parts[:-1]:
            folder = folder / part
            _make_own(folder)
        target = sandbox / path
        scratch = target.with_name(f".{target.name}.flor")
        scratch.write_bytes(as_bytes(text))
        os.replace(scratch, target)  # a link is replaced, not followed


def _make_own(folder: Path) -> None:
    """A folder of the sandbox; of a link to one a folder with links to what lies in it."""
    if folder.is_symlink():
        linked = folder.resolve()
        folder.unlink()
        folder.mkdir()
        for entry in linked.iterdir() if linked.is_dir() else ():
            (folder / entry.name).symlink_to(entry)
    elif not folder.is_dir():
        folder.mkdir()
