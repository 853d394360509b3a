"""The process of one training of a bench, which times it.

python -m flor_plugins.bench.train RECIPE VERSION HOW RESULT

HOW: `with` the callback or `without`. What is timed is `fit` or `train`; of a function that
trains by itself, with flor.loop, all from the first item of its first main loop until it
returns. Imports and the building of model and data are not, in either case.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.loops.intercept import listen
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.recorder.launching import run_script
from flor_plugins.store.files import write_json
from flor_plugins.store.layout import Store, find_store


class TrainingClock:
    """Runs from the first `begin`. trained: what was given to it."""

    def __init__(self) -> None:
        self.trained: Any = None
        self._begun: tuple[float, float] | None = None

    def begin(self, trained: Any) -> None:
        """Note what is trained, and when that began."""
        if self._begun is None:
            self.trained = trained
            self._begun = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float] | None:
        """By the clock, and of the processor; None if nothing was trained."""
        if self._begun is None:
            return None
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]


def measure(path: Path, version: str, *, is_recorded: bool) -> dict[str, Any]:
    """Train, and say what it took.

    Raises RecipeError where what was asked for is not what happened.
    """
    clock, store = TrainingClock(), find_store()
    before = run_ids(store)
    listen(clock.begin, is_recorded=is_recorded)
    run_script.recipe(path, version, is_recorded=is_recorded, begins=clock.begin)
    seconds = clock.seconds()
    if seconds is None:
        raise RecipeError(
            f"{path}:1: its function has neither returned a trainer nor trained with flor.loop"
        )
    begun = sorted(run_ids(store) - before)
    if is_recorded and not begun:
        raise FlorError(
            f"{path}: version {version} was trained with the callback, and no run came of it"
        )
    if begun and not is_recorded:
        raise RecipeError(
            f"{path}:1: it records by itself ({', '.join(begun)}), so there is no training "
            f"without the callback to "
            "compare with; leave the callback to flor-hf record"
        )
    return {
        "train_s": seconds[0],
        "cpu_s": seconds[1],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "parameters": count_parameters(clock.trained),
        "device": torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu",
        "run_ids": begun,
    }


def count_parameters(trained: Any) -> int:
    """Count the parameters of what a recipe's function built or `flor.checkpoints` was given.

    Shared ones count once.
    """
    if isinstance(trained, ObjectRegistry):
        modules = list(trained.modules().values())
    else:
        modules = [trained[1] if isinstance(trained, tuple) else trained.model]
    return sum(one.numel() for one in {p: None for module in modules for p in module.parameters()})


def run_ids(store: Store) -> set[str]:
    """Return the ids of the runs in a store."""
    return {path.parent.name for path in store.runs.glob("*/run.json")}


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    path, version, how, result = arguments
    try:
        measured = measure(Path(path), version, is_recorded=how == "with")
    except FlorError as error:
        print(f"flor: {error}", file=sys.stderr)
        return 1
    write_json(Path(result), measured)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
