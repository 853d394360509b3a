"""The process that answers one question.

python -m flor_plugins.bench.answer RECIPE METRIC RESULT RUN_ID ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flor_plugins.bench.values import by_epoch, values_of
from flor_plugins.errors import FlorError
from flor_plugins.recipe import Recipe, load_recipe
from flor_plugins.records import ReplayRequest
from flor_plugins.replayer import requests
from flor_plugins.store.files import write_json
from flor_plugins.store.layout import find_store


def answer(recipe: Recipe, metric: str, run_ids: list[str]) -> dict[str, object]:
    """Replay one metric at the recipe's epochs.

    Its `where` does not count: that may name another of its metrics.
    """
    store = find_store()
    began = time.perf_counter()
    preset = recipe.replay
    request = ReplayRequest(
        (metric,),
        epochs=preset.epochs,
        runs=tuple(run_ids),
        hooks=recipe.hook_paths,
        patch=recipe.patch_paths,
    )
    result = requests.replay(store, request)
    runs = result.runs
    found = values_of(store, runs, metric)
    seconds = time.perf_counter() - began
    failures = [
        *result.failures,
        *(f"run {run_id} is skipped: {why}" for run_id, why in result.plan.skipped.items()),
    ]
    failures += [
        f"{metric} has no value in run {run.name}" for run in runs if not found[run.run_id]
    ]
    return {
        "asked_s": seconds,
        "ways": sorted({row["way"] for row in result.rows}),
        "verdicts": [row["verdict"] for row in result.rows],
        "count": sum(map(len, found.values())),
        "values": {run_id: by_epoch(rows) for run_id, rows in found.items()},
        "error": "; ".join(failures) or None,
    }


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    path, metric, result, *run_ids = arguments
    try:
        answered = answer(load_recipe(Path(path)), metric, run_ids)
    except FlorError as error:
        print(f"flor: {error}", file=sys.stderr)
        return 1
    write_json(Path(result), answered)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
