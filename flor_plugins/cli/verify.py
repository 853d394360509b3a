"""`verify`: train a run again and compare; exit status 3 where it diverged."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from flor_plugins import api
from flor_plugins.cli import tables
from flor_plugins.cli.replay import plain_progress

if TYPE_CHECKING:
    from flor_plugins.replayer.requests import RangeRow

COLUMNS = ["name", "from", "to", "compared", "verdict"]


def verify(run: str, epochs: str, workers: int, engine: str, as_json: bool, as_csv: bool) -> int:
    """Exit status 0, or 3 where something differs."""
    is_human = not (as_json or as_csv)
    progress = plain_progress if is_human else None
    ranges = api.verify(run, epochs, workers=workers, engine=engine, progress=progress)
    rows = [
        {
            "run": row["run"],
            "name": row["name"],
            "from": str(row["start"]),
            "to": str(row["end"]),
            "compared": row["compared"],
            "verdict": row["verdict"],
            "first": None if row["first"] is None else str(row["first"]),
            "detail": row["detail"],
            "causes": row["causes"] if as_json else " | ".join(row["causes"]),
        }
        for row in ranges
    ]
    columns = COLUMNS if is_human else ["run", *COLUMNS, "first", "detail", "causes"]
    tables.table(rows, columns, as_json=as_json, as_csv=as_csv)
    if is_human:
        _print_first_difference(ranges)
    return 3 if any(row["verdict"] == "diverged" for row in ranges) else 0


def _print_first_difference(ranges: Sequence[RangeRow]) -> None:
    """Print the first difference of all, and its likely causes."""
    differing = [row for row in ranges if row["first"] is not None]
    if not differing:
        compared = sum(row["compared"] for row in ranges)
        print(f"\n{compared} values and tensors compared, all equal to the last bit")
        return
    first = min(differing, key=itemgetter("first"))
    print(f"\nfirst differs at {first['first']}: {first['detail']}")
    for cause in first["causes"]:
        print(f"  likely: {cause}")
