"""How much the writer disturbs the steps: the slowest ones while checkpoints are written over
those without.

python -m tests.benchmarks.interference [--scale full] [--pairs 11] [--steps 300]

Checkpoints come so often that the writer is at work during most steps: the next one begins when
the one before is written. The steps that a checkpoint is copied in are among those measured;
without them is told as well. A step is written in if an unfinished checkpoint lies in the run's
folder at its beginning or at its end."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from flor_plugins.store.files import PARTIAL
from tests.benchmarks.place import place, remove, run_paths
from tests.benchmarks.ratios import Aim, Interval, alternate, interval, pair_ratios, quantile
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.savers import Setting
from tests.benchmarks.workloads import Clock, Masked, Memcpy, Shape, Tokens, adam_state, fit

MOST = {"cpu": 1.15, "cuda": 1.05}
SHAPES = {
    "tiny": Shape(2, 64, 200, 2, 8),
    "small": Shape(2, 128, 2000, 4, 16),
    "full": Shape(4, 256, 8000, 2, 16),  # 66 MB of state, steps of some 30 ms
}
STEPS = {"tiny": 20, "small": 200, "full": 300}
WARM_UP = 5  # steps
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Segment:
    """Seconds of each step after the warm-up; which were written in; which a checkpoint was
    copied in.

    checkpoints: how many the run has.
    """

    seconds: tuple[float, ...]
    is_written: tuple[bool, ...] = ()
    is_copied: tuple[bool, ...] = ()
    checkpoints: int = 0

    def written(self, *, and_copied: bool = True) -> list[float]:
        """Of the steps that were written in; of all if there are none."""
        flags = zip(self.seconds, self.is_written, self.is_copied, strict=True)
        return [
            one for one, is_in, copied in flags if is_in and (and_copied or not copied)
        ] or list(self.seconds)


class Watch(pl.Callback):
    """Looks at the beginning of each step whether a checkpoint is being written."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.seen: list[bool] = []
        self.checkpoints = 0
        self._folder: Path | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._folder is None:
            self._folder = next((one / "checkpoints" for one in run_paths(self.store)), None)
        self.seen.append(any(name.startswith(PARTIAL) for name in self._names()))

    def whole(self) -> int:
        """How many checkpoints are written."""
        return sum(not name.startswith(PARTIAL) for name in self._names())

    def _names(self) -> list[str]:
        return (
            os.listdir(self._folder) if self._folder is not None and self._folder.exists() else []
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    shape = SHAPES[options.scale]
    steps = (options.steps or STEPS[options.scale]) + WARM_UP
    with place(options.folder) as there:
        model = shape.build().to(options.device)
        copy = Memcpy(adam_state(model))
        trial = Setting(there, shape, model, every=steps // 3, steps=steps, device=options.device)
        every = max(2, _written_for(_with(trial)))
        tell(f"memcpy {1000 * copy.seconds():.2f} ms, a checkpoint every {every} steps")
        setting = Setting(there, shape, model, every, steps, options.device)
        variants: dict[str, Callable[[], Segment]] = {
            "without": partial(_without, setting),
            "writing": partial(_with, setting),
            "without again": partial(_without, setting),
        }
        found = alternate(variants, options.pairs)
    print(_table(found), end="\n\n")
    written = [flag for one in found["writing"] for flag in one.is_written]
    details = {
        "state_bytes": copy.nbytes,
        "every_steps": every,
        "steps": {name: sum(len(one.seconds) for one in ones) for name, ones in found.items()},
        "share_written_in": mean(written),
        "checkpoints": [one.checkpoints for one in found["writing"]],
        "checkpoints_asked": 2
        + (steps - 1) // every,  # the first and the last state are always saved
        "pooled": _pooled(found),
    }
    answer("interference", options, _figures(found, MOST[options.device]), details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=None, help="of each segment")
    return made.parse_args(argv)


def _written_for(one: Segment) -> int:
    """How many steps a checkpoint is written for; 1 if no step saw it."""
    lengths = [len(list(group)) for is_in, group in groupby(one.is_written) if is_in]
    return max(1, math.ceil(median(lengths))) if lengths else 1


def _without(setting: Setting) -> Segment:
    return Segment(_steps(setting, setting.place.folder(), [])[0])


def _with(setting: Setting) -> Segment:
    store = setting.place.folder()
    callback = setting.place.callback(
        "lightning", store, every_n_steps=setting.every, every_minutes=None
    )
    seconds, watch = _steps(setting, store, [callback])
    seen = watch.seen[WARM_UP:]
    # The copy begins after every n-th update and may last until the next one.
    numbers = range(WARM_UP + 1, WARM_UP + 1 + len(seconds))
    is_copied = tuple(i >= setting.every and i % setting.every in (0, 1) for i in numbers)
    return Segment(seconds, tuple(a or b for a, b in pairwise(seen)), is_copied, watch.checkpoints)


def _steps(setting: Setting, store: Path, callbacks: list[Any]) -> tuple[tuple[float, ...], Watch]:
    watch = Watch(store)
    try:
        with Clock(setting.model) as clock:
            fit(
                Masked(setting.model),
                DataLoader(Tokens(setting.shape), setting.shape.batch),
                device=setting.device,
                callbacks=[*callbacks, watch],
                folder=store,
                max_steps=setting.steps,
            )
        watch.checkpoints = watch.whole()
        return tuple(clock.steps()[WARM_UP:]), watch
    finally:
        remove(store)


def _figures(found: Mapping[str, Sequence[Segment]], most: float) -> list[Figure]:
    plain = {
        name: [list(one.seconds) for one in found[name]] for name in ("without", "without again")
    }
    writing = [one.written() for one in found["writing"]]
    figures = []
    for share in reversed(SHARES):
        control = _ratio(plain["without again"], plain["without"], share)
        aim = Aim(most) if share == 0.99 else None
        figures.append(
            Figure(
                f"p{100 * share:.0f} writing",
                _ratio(writing, plain["without"], share),
                control,
                aim,
            )
        )
    rest = [one.written(and_copied=False) for one in found["writing"]]
    control = _ratio(plain["without again"], plain["without"], 0.99)
    figures.append(
        Figure("p99 writing, not copying", _ratio(rest, plain["without"], 0.99), control)
    )
    return figures


def _ratio(
    of: Sequence[Sequence[float]], over: Sequence[Sequence[float]], share: float
) -> Interval:
    return interval(
        pair_ratios([quantile(one, share) for one in of], [quantile(one, share) for one in over])
    )


def _pooled(found: Mapping[str, Sequence[Segment]]) -> dict[str, dict[str, float]]:
    """Quantiles of all steps of a variant together, in ms."""
    answers = {}
    for name, ones in found.items():
        seconds = [s for one in ones for s in (one.written() if name == "writing" else one.seconds)]
        answers[name] = {f"p{100 * share:.0f}": 1000 * quantile(seconds, share) for share in SHARES}
    return answers


def _table(found: Mapping[str, Sequence[Segment]]) -> str:
    rows = [(name, *(f"{one:.1f}" for one in ms.values())) for name, ms in _pooled(found).items()]
    return table(("steps", *(f"p{100 * share:.0f} ms" for share in SHARES)), rows)


if __name__ == "__main__":
    main()
