"""What recording costs: training with the callback over training without.

With it means: metrics of every step and a checkpoint at each epoch.

    python -m tests.benchmarks.overhead [--scale full] [--pairs 24] [--framework lightning|hf]
        [--memcpys 100] [--threads 1] [--parts 5] [--budget 0.005]

Three trainings of BERT-base, one with the callback and two without, take turns (turns.py): a
fifth of an epoch of one, a fifth of the next. An epoch is as many steps as take 100 memcpys of
the state (parameters and two moments of AdamW), and holds a validation. While the others have
their turns, the writer of the one that is recorded is stopped: it gets no more of the machine
than the training whose checkpoint it writes. What comes once in a run is told in seconds: the
snapshot of the code and the first state before the first step; what is still to be written
after the last. All checkpoints are whole, whatever they cost, unless there is a budget: then
the callback leaves the optimizer's state out of some, and takes none where even that is too
dear. Of the two seconds that are free in each run one is left, for the first two checkpoints,
of which everything is new; and a few epochs come before those that are measured.
--scale small is a model of 5.5 million parameters: an epoch of a second, of which what
recording costs in each step and for each tensor is a larger part. The training computes with
one thread, so that on two cores the writer has one, as it has where a GPU trains: with
--threads 2 there the writer's work is taken from the training, whatever its priority.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from flor_plugins.recorder.checkpointing import budgets
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.writers import living_writer
from tests.benchmarks.place import place, remove, require, run_paths
from tests.benchmarks.ratios import Aim, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.savers import Setting, nothing
from tests.benchmarks.turns import Spent, Turn, Turns, interleave
from tests.benchmarks.workloads import Memcpy, Shape, Tokens, Validated, adam_state, fit, train

LIMIT = 1.005
SHAPES = {
    "tiny": Shape(2, 64, 200, 2, 8),
    "small": Shape(4, 256, 8000, 4, 32),  # 5.5 million parameters, 66 MB of state
    "full": Shape(12, 768, 30522, 4, 32),  # 109.5 million, 1.31 GB
}
NAMES = ("without", "with", "without again")
PAIRS = 24  # epochs of each training
PARTS = 5  # turns of an epoch
SETTLING = 3  # epochs that do not count, with a budget
FREE_S = 1.0  # of a run's time, whatever its budget
LEAST_STEPS = 8  # of an epoch
VALIDATION_BATCHES = 2


class End:
    """When the training loop was over, and the callback's own end was not: a callback of
    both frameworks.
    """

    moment = math.nan

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.moment = time.perf_counter()


class LightningEnd(End, pl.Callback):
    pass


class HfEnd(End, TrainerCallback):
    pass


@dataclass(slots=True)
class Training:
    """One that takes turns.

    late: how often an epoch was half over with its checkpoint still being written.
    """

    setting: Setting
    framework: str
    epochs: int
    is_recorded: bool
    budget: float | None = None
    late: int = 0
    checkpoints: int = 0
    full: int = 0

    def __call__(self, turns: Turns, name: str) -> None:
        """Train from beginning to end; all that was to be saved must have been."""
        setting, folder = self.setting, self.setting.place.folder()
        end = HfEnd() if self.framework == "hf" else LightningEnd()
        store = folder / "store"
        turn = Turn(
            turns,
            name,
            setting.steps,
            middle=lambda: self._look(store),
            rest=lambda: _tell_writers(store, signal.SIGSTOP),
            go_on=lambda: _tell_writers(store, signal.SIGCONT),
        )

        def fit() -> None:
            (_hf if self.framework == "hf" else _lightning)(
                setting, folder, self._callbacks(folder, end), self.epochs
            )
            turn.spent.finish = time.perf_counter() - end.moment

        try:
            turn.run(setting.model, fit)
            if self.is_recorded and self.budget is None:
                require(store, range(0, setting.steps * self.epochs + 1, setting.steps))
            found = [one for run in run_paths(store) for one in list_checkpoints(run)]
            self.checkpoints, self.full = len(found), sum(one.is_full for one in found)
        finally:
            remove(folder)

    def _callbacks(self, folder: Path, end: End) -> list[Any]:
        if not self.is_recorded:
            return [end]
        # its clock goes on while the others have their turns
        overhead = None if self.budget is None else self.budget / len(NAMES)
        place, store = self.setting.place, folder / "store"
        return [place.callback(self.framework, store, every_minutes=None, overhead=overhead), end]

    def _look(self, store: Path) -> None:
        folders = [one / "checkpoints" for one in run_paths(store)]
        self.late += any(
            name.startswith(PARTIAL) for one in folders if one.exists() for name in os.listdir(one)
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    torch.set_num_threads(options.threads)
    quiet()
    shape = SHAPES[options.scale]
    with place(options.folder) as there:
        model = shape.build().to(options.device)
        copy = Memcpy(adam_state(model))
        memcpy = copy.seconds()
        step = median(
            nothing(Setting(there, shape, model, every=0, steps=20, device=options.device))[5:]
        )
        steps = max(LEAST_STEPS, math.ceil(options.memcpys * memcpy / step))
        tell(f"memcpy {1000 * memcpy:.2f} ms, step {1000 * step:.1f} ms, {steps} steps an epoch")

        def trainings(rounds: int) -> dict[str, Training]:
            return {
                name: Training(
                    Setting(
                        there, shape, shape.build().to(options.device), 0, steps, options.device
                    ),
                    options.framework,
                    rounds + 1,
                    name == "with",
                    options.budget,
                )
                for name in NAMES
            }

        # code and memory that only the first fit of a process meets
        _interleaved(trainings(0), 0, 1)
        settling = 0 if options.budget is None else SETTLING
        measured = trainings(settling + options.pairs)
        with patch.object(budgets, "ALLOWANCE_S", FREE_S):
            found = _interleaved(measured, settling + options.pairs, options.parts)
    for one in found.values():
        del one.epochs[:settling]
    print(_table(found), end="\n\n")
    recorded, places = measured["with"], settling + options.pairs + 2
    print(
        f"{recorded.checkpoints} checkpoints, {recorded.full} of them whole, of {places} places\n"
    )
    details = {
        "framework": options.framework,
        "state_bytes": copy.nbytes,
        "memcpy_s": memcpy,
        "step_s": step,
        "steps": steps,
        "budget": options.budget,
        "checkpoints": [recorded.checkpoints, recorded.full],
        "written_late": recorded.late,
        "once_s": {name: [one.begin, one.finish] for name, one in found.items()},
        "epochs_s": {name: one.epochs for name, one in found.items()},
    }
    answer("overhead", options, [_figure(found)], details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, pairs=PAIRS)
    made.add_argument("--framework", choices=("lightning", "hf"), default="lightning")
    made.add_argument("--threads", type=int, default=1, help="that the training computes with")
    made.add_argument(
        "--memcpys", type=float, default=100, help="of the state, that an epoch takes at least"
    )
    made.add_argument(
        "--budget",
        type=float,
        help="of the callback: the share of the time that recording may cost",
    )
    made.add_argument("--parts", type=int, default=PARTS, help="turns of an epoch; an odd number")
    return made.parse_args(argv)


def _interleaved(trainings: Mapping[str, Training], rounds: int, parts: int) -> dict[str, Spent]:
    return interleave(
        {name: partial(one, name=name) for name, one in trainings.items()}, rounds, parts
    )


def _tell_writers(store: Path, what: signal.Signals) -> None:
    """Send a signal to those that write checkpoints there: none, if nothing is recorded."""
    for writer in filter(None, map(living_writer, run_paths(store))):
        os.kill(writer.pid, what)


def _figure(found: Mapping[str, Spent]) -> Figure:
    epochs = {name: one.epochs for name, one in found.items()}
    control = interval(pair_ratios(epochs["without again"], epochs["without"]))
    return Figure(
        "with / without",
        interval(pair_ratios(epochs["with"], epochs["without"])),
        control,
        Aim(LIMIT),
    )


def _table(found: Mapping[str, Spent]) -> str:
    rows = [
        (name, f"{one.begin:.3f}", f"{median(one.epochs):.3f}", f"{one.finish:.3f}")
        for name, one in found.items()
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
        setting.model,
        setting.shape,
        folder,
        count=setting.steps * batch,
        validate=VALIDATION_BATCHES * batch,
        num_train_epochs=epochs,
        use_cpu=setting.device == "cpu",
        callbacks=callbacks,
        eval_strategy="epoch",
    )


if __name__ == "__main__":
    main()
