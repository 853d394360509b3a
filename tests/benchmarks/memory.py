"""Whether recording eats memory: resident memory of a training that makes a checkpoint every
few seconds.

python -m tests.benchmarks.memory [--minutes 30] [--seconds 3] [--scale full]

Printed each minute: RSS of the process and of its children, and PSS of all (pages that they
share count once). The first fifth of the time is left out; the figure is the last third of the
rest over the first third of it. Checkpoints older than the last few are deleted as it goes, to
spare the disk."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from tests.benchmarks.place import place, run_paths
from tests.benchmarks.ratios import Aim, interval, slope
from tests.benchmarks.report import Figure, answer, parser, quiet, tell
from tests.benchmarks.savers import Setting, nothing
from tests.benchmarks.workloads import LARGE, Masked, Tokens, fit

MOST = 1.02
SAMPLES_A_MINUTE = 20
KEPT = 4  # checkpoints
MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """at: seconds since the first step. The others in bytes. checkpoints: made so far."""

    at: float
    own: int
    children: int
    shared_once: int
    checkpoints: int

    @property
    def resident(self) -> int:
        return self.own + self.children


class Sampler(pl.Callback):
    """Samples memory, deletes old checkpoints, and ends the training when its time is over."""

    def __init__(self, store: Path, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self.interval = min(60 / SAMPLES_A_MINUTE, seconds / 30)
        self.samples: list[Sample] = []
        self.gone = 0
        self._begin = self._told = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._begin = self._begin or now
        if self.samples and now - self._begin < self.samples[-1].at + self.interval:
            return
        sample = self._sample(now - self._begin)
        self.samples.append(sample)
        if len(self.samples) == 1 or now - self._told >= 60:
            self._told = now
            tell(line(sample))
        trainer.should_stop = sample.at >= self.seconds

    def _sample(self, at: float) -> Sample:
        folders = [
            one for run in run_paths(self.store) for one in (run / "checkpoints").glob("epoch=*")
        ]
        folders.sort(key=lambda one: int(one.name.rpartition("=")[2]))
        for one in folders[1:-KEPT]:  # the others refer to the first for what has not changed since
            shutil.rmtree(one)
            self.gone += 1
        family = list(descendants(os.getpid()))
        own = field(os.getpid(), "status", "VmRSS")
        return Sample(
            at,
            own,
            sum(field(pid, "status", "VmRSS") for pid in family),
            sum(field(pid, "smaps_rollup", "Pss") for pid in (os.getpid(), *family)),
            len([*folders[:1], *folders[1:][-KEPT:]]) + self.gone,
        )


def descendants(pid: int) -> Iterator[int]:
    """Children, their children and so on."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(one) for one in tasks.read_text().split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            yield child
            yield from descendants(child)


def field(pid: int, file: str, name: str) -> int:
    """A field of /proc/PID/FILE that is in kB, as bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(one.split()[1]) * 1024 for one in lines if one.startswith(f"{name}:"))


def line(one: Sample) -> str:
    return (
        f"{one.at / 60:6.1f} min  {one.checkpoints:5d} checkpoints  process "
        f"{one.own / MB:8.1f} MB  "
        f"children {one.children / MB:8.1f} MB  together, shared pages once "
        f"{one.shared_once / MB:8.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    shape = LARGE["small" if options.scale == "full" else options.scale]
    with place(options.folder) as there:
        model = shape.build().to(options.device)
        step = median(
            nothing(Setting(there, shape, model, every=0, steps=20, device=options.device))[5:]
        )
        every = max(1, math.ceil(options.seconds / step))
        store = there.folder()
        sampler = Sampler(store, 60 * options.minutes)
        recorder = there.callback("lightning", store, every_n_steps=every, every_minutes=None)
        fit(
            Masked(model),
            DataLoader(Tokens(shape), shape.batch),
            callbacks=[recorder, sampler],
            folder=store,
            device=options.device,
            max_epochs=1,
        )
    _answer(options, sampler.samples, every)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=30.0)
    made.add_argument("--seconds", type=float, default=3.0, help="from one checkpoint to the next")
    return made.parse_args(argv)


def _answer(options: argparse.Namespace, samples: Sequence[Sample], every: int) -> None:
    steady = samples[len(samples) // 5 :]
    third = max(1, len(steady) // 3)
    sizes = [one.resident / MB for one in steady]
    usual = median(sizes[:third])
    growth = interval([one / usual for one in sizes[-third:]])
    print("\n".join(line(one) for one in _minutes(samples)), end="\n\n")
    details = {
        "minutes": samples[-1].at / 60,
        "checkpoints": samples[-1].checkpoints,
        "every_steps": every,
        "resident_mb": usual,
        "slope_mb_per_minute": slope([one.at / 60 for one in steady], sizes),
        "max_minus_min_mb": max(sizes) - min(sizes),
        "shared_once_mb": [one.shared_once / MB for one in _minutes(samples)],
    }
    control = interval([one / usual for one in sizes[:third]])
    answer(
        "memory",
        options,
        [Figure("resident, last third / first third", growth, control, Aim(MOST))],
        details,
    )


def _minutes(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each minute, and the last of all."""
    firsts = {int(one.at // 60): one for one in reversed(samples)}
    return [*reversed(firsts.values()), samples[-1]]


if __name__ == "__main__":
    main()
