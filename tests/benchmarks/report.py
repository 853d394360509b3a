"""How a benchmark is asked, and how it answers: a table for people, and last one line of JSON."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from flor_plugins.store.sizes import processors
from tests.benchmarks.ratios import Aim, Interval, Verdict, judge

SCALES = ("tiny", "small", "full")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a benchmark.

    aim: None if it is only told. control: the same number where there is no effect.
    """

    name: str
    value: Interval
    control: Interval
    aim: Aim | None = None

    @property
    def verdict(self) -> Verdict | None:
        return None if self.aim is None else judge(self.value, self.aim, self.control)

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "name": self.name,
            "aim": None if self.aim is None else self.aim.limit,
            "ratio": _short(self.value.middle),
            "ci": [_short(self.value.low), _short(self.value.high)],
            "control": [_short(self.control.low), _short(self.control.high)],
            "n": self.value.n,
            "verdict": self.verdict,
        }


def parser(about: str | None, *, pairs: int = 11) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--scale",
        choices=SCALES,
        default="full",
        help="size of the model; tiny only shows that it runs",
    )
    made.add_argument(
        "--pairs", type=int, default=pairs, help=f"how many pairs are measured (default {pairs})"
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument(
        "--folder", default=None, help="where scratch files go (default: the system's place)"
    )
    return made


def quiet() -> None:
    """The frameworks say nothing: what is printed is the table."""
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    disable_progress_bar()
    for message in (
        r"The .*_dataloader. does not have many workers",
        r"The number of training batches",
        r".*LeafSpec",
    ):
        warnings.filterwarnings("ignore", message)


def tell(what: str) -> None:
    """Progress, for whoever waits; not part of the answer."""
    print(what, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (
            one.ljust(w) if i == 0 else one.rjust(w)
            for i, (one, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def answer(
    benchmark: str,
    options: argparse.Namespace,
    figures: Sequence[Figure],
    details: Mapping[str, Any],
) -> None:
    """Print the figures as a table, then everything as one line of JSON."""
    rows = [
        (
            one.name,
            f"{one.value.middle:.4g}",
            f"{one.value.low:.4g} to {one.value.high:.4g}",
            "" if one.aim is None else f"<= {one.aim.limit:.4g}",
            f"{one.control.low:.4g} to {one.control.high:.4g}",
            str(one.value.n),
            one.verdict or "",
        )
        for one in figures
    ]
    print(
        table(("figure", "median", "95 % interval", "aim", "control", "n", "verdict"), rows),
        end="\n\n",
    )
    line = {
        "benchmark": benchmark,
        "scale": options.scale,
        "figures": [one.plain() for one in figures],
        "details": {name: _short(value) for name, value in details.items()},
        "machine": _short(machine(options.device)),
    }
    print(json.dumps(line), flush=True)


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": processors(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],  # of the last minute: 1 is this benchmark's own
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
    }


def _short(value: Any) -> Any:
    """Numbers with the digits that mean something."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, (list, tuple)) else value
