"""Hindsight logging for PyTorch Lightning, Hugging Face Trainer and hand-written loops.

    from flor_plugins.hf import FlorCallback            # or flor_plugins.lightning
    trainer = Trainer(..., callbacks=[FlorCallback()])

    import flor_plugins as flor
    flor.checkpoints(net, optimizer)                    # a loop of one's own
    for epoch in flor.loop("epoch", range(n)): ...

    flor.replay(["cf_matrix"], "cf_matrix.isna()")
    flor.dataframe("cf_matrix", "val_acc")

Importing this package loads neither torch, pandas nor a trainer: each name below
is looked up when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flor_plugins.api import (
        checkpoint,
        dataframe,
        first,
        import_flordb,
        query,
        replay,
        runs,
        sql,
        upload,
        verify,
    )
    from flor_plugins.hooks.arg import arg
    from flor_plugins.hooks.log import log
    from flor_plugins.hooks.metric import Context, Metric, metric
    from flor_plugins.loops.api import checkpointing, checkpoints, commit, loop

_HOMES = {
    "runs": "flor_plugins.api",
    "dataframe": "flor_plugins.api",
    "sql": "flor_plugins.api",
    "query": "flor_plugins.api",
    "replay": "flor_plugins.api",
    "first": "flor_plugins.api",
    "verify": "flor_plugins.api",
    "checkpoint": "flor_plugins.api",
    "import_flordb": "flor_plugins.api",
    "upload": "flor_plugins.api",
    "log": "flor_plugins.hooks.log",
    "arg": "flor_plugins.hooks.arg",
    "loop": "flor_plugins.loops.api",
    "checkpoints": "flor_plugins.loops.api",
    "checkpointing": "flor_plugins.loops.api",
    "commit": "flor_plugins.loops.api",
    "metric": "flor_plugins.hooks.metric",
    "Metric": "flor_plugins.hooks.metric",
    "Context": "flor_plugins.hooks.metric",
}

__all__ = [
    "Context",
    "Metric",
    "arg",
    "checkpoint",
    "checkpointing",
    "checkpoints",
    "commit",
    "dataframe",
    "first",
    "import_flordb",
    "log",
    "loop",
    "metric",
    "query",
    "replay",
    "runs",
    "sql",
    "upload",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'flor_plugins' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
