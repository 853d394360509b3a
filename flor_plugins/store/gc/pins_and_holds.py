"""What must not be evicted, and why.

That are pinned runs, runs that are going on, and what unfinished replays start from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flor_plugins.records import JsonObject, Position, RecordingProcess, Run
from flor_plugins.store.files import read_json, write_json
from flor_plugins.store.gc.leftovers import is_being_written
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import is_gone

PINNED = "pinned.json"
# A replay that does not say which process does it is taken to be going on as long as something
# of it is so new.
SILENT_S = 3600.0


@dataclass(frozen=True, slots=True)
class ReplayHolds:
    """What replays hold.

    runs: run_id to the reason why nothing of it may go; positions: of single checkpoints.
    """

    runs: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, Mapping[Position, str]] = field(default_factory=dict)


def pin(run: Run) -> None:
    """Keep all checkpoints of a run, whatever the budget."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    write_json(run.path / PINNED, {"format": 1, "pinned_at": now})


def unpin(run: Run) -> None:
    """The inverse of `pin`; of a run that is not pinned nothing is changed."""
    (run.path / PINNED).unlink(missing_ok=True)


def is_pinned(run_path: Path) -> bool:
    """Say whether all checkpoints of a run are kept, whatever the budget."""
    return (run_path / PINNED).exists()


def why_held(run: Run, holds: ReplayHolds) -> str:
    """Why nothing of a run may be given up; empty if something may."""
    if is_pinned(run.path):
        return "it is pinned"
    if run.status == "running":
        return f"it is running on {run.process.host}"
    if is_being_written(run):
        return "a process is still writing checkpoints of it"
    return holds.runs.get(run.run_id, "")


def held_by_replays(store: Store, *, abandon: bool = False) -> ReplayHolds:
    """What the unfinished replays of a store need.

    One that is going on holds all of its runs, because it compares with every checkpoint that
    it comes by. One whose process is gone holds what it would start from when it is asked
    again; with `abandon`, nothing. Raises StoreError, naming the file, for a plan that can't be
    read.
    """
    runs: dict[str, str] = {}
    positions: dict[str, dict[Position, str]] = {}
    for folder, plan in _unfinished(store):
        going_on = _is_going_on(folder, plan)
        for task in plan.get("tasks", ()):
            if going_on:
                runs[task["run_id"]] = f"replay {folder.name} is going on"
            elif not abandon:
                held = positions.setdefault(task["run_id"], {})
                for one in task["passes"]:
                    held |= {
                        Position.parse(text): f"replay {folder.name} is unfinished"
                        for text in one["checkpoints"]
                    }
    return ReplayHolds(runs, positions)


def _unfinished(store: Store) -> Iterator[tuple[Path, JsonObject]]:
    """A replay writes plan.json first and verdicts.json last."""
    for file in sorted(store.replays.glob("*/plan.json")):
        if not file.parent.name.startswith(".") and not (file.parent / "verdicts.json").exists():
            yield file.parent, read_json(file)


def _is_going_on(folder: Path, plan: JsonObject) -> bool:
    if "process" in plan:
        return not is_gone(RecordingProcess(**plan["process"]))
    newest = max(one.stat().st_mtime for one in [folder, *folder.rglob("*")])
    return time.time() - newest < SILENT_S
