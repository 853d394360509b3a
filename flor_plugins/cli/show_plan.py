"""A plan on the terminal: its table, and the question before it takes long."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from operator import attrgetter

import typer

from flor_plugins.cli import tables
from flor_plugins.records import JsonObject, Plan
from flor_plugins.store.sizes import format_size

COLUMNS = ["run", "name", "vid", "epochs", "way", "checkpoints", "seconds", "bytes", "metrics"]
_ASK_ABOVE_S = 60.0
_SHOWN = 3  # of many checkpoints so many are named


def show(made: Plan, as_json: bool, as_csv: bool, show_patches: bool = False) -> None:
    """Print a plan: one row per pass, by run; with --json all of it, with --csv the reason, too."""
    if as_json:
        patches = {"patches": patches_of(made)} if show_patches else {}
        print(json.dumps({**made.to_json(), **patches}, indent=1))
        return
    if show_patches and not as_csv:
        _print_patches(made)
    rows = rows_of(made, is_whole=as_csv)
    if not rows and not as_csv:
        print("nothing is missing: every value asked for is there")
        return
    tables.table(rows, [*COLUMNS, "reason"] if as_csv else COLUMNS, as_json=False, as_csv=as_csv)
    if not as_csv:
        for way, reason in {str(row["way"]): row["reason"] for row in rows}.items():
            print(f"{way}: {reason}")
        print()


def rows_of(made: Plan, *, is_whole: bool) -> list[dict[str, object]]:
    """One row per pass. is_whole: for programs, all checkpoints and plain numbers."""
    return [
        {
            "run": task.run_id,
            "name": task.name,
            "vid": task.vid[:12],
            "epochs": ",".join(map(str, one.epochs)),
            "way": one.way,
            "checkpoints": _named(one.checkpoints, is_whole),
            "seconds": one.seconds if is_whole or one.seconds is None else f"~{one.seconds:.1f}",
            "bytes": one.nbytes if is_whole or one.nbytes is None else format_size(one.nbytes),
            "metrics": ",".join(one.metrics),
            "reason": one.reason,
        }
        for task in sorted(made.tasks, key=attrgetter("run_id"))
        for one in task.passes
    ]


def patches_of(made: Plan) -> list[JsonObject]:
    """What an edit of the working tree is in each version that is replayed with it."""
    return [
        {
            "run": task.run_id,
            "name": task.name,
            "vid": task.vid,
            "base": task.edit.base,
            "how": dict(task.edit.how),
            "patch": task.edit.patch,
        }
        for task in sorted(made.tasks, key=attrgetter("run_id"))
        if task.edit is not None
    ]


def _print_patches(made: Plan) -> None:
    for one in patches_of(made):
        how = ", ".join(f"{path} {way}" for path, way in one["how"].items())
        print(f"# {one['name']} {one['vid'][:12]}: {how}\n{one['patch']}")
    for run_id, why in made.skipped.items():
        print(f"# {run_id}: no patch: {why}\n")


def agreed(made: Plan, yes: bool) -> bool:
    """A person is asked when it is estimated above a minute."""
    if yes or (made.seconds or 0.0) <= _ASK_ABOVE_S or not sys.stdin.isatty():
        return True
    return typer.confirm(f"This takes about {made.seconds:.0f} s. Go on?")


def _named(checkpoints: Sequence[str], is_whole: bool) -> str:
    if is_whole or len(checkpoints) <= _SHOWN:
        return " ".join(checkpoints)
    return f"{' '.join(checkpoints[: _SHOWN - 1])} ... ({len(checkpoints)})"
