"""What recording costs: training with per-step metrics and a checkpoint at each epoch over training without.

python -m tests.benchmarks.overhead [--scale full] [--pairs 60] [--framework lightning|hf] [--memcpys 100] [--threads 1]

Three trainings of the same model, one with the callback and two without, take turns: an epoch of one, an epoch of the
next (turns.py). An epoch is as many steps as take 100 memcpys of the state (parameters and two moments of AdamW), and
holds a validation; a turn begins and ends in the middle of one, when the checkpoint of its beginning is written. What
comes once in a run is told in seconds: the snapshot of the code and the first state before the first step; what is
still to be written after the last.
The training computes with one thread, so that on two cores the writer has one, as it has where a GPU trains:
with --threads 2 there the writer's work is taken from the training, whatever its priority.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from flor_plugins.store.files import PARTIAL
from tests.benchmarks.place import place, remove, require, run_paths
from tests.benchmarks.ratios import Aim, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.savers import Setting, nothing
from tests.benchmarks.turns import Spent, Turn, Turns, interleave
from tests.benchmarks.workloads import Memcpy, Shape, Tokens, Validated, adam_state, fit, train

LIMIT = 1.005
SHAPES = {
    "tiny": Shape(2, 64, 200, 2, 8),
    "small": Shape(2, 128, 2000, 4, 16),
    "full": Shape(4, 256, 8000, 4, 32),  # 5.5 million parameters, 66 MB of state
}
PAIRS = 60  # epochs of each training
LEAST_STEPS = 8  # of an epoch
VALIDATION_BATCHES = 2


class End:
    """When the training loop was over, and the callback's own end was not: a callback of both frameworks."""

    moment = math.nan

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.moment = time.perf_counter()


class LightningEnd(End, pl.Callback):
    pass


class HfEnd(End, TrainerCallback):
    pass


@dataclass(slots=True)
class Training:
    """One that takes turns. late: how often its turn ended with a checkpoint still being written."""

    setting: Setting
    framework: str
    epochs: int
    is_recorded: bool
    late: int = 0

    def __call__(self, turns: Turns, name: str) -> None:
        """Train from beginning to end; all that was to be saved must have been."""
        setting, folder = self.setting, self.setting.place.folder()
        end = HfEnd() if self.framework == "hf" else LightningEnd()
        turn = Turn(turns, name, setting.steps, lambda: self._look(folder / "store"))

        def fit() -> None:
            (_hf if self.framework == "hf" else _lightning)(setting, folder, self._callbacks(folder, end), self.epochs)
            turn.spent.finish = time.perf_counter() - end.moment

        try:
            turn.run(setting.model, fit)
            if self.is_recorded:
                require(folder / "store", range(0, setting.steps * self.epochs + 1, setting.steps))
        finally:
            remove(folder)

    def _callbacks(self, folder: Path, end: End) -> list[Any]:
        if not self.is_recorded:
            return [end]
        return [self.setting.place.callback(self.framework, folder / "store", every_minutes=None), end]

    def _look(self, store: Path) -> None:
        folders = [one / "checkpoints" for one in run_paths(store)]
        self.late += any(name.startswith(PARTIAL) for one in folders if one.exists() for name in os.listdir(one))


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    torch.set_num_threads(options.threads)
    quiet()
    shape = SHAPES[options.scale]
    with place(options.folder) as there:
        model = shape.build().to(options.device)
        copy = Memcpy(adam_state(model))
        memcpy = copy.seconds()
        step = median(nothing(Setting(there, shape, model, every=0, steps=20, device=options.device))[5:])
        steps = max(LEAST_STEPS, math.ceil(options.memcpys * memcpy / step))
        tell(f"memcpy {1000 * memcpy:.2f} ms, step {1000 * step:.1f} ms, {steps} steps an epoch")

        def trainings(rounds: int) -> dict[str, Training]:
            return {
                name: Training(
                    Setting(there, shape, shape.build().to(options.device), 0, steps, options.device),
                    options.framework, rounds + 1, name == "with",
                )
                for name in ("without", "with", "without again")
            }  # fmt: skip

        _interleaved(trainings(0), 0)  # code and memory that only the first fit of a process meets
        measured = trainings(options.pairs)
        found = _interleaved(measured, options.pairs)
    print(_table(found), end="\n\n")
    details = {
        "framework": options.framework,
        "state_bytes": copy.nbytes,
        "memcpy_s": memcpy,
        "step_s": step,
        "steps": steps,
        "written_late": measured["with"].late,
        "once_s": {name: [one.begin, one.finish] for name, one in found.items()},
        "epochs_s": {name: one.epochs for name, one in found.items()},
    }
    answer("overhead", options, [_figure(found)], details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, pairs=PAIRS)
    made.add_argument("--framework", choices=("lightning", "hf"), default="lightning")
    made.add_argument("--threads", type=int, default=1, help="that the training computes with")
    made.add_argument("--memcpys", type=float, default=100, help="of the state, that an epoch takes at least")
    return made.parse_args(argv)


def _interleaved(trainings: Mapping[str, Training], rounds: int) -> dict[str, Spent]:
    return interleave({name: partial(one, name=name) for name, one in trainings.items()}, rounds)


def _figure(found: Mapping[str, Spent]) -> Figure:
    epochs = {name: one.epochs for name, one in found.items()}
    control = interval(pair_ratios(epochs["without again"], epochs["without"]))
    return Figure("with / without", interval(pair_ratios(epochs["with"], epochs["without"])), control, Aim(LIMIT))


def _table(found: Mapping[str, Spent]) -> str:
    rows = [
        (name, f"{one.begin:.3f}", f"{median(one.epochs):.3f}", f"{one.finish:.3f}") for name, one in found.items()
    ]
    return table(("fit", "begin s", "epoch s", "finish s"), rows)


def _lightning(setting: Setting, folder: Path, callbacks: Sequence[Any], epochs: int) -> None:
    batch = setting.shape.batch
    fit(
        Validated(setting.model), DataLoader(Tokens(setting.shape, setting.steps * batch), batch),
        DataLoader(Tokens(setting.shape, VALIDATION_BATCHES * batch), batch), callbacks=callbacks,
        folder=folder, device=setting.device, max_epochs=epochs,
    )  # fmt: skip


def _hf(setting: Setting, folder: Path, callbacks: Sequence[Any], epochs: int) -> None:
    batch = setting.shape.batch
    train(
        setting.model, setting.shape, folder, count=setting.steps * batch, validate=VALIDATION_BATCHES * batch,
        num_train_epochs=epochs, use_cpu=setting.device == "cpu", callbacks=callbacks, eval_strategy="epoch",
    )  # fmt: skip


if __name__ == "__main__":
    main()
