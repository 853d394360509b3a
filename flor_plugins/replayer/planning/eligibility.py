"""Whether a run can be replayed at all."""

from __future__ import annotations

from flor_plugins.records import Run
from flor_plugins.store.checkpoints import list_checkpoints


def why_not(run: Run) -> str | None:
    """Return why a run can't be replayed; None if it can, in some way."""
    for obstacle in run.obstacles:
        if obstacle.grade == "none":
            return f"{obstacle.reason}. {obstacle.remedy}"
    if run.code is None:
        return "its code was not recorded"
    if run.launch.kind == "interactive":
        return "it was started from a prompt or a notebook"
    if not list_checkpoints(run.path):
        return "it has no whole checkpoint"
    return None
