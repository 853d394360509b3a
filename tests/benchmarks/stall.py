"""What a checkpoint costs a training: step time lost until all is as before, in copies of the
state.

python -m tests.benchmarks.stall [--scale full] [--pairs 11] [--savers flor,AsyncCheckpointIO,...]

Lost is the integral of (step time - undisturbed median) over all steps from one checkpoint to
the next: the call, the copying and whatever the writing slows down. Undisturbed are the last
steps before the checkpoint and the last of its own interval, when the writer has long been
idle. The control is a training that saves nothing: where a machine is noisy its steps are
longer than their median, too, so that ours is also told less what the control lost. The unit is
one memcpy of the state (parameters and two moments of AdamW) into memory that was touched
before, measured before each fit. The first checkpoint of a fit, which may allocate memory, is
told apart."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from tests.benchmarks.place import place
from tests.benchmarks.ratios import Aim, Interval, alternate, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.savers import SAVERS, Setting, nothing
from tests.benchmarks.workloads import LARGE, Memcpy, adam_state

MOST_MEMCPYS = 1.2
# from one checkpoint to the next: a gigabyte is written in 5 s
WINDOW_S = {
    "tiny": 0.1,
    "small": 2.0,
    "full": 12.0,
}
SHOWN = 10  # steps after a checkpoint, of which it is told what each of them lost
LEAST_STEPS = 12  # from one checkpoint to the next
# times less
ANCHORS = {
    "AsyncCheckpointIO": 3,
    "ModelCheckpoint": 10,
    "torch.save": 10,
    "save_strategy (hf)": 10,
}


@dataclass(frozen=True, slots=True)
class Lost:
    """What one checkpoint cost, in seconds.

    steps: lost by each step after it. undisturbed: a step. end: how slow the last third was,
    over that before."""

    steps: tuple[float, ...]
    undisturbed: float
    end: float

    @property
    def total(self) -> float:
        return sum(self.steps)

    @property
    def longest(self) -> float:
        return max(self.steps)


@dataclass(frozen=True, slots=True)
class Fit:
    """What one fit of a saver showed. memcpy: seconds of one copy of the state, just before."""

    memcpy: float
    first: Lost
    others: tuple[Lost, ...]


def losses(steps: Sequence[float], every: int) -> list[Lost]:
    """For each checkpoint of a fit: after steps every, 2 * every, ... with a quiet time before
    the first.

    steps: seconds of each step; one longer than a step of the fit is not expected, shorter fits
    have fewer losses."""
    found = []
    quiet_steps = every // 3
    for at in range(
        every - 1, len(steps) - every + 2, every
    ):  # the step that the checkpoint follows, from 0
        inside = steps[at : at + every - 1]
        before, after = steps[at - quiet_steps : at], inside[-quiet_steps:]
        usual = median([*before, *after])
        found.append(
            Lost(tuple(one - usual for one in inside), usual, median(after) / median(before))
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    with place(options.folder) as there:
        shape = LARGE[options.scale]
        model = shape.build().to(options.device)
        copy = Memcpy(adam_state(model))
        tell(f"state of {copy.nbytes / 1e6:.0f} MB, memcpy {1000 * copy.seconds():.1f} ms")
        trial = nothing(
            Setting(
                there, shape, model, every=LEAST_STEPS, steps=LEAST_STEPS, device=options.device
            )
        )
        step = median(trial[3:])
        every = max(LEAST_STEPS, math.ceil(options.window / step))
        tell(f"step {1000 * step:.0f} ms, a checkpoint every {every} steps")
        setting = Setting(
            there, shape, model, every, (options.windows + 2) * every - 1, options.device
        )
        fits = alternate(
            {name: partial(_measure, name, setting, copy) for name in options.savers},
            math.ceil(options.pairs / options.windows),
        )
    print(_table(fits), end="\n\n")
    details = {
        "state_bytes": copy.nbytes,
        "every_steps": every,
        "step_s": step,
        "savers": _details(fits),
    }
    answer("stall", options, _figures(fits), details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--savers", default=",".join(SAVERS), help="comma-separated; those without and ours always"
    )
    made.add_argument("--windows", type=int, default=2, help="checkpoints measured in each fit")
    made.add_argument(
        "--window", type=float, default=None, help="seconds from one checkpoint to the next"
    )
    options = made.parse_args(argv)
    asked = options.savers.split(",")
    unknown = [name for name in asked if name not in SAVERS]
    if unknown:
        made.error(f"no saver {unknown[0]!r}; there are {', '.join(SAVERS)}")
    always = {"none", "flor"} | ({"none (hf)", "flor (hf)"} if "(hf)" in options.savers else set())
    options.savers = [name for name in SAVERS if name in always.union(asked)]
    options.window = options.window or WINDOW_S[options.scale]
    return options


def _measure(name: str, setting: Setting, copy: Memcpy) -> Fit:
    memcpy = copy.seconds()
    first, *others = losses(SAVERS[name](setting), setting.every)
    tell(f"{', '.join(f'{1000 * one.total:.0f}' for one in (first, *others))} ms lost with {name}")
    return Fit(memcpy, first, tuple(others))


def _memcpys(fits: Sequence[Fit]) -> list[float]:
    return [one.total / fit.memcpy for fit in fits for one in fit.others]


def _figures(fits: Mapping[str, Sequence[Fit]]) -> list[Figure]:
    """Ours against one memcpy, and against each of the others: pairs are checkpoints of the
    same round.
    """
    figures: list[Figure] = []
    for mark in ("", " (hf)"):
        if f"flor{mark}" not in fits:
            continue
        ours, control = _memcpys(fits[f"flor{mark}"]), _memcpys(fits[f"none{mark}"])
        noise, aim = interval(control), Aim(MOST_MEMCPYS, 0.0)
        less = [one - none for one, none in zip(ours, control, strict=True)]
        figures.append(Figure(f"flor{mark}, memcpys", interval(ours), noise, aim))
        figures.append(Figure(f"flor{mark} less control, memcpys", interval(less), noise, aim))
        for name in fits:
            if name in (f"flor{mark}", f"none{mark}") or name.endswith("(hf)") != bool(mark):
                continue
            theirs = _memcpys(fits[name])
            aim = Aim(1 / ANCHORS[name], 0.0) if name in ANCHORS else None
            quotient, still = (
                interval(pair_ratios(ours, theirs)),
                interval(pair_ratios(control, theirs)),
            )
            figures.append(Figure(f"flor{mark} / {name}", quotient, still, aim))
    return figures


def _table(fits: Mapping[str, Sequence[Fit]]) -> str:
    head = (
        "saver",
        "lost ms",
        "95 % interval",
        "least ms",
        "memcpys",
        "first ms",
        "longest ms",
        "step ms",
        "end / begin",
    )
    rows = []
    for name, found in fits.items():
        lost = [one for fit in found for one in fit.others]
        total = _ms([one.total for one in lost])
        cells = (
            f"{total.middle:.0f}",
            f"{total.low:.0f} to {total.high:.0f}",
            f"{1000 * min(one.total for one in lost):.0f}",
            f"{interval(_memcpys(found)).middle:.2f}",
            f"{1000 * median(fit.first.total for fit in found):.0f}",
            f"{_ms([one.longest for one in lost]).middle:.0f}",
            f"{_ms([one.undisturbed for one in lost]).middle:.1f}",
            f"{median(one.end for one in lost):.3f}",
        )
        rows.append((name, *cells))
    return table(head, rows)


def _ms(values: Sequence[float]) -> Interval:
    return interval([1000 * one for one in values])


def _details(fits: Mapping[str, Sequence[Fit]]) -> dict[str, Any]:
    return {
        name: {
            "lost_ms": [1000 * one.total for fit in found for one in fit.others],
            "memcpys": _memcpys(found),
            "by_step_ms": _by_step(found)[:SHOWN],
            "first_ms": [1000 * fit.first.total for fit in found],
            "longest_ms": [1000 * one.longest for fit in found for one in fit.others],
            "memcpy_ms": [1000 * fit.memcpy for fit in found],
        }
        for name, found in fits.items()
    }


def _by_step(fits: Sequence[Fit]) -> list[float]:
    """What the first step after a checkpoint lost, the second and so on: medians, in ms."""
    return [
        1000 * median(ones)
        for ones in zip(*(one.steps for fit in fits for one in fit.others), strict=True)
    ]


if __name__ == "__main__":
    main()
