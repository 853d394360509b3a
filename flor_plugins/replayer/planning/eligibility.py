"""Can a run be replayed at all?"""

from __future__ import annotations

from flor_plugins.records import Run
from flor_plugins.store.checkpoints import list_checkpoints


def why_not(run: Run) -> str | None:
    """Why it can't be; None if it can, in some way."""
    unable = [one for one in run.obstacles if one.grade == "none"]
    if unable:
        return f"{unable[0].reason}. {unable[0].remedy}"
    if run.code is None:
        return "its code was not recorded"
    if run.launch.kind == "interactive":
        return "it was started from a prompt or a notebook"
    if not list_checkpoints(run.path):
        return "it has no whole checkpoint"
    return None
