"""Verbs that only read: runs, show, dataframe, sql, checkpoints.

None of them imports torch or a trainer.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from flor_plugins.cli import tables
from flor_plugins.records import Checkpoint, Level, Position, Run
from flor_plugins.store.remote.mirror import open_any
from flor_plugins.store.runs import find_run, list_runs
from flor_plugins.store.sizes import format_size

if TYPE_CHECKING:
    from flor_plugins.store.run_index import RunIndex

_FEW = 5


def runs(as_json: bool, as_csv: bool) -> None:
    """Print all runs."""
    columns = ["run", "name", "project", "framework", "status", "epoch", "step"]
    columns += ["started_at", "vid", "replay", "gaps"]
    rows = [_summary(run) for run in list_runs(open_any())]
    tables.table(rows, columns, as_json=as_json, as_csv=as_csv)


def show(name: str, as_json: bool) -> None:
    """Print all that is known of a run."""
    run = find_run(open_any(), name)
    if as_json:
        print(json.dumps({**asdict(run), "replay_grade": run.replay_grade}, default=str, indent=1))
        return
    for key, value in {**_summary(run), "error": run.error, "tags": ", ".join(run.tags)}.items():
        if value not in (None, ""):
            print(f"{key:12} {value}")
    print(f"{'launch':12} {run.launch.kind} {run.launch.target} {' '.join(run.launch.argv)}")
    print(f"{'folder':12} {run.path}")
    if run.timing.recording_s is not None:
        print(f"{'recording':12} {tables.duration(run.timing.recording_s)} of the training's time")
    for line in _skipped(run):
        print(f"{'skipped':12} {line}")
    for one in run.obstacles:
        print(f"{'obstacle':12} {one.grade}: {one.reason}. Remedy: {one.remedy}")
    for gap in run.gaps:
        print(f"{'gap':12} {gap}")
    for left_out in run.code.left_out if run.code else ():
        print(f"{'left out':12} {left_out}")
    for key, value in run.params.items():
        print(f"  {key} = {value!r}")


def dataframe(
    names: list[str],
    where: str | None,
    level: str | None,
    source: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Print metrics, params and attributes of all runs."""
    from flor_plugins import api

    # frame.dataframe checks the word and says which there are.
    data = api.dataframe(*names, where=where, level=cast(Level | None, level), source=source)
    tables.frame(data, as_json=as_json, as_csv=as_csv)


def sql(query: str, as_json: bool, as_csv: bool) -> None:
    """Print what a query finds."""
    from flor_plugins import api

    tables.frame(api.sql(query), as_json=as_json, as_csv=as_csv)


def checkpoints(name: str, as_json: bool, as_csv: bool) -> None:
    """Print the checkpoints of a run, and how other epochs are reached."""
    from flor_plugins.store.ranks import list_checkpoints
    from flor_plugins.store.run_index import index_run

    run = find_run(open_any(), name)
    columns = ["run", "name", "epoch", "step", "full", "holds", "bytes", "path", "lost"]
    if as_json or as_csv:
        rows = [_checkpoint(run, one) for one in list_checkpoints(run)]
        tables.table(rows, columns, as_json=as_json, as_csv=as_csv)
        return
    places = index_run(run)
    rows = [
        {**_checkpoint(run, one), "bytes": format_size(one.nbytes)} for one in places.saved.values()
    ]
    columns.remove("full")
    tables.table(rows, columns, as_json=False, as_csv=False)
    print(reach(places))


def reach(places: RunIndex) -> str:
    """How many epochs have a checkpoint, and how the others are reached; for people."""
    ends = [Position(epoch, step) for epoch, step in sorted(places.ends.items()) if epoch]
    held = [places.saved[end] for end in ends if end in places.saved]
    weights = sum(not one.can_train for one in held)
    text = f"{len(held)} of {len(ends)} epochs have a checkpoint"
    text += f" ({weights} of them the weights only)" if weights else ""
    missing = [end for end in ends if end not in places.saved]
    if not missing:
        return f"{text}."
    if not places.starts or places.starts[0] > missing[0]:
        return f"{text}; from none before epoch {missing[0].epoch} training goes on."
    seconds, last = places.run.timing.epoch_s, ends[-1]
    if seconds is None or not last.step:
        return f"{text}; the others are reached by training again."
    from flor_plugins.replayer.planning.training_ranges import nearest_start

    steps = max(end.step - nearest_start(places, end).step for end in missing)
    most = seconds * steps * last.epoch / last.step
    return f"{text}; the others are reached by training again: at most {tables.duration(most)}."


def _checkpoint(run: Run, one: Checkpoint) -> dict[str, object]:
    return {
        "run": run.run_id,
        "name": run.name,
        "epoch": one.position.epoch,
        "step": one.position.step,
        "full": one.is_full,
        "holds": "weights" if not one.can_train else "full" if one.is_full else "part",
        "bytes": one.nbytes,
        "path": str(one.path),
        "lost": "; ".join(one.lost),
    }


def _skipped(run: Run) -> list[str]:
    """A line for each reason for which checkpoints were skipped."""
    lines = []
    for why, group in groupby(sorted(run.skipped, key=attrgetter("why")), key=attrgetter("why")):
        ones = list(group)
        places = "; ".join(str(one.position) for one in ones[:_FEW])
        places += f"; and {len(ones) - _FEW} more" if len(ones) > _FEW else ""
        dearest = max((one.cost_s for one in ones if one.cost_s is not None), default=None)
        cost = (
            ""
            if dearest is None
            else f"; training comes there again in {tables.duration(dearest)} at most"
        )
        lines.append(f"{why}: {places}{cost}")
    if run.skipped_count > len(run.skipped):
        lines.append(f"{run.skipped_count} checkpoints in all; not all of them are listed")
    return lines


def _summary(run: Run) -> dict[str, object]:
    return {
        "run": run.run_id,
        "name": run.name,
        "project": run.project,
        "framework": run.framework,
        "status": run.status,
        "epoch": run.position.epoch if run.position else None,
        "step": run.position.step if run.position else None,
        "started_at": run.started_at,
        "vid": run.code.vid[:12] if run.code else None,
        "replay": run.replay_grade,
        "gaps": len(run.gaps) or None,
    }
