"""Verbs that only read: runs, show, dataframe, sql, checkpoints. None of them imports torch or a trainer."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import cast

from flor_plugins.cli import printing
from flor_plugins.records import Level, Run
from flor_plugins.store.layout import find_store
from flor_plugins.store.runs import find_run, list_runs


def runs(as_json: bool, as_csv: bool) -> None:
    columns = ["run", "name", "project", "framework", "status", "epoch", "step"]
    columns += ["started_at", "vid", "replay", "gaps"]
    rows = [_summary(run) for run in list_runs(find_store())]
    printing.table(rows, columns, as_json=as_json, as_csv=as_csv)


def show(name: str, as_json: bool) -> None:
    run = find_run(find_store(), name)
    if as_json:
        print(json.dumps({**asdict(run), "replay_grade": run.replay_grade}, default=str, indent=1))
        return
    for key, value in {**_summary(run), "error": run.error, "tags": ", ".join(run.tags)}.items():
        if value not in (None, ""):
            print(f"{key:12} {value}")
    print(f"{'launch':12} {run.launch.kind} {run.launch.target} {' '.join(run.launch.argv)}")
    print(f"{'folder':12} {run.path}")
    for one in run.obstacles:
        print(f"{'obstacle':12} {one.grade}: {one.reason}. Remedy: {one.remedy}")
    for gap in run.gaps:
        print(f"{'gap':12} {gap}")
    for left_out in run.code.left_out if run.code else ():
        print(f"{'left out':12} {left_out}")
    for key, value in run.params.items():
        print(f"  {key} = {value!r}")


def dataframe(
    names: list[str], where: str | None, level: str | None, source: bool, as_json: bool, as_csv: bool
) -> None:
    from flor_plugins import api

    # frame.dataframe checks the word and says which there are.
    data = api.dataframe(*names, where=where, level=cast(Level | None, level), source=source)
    printing.frame(data, as_json=as_json, as_csv=as_csv)


def sql(query: str, as_json: bool, as_csv: bool) -> None:
    from flor_plugins import api

    printing.frame(api.sql(query), as_json=as_json, as_csv=as_csv)


def checkpoints(name: str, as_json: bool, as_csv: bool) -> None:
    from flor_plugins.store.checkpoints import list_checkpoints

    run = find_run(find_store(), name)
    rows = [
        {
            "run": run.run_id,
            "name": run.name,
            "epoch": one.position.epoch,
            "step": one.position.step,
            "full": one.is_full,
            "bytes": one.nbytes,
            "path": str(one.path),
            "lost": "; ".join(one.lost),
        }
        for one in list_checkpoints(run.path)
    ]
    columns = ["run", "name", "epoch", "step", "full", "bytes", "path", "lost"]
    printing.table(rows, columns, as_json=as_json, as_csv=as_csv)


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
