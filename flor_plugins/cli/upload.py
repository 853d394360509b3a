"""`upload`: runs and their code to an object store."""

from __future__ import annotations

from collections.abc import Sequence

from flor_plugins import api


def upload(url: str, runs: Sequence[str] | None) -> int:
    """Exit status 0; what is there already is not put again."""
    put = api.upload(url, runs or None)
    print(f"{len(put)} files put into {url}; read and replay them with FLOR_DIR={url}")
    return 0
