"""The store of a bench: what earlier ones left there is given up."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress

from flor_plugins.errors import SnapshotError
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import find_run, list_runs


def clear(store: Store, projects: Collection[str] | None = None) -> None:
    """Give up the runs of an earlier bench: those of some recipes, or all that there is."""
    for run in list_runs(store):
        if projects is None or run.project in projects:
            forget(store, run.run_id)
    if projects is None:
        shutil.rmtree(store.root, ignore_errors=True)


def forget(store: Store, run_id: str) -> None:
    """Give up a run of a bench and what keeps its code alive."""
    run = find_run(store, run_id)
    if run.code is not None:
        with suppress(
            SnapshotError
        ):  # its repository is gone: then nothing of it is kept alive there
            snapshot.forget(run.code, run.run_id)
    shutil.rmtree(run.path)
