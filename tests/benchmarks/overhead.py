"""What recording costs: training with per-step metrics and a checkpoint at each epoch over training without.

python -m tests.benchmarks.overhead [--scale full] [--pairs 11] [--framework lightning|hf] [--memcpys 100] [--threads 1]

A fresh Trainer for each fit, the same model, with and without the callback in turns. An epoch is as many steps as
take 100 memcpys of the state (parameters and two moments of AdamW), and ends with a validation. The ratio is of the
time from the beginning of the second epoch to the end of the last: what comes once in a run is told in seconds (the
snapshot of the code and the first state before the first step; what is still to be written after the last).
The training computes with one thread, so that on two cores the writer has one, as it has where a GPU trains:
with --threads 2 there the writer's work is taken from the training, whatever its priority.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from tests.benchmarks.place import Place, place, remove, require
from tests.benchmarks.ratios import Aim, alternate, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.savers import Setting, nothing
from tests.benchmarks.workloads import Clock, Memcpy, Shape, Tokens, Validated, adam_state, fit, train

LIMIT = 1.005
SHAPES = {
    "tiny": Shape(2, 64, 200, 2, 8),
    "small": Shape(2, 128, 2000, 4, 16),
    "full": Shape(4, 256, 8000, 4, 32),  # 5.5 million parameters, 66 MB of state
}
EPOCHS = {"tiny": 3, "small": 4, "full": 8}
LEAST_STEPS = 8  # of an epoch
VALIDATION_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """One fit in seconds. begin: to the first step. epochs: each with its validation. finish: after the last step."""

    begin: float
    epochs: tuple[float, ...]
    finish: float

    @property
    def steady(self) -> float:
        return sum(self.epochs[1:])

    @property
    def whole(self) -> float:
        return self.begin + sum(self.epochs) + self.finish


class End:
    """When the training loop was over, and the callback's own end was not: a callback of both frameworks."""

    moment = math.nan

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.moment = time.perf_counter()


class LightningEnd(End, pl.Callback):
    pass


class HfEnd(End, TrainerCallback):
    pass


def segment(started: float, moments: Sequence[float], ended: float, now: float, steps: int) -> Segment:
    """started: before the fit. moments: when each step began. ended: the loop. now: after the fit. steps: an epoch."""
    begins = [*moments[::steps], ended]
    epochs = tuple(b - a for a, b in pairwise(begins))
    return Segment(moments[0] - started, epochs, now - ended)


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
        setting = Setting(there, shape, model, 0, steps, options.device)
        run = _hf if options.framework == "hf" else _lightning
        epochs = EPOCHS[options.scale]
        variants: dict[str, Callable[[], Segment]] = {
            "without": lambda: run(setting, epochs, False),
            "with": lambda: run(setting, epochs, True),
            "without again": lambda: run(setting, epochs, False),
        }
        for variant in variants.values():
            variant()  # code and memory that only the first fit of a process meets
        found = alternate(variants, options.pairs)
    print(_table(found), end="\n\n")
    details = {
        "framework": options.framework,
        "state_bytes": copy.nbytes,
        "memcpy_s": memcpy,
        "step_s": step,
        "steps": steps,
        "epochs": epochs,
        "segments": {name: [[one.begin, one.steady, one.finish] for one in ones] for name, ones in found.items()},
    }
    answer("overhead", options, _figures(found), details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--framework", choices=("lightning", "hf"), default="lightning")
    made.add_argument("--threads", type=int, default=1, help="that the training computes with")
    made.add_argument("--memcpys", type=float, default=100, help="of the state, that an epoch takes at least")
    return made.parse_args(argv)


def _figures(found: Mapping[str, Sequence[Segment]]) -> list[Figure]:
    steady = {name: [one.steady for one in ones] for name, ones in found.items()}
    whole = {name: [one.whole for one in ones] for name, ones in found.items()}
    figures = []
    for name, seconds, aim in (("with / without", steady, Aim(LIMIT)), ("with / without, whole fit", whole, None)):
        control = interval(pair_ratios(seconds["without again"], seconds["without"]))
        figures.append(Figure(name, interval(pair_ratios(seconds["with"], seconds["without"])), control, aim))
    return figures


def _table(found: Mapping[str, Sequence[Segment]]) -> str:
    rows = [
        (
            name,
            f"{median(one.begin for one in ones):.3f}",
            f"{median(one.epochs[0] for one in ones):.3f}",
            f"{median(one.steady / (len(one.epochs) - 1) for one in ones):.3f}",
            f"{median(one.finish for one in ones):.3f}",
        )
        for name, ones in found.items()
    ]
    return table(("fit", "begin s", "first epoch s", "epoch s", "finish s"), rows)


def _lightning(setting: Setting, epochs: int, is_recorded: bool) -> Segment:
    folder, end = setting.place.folder(), LightningEnd()
    batch = setting.shape.batch
    callbacks = [*_recorder(setting.place, "lightning", folder, is_recorded), end]
    try:
        with Clock(setting.model) as clock:
            started = time.perf_counter()
            fit(
                Validated(setting.model), DataLoader(Tokens(setting.shape, setting.steps * batch), batch),
                DataLoader(Tokens(setting.shape, VALIDATION_BATCHES * batch), batch), callbacks=callbacks,
                folder=folder, device=setting.device, max_epochs=epochs,
            )  # fmt: skip
            now = time.perf_counter()
        require(folder / "store", range(0, setting.steps * epochs + 1, setting.steps))
        return segment(started, clock.moments, end.moment, now, setting.steps)
    finally:
        remove(folder)


def _hf(setting: Setting, epochs: int, is_recorded: bool) -> Segment:
    folder, end = setting.place.folder(), HfEnd()
    batch = setting.shape.batch
    try:
        with Clock(setting.model) as clock:
            started = time.perf_counter()
            train(
                setting.model, setting.shape, folder, count=setting.steps * batch,
                validate=VALIDATION_BATCHES * batch, num_train_epochs=epochs, use_cpu=setting.device == "cpu",
                callbacks=[*_recorder(setting.place, "hf", folder, is_recorded), end], eval_strategy="epoch",
            )  # fmt: skip
            now = time.perf_counter()
        require(folder / "store", range(0, setting.steps * epochs + 1, setting.steps))
        return segment(started, clock.moments, end.moment, now, setting.steps)
    finally:
        remove(folder)


def _recorder(there: Place, framework: str, folder: Path, is_recorded: bool) -> list[Any]:
    return [there.callback(framework, folder / "store", every_minutes=None)] if is_recorded else []


if __name__ == "__main__":
    main()
