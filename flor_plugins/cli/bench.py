"""`bench`: measure recipes with and without the callback, and their hindsight questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flor_plugins.bench import table
from flor_plugins.bench.folder import CHART, DATA, TABLE
from flor_plugins.bench.results import RecipeResult
from flor_plugins.bench.run import BenchRequest, run
from flor_plugins.cli import tables

COLUMNS = [
    "recipe",
    "parameters",
    "overhead",
    "training again",
    "asked",
    "seconds",
    "times",
    "verdict",
]


def bench(
    targets: list[Path], pairs: int, out: Path, store: Path | None, is_added: bool, as_json: bool
) -> int:
    """Exit status 0, or 1 when a recipe failed or a verdict is not exact."""
    asked = BenchRequest(tuple(targets), pairs, out, store, is_added)
    folder, bench, found = run(asked, lambda what: print(what, file=sys.stderr, flush=True))
    if as_json:
        print(bench.model_dump_json(indent=1))
    else:
        tables.table(
            [row for one in found for row in _rows(one)], COLUMNS, as_json=False, as_csv=False
        )
        print(f"\n{', '.join(str(folder.root / name) for name in (TABLE, DATA, CHART))}")
    for one in found:
        if one.error:
            print(f"flor: {one.recipe}: {one.error}", file=sys.stderr)
        for question in one.questions:
            if question.error:
                print(f"flor: {one.recipe}: {question.metric}: {question.error}", file=sys.stderr)
    return 0 if all(one.is_good for one in found) else 1


def _rows(one: RecipeResult) -> list[dict[str, Any]]:
    """One row per question, the first of them with what is of the recipe."""
    first = {
        "recipe": one.recipe,
        "parameters": table.count(one.parameters) if one.trainings else "",
        "overhead": table.overhead(one),
        "training again": "" if one.again_s is None else f"{one.again_s:.1f}",
    }
    rows = [
        {
            "asked": question.metric,
            "seconds": "" if question.error else f"{question.process_s:.1f}",
            "times": table.times(one.speedup(question)),
            "verdict": "failed" if question.error else question.verdict,
        }
        for question in one.questions
    ]
    rows = rows or [{"verdict": "failed" if one.error else ""}]
    return [{**first, **rows[0]}, *rows[1:]]
