"""`verify`: train a run again and compare; exit status 3 where it diverged."""

from __future__ import annotations

from typing import Any

from flor_plugins import api
from flor_plugins.cli import tables
from flor_plugins.cli.replay import plain_progress

COLUMNS = ["name", "from", "to", "compared", "verdict", "detail"]


def verify(run: str, epochs: str, workers: int, engine: str, as_json: bool, as_csv: bool) -> int:
    """Exit status 0, or 3 where something differs."""
    human = not (as_json or as_csv)
    progress = plain_progress if human else None
    found = api.verify(run, epochs, workers=workers, engine=engine, progress=progress)
    rows = [
        {
            "run": one["run"],
            "name": one["name"],
            "from": str(one["start"]),
            "to": str(one["end"]),
            "compared": one["compared"],
            "verdict": one["verdict"],
            "first": None if one["first"] is None else str(one["first"]),
            "detail": one["detail"],
            "causes": one["causes"] if as_json else " | ".join(one["causes"]),
        }
        for one in found
    ]
    if not human:
        tables.table(
            rows,
            ["run", *COLUMNS[:-1], "first", "detail", "causes"],
            as_json=as_json,
            as_csv=as_csv,
        )
    else:
        tables.table(rows, COLUMNS[:-1], as_json=False, as_csv=False)
        _say(found)
    return 3 if any(one["verdict"] == "diverged" for one in found) else 0


def _say(found: list[dict[str, Any]]) -> None:
    """The first difference of all, and why it may be."""
    differing = [one for one in found if one["first"] is not None]
    if not differing:
        print(
            f"\n{sum(one['compared'] for one in found)} values and tensors compared, all equal "
            f"to the last bit"
        )
        return
    first = min(differing, key=lambda one: one["first"])
    print(f"\nfirst differs at {first['first']}: {first['detail']}")
    for cause in first["causes"]:
        print(f"  likely: {cause}")
