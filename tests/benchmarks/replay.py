"""Replaying against training again: what a value for all epochs costs in hindsight.

python -m tests.benchmarks.replay [--scale full] [--pairs 11] [--epochs 20] [--runs 4]

A script of a user trains with the validation data a tenth of the training data. "again" runs
that script without anything of ours. A replay asks for a metric of the weights over all
validation data at all epochs: "warm" is the second request of a session, whose fork server is
there; "cold" begins with none. Several runs are replayed by one worker and by two, each time
with the start of the server. Everything is timed from the call to the dataframe."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import flor_plugins as flor
from flor_plugins.replayer.execution.fork_client import servers
from tests.benchmarks.place import place
from tests.benchmarks.ratios import Aim, alternate, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.workloads import Shape

SHAPES = {
    "tiny": Shape(1, 32, 100, 2, 8),
    "small": Shape(2, 128, 1000, 4, 32),
    "full": Shape(4, 256, 2000, 8, 32),
}
# of training data: at full scale 20 epochs take about a minute
TEXTS = {
    "tiny": 20,
    "small": 80,
    "full": 320,
}
# passes over the validation data by the hook for several runs
THROUGH = {
    "tiny": 1,
    "small": 4,
    "full": 6,
}
TIMES, TIMES_BY_TWO = 20.0, 1.7
REQUEST_S = 1.0  # asked again

ROOT = str(Path(flor.__file__).parents[1])
# Workers share the machine: one thread each, and no thread that waits for another.
_SINGLE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1"}

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments
from flor_plugins.hf import FlorCallback

layers, width, words, batch, length = {sizes}

class Tokens(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        x = torch.randint(0, words, (length,), generator=torch.Generator().manual_seed(i))
        return {{"input_ids": x, "labels": x}}

name, epochs = sys.argv[1], int(sys.argv[2])
arguments = TrainingArguments(
    "out", num_train_epochs=epochs, per_device_train_batch_size=batch,
    per_device_eval_batch_size=batch, learning_rate=1e-4, eval_strategy="epoch",
    save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    dataloader_pin_memory=False, logging_strategy="epoch",
)
torch.manual_seed(0)
model = BertForMaskedLM(BertConfig(
    vocab_size=words, hidden_size=width, num_hidden_layers=layers,
    num_attention_heads=max(width // 64, 2), intermediate_size=4 * width,
))
callbacks = [] if name == "again" else [FlorCallback(name, overhead=None, every_n_epochs=1)]
data, held_out = Tokens({texts}), Tokens({texts} // 10)
Trainer(model, arguments, train_dataset=data, eval_dataset=held_out, callbacks=callbacks).train()
"""

HOOKS = """
import torch
import flor_plugins as flor

def surprise(ctx):
    right = total = 0
    for batch in ctx.val_dataloader:
        found = ctx.model(**batch).logits.argmax(-1)
        right += int((found != batch["labels"]).sum())
        total += found.numel()
    return right / total

@flor.metric(at="epoch")
def wrong(ctx):
    return surprise(ctx)

@flor.metric(at="epoch")
def wrong_often(ctx):
    return [surprise(ctx) for _ in range({through})][-1]
"""


@dataclass(slots=True)
class Asked:
    """A project with recorded runs.

    first_s: of each request the seconds until its first value was stored.
    """

    project: Path
    hooks: Path
    epochs: int
    first_s: list[float] = field(default_factory=list)

    def record(self, name: str) -> None:
        known = {key: value for key, value in os.environ.items() if key != "FLOR_DIR"}
        command = [sys.executable, "train.py", name, str(self.epochs)]
        subprocess.run(
            command, cwd=self.project, env=known | _SINGLE, check=True, stdout=subprocess.DEVNULL
        )

    def again(self) -> float:
        begin = time.perf_counter()
        self.record("again")
        return time.perf_counter() - begin

    def replay(
        self, metric: str, names: Sequence[str], *, workers: int = 1, cold: bool = False
    ) -> float:
        """Seconds until the frame is there. Nothing that was stored before is used."""
        for one in self.project.glob(".flor/runs/*/metrics/replay-*"):
            one.unlink()
        if cold:
            servers().close()
        begin, first = time.perf_counter(), []

        def progress(task: Any, event: Mapping[str, Any]) -> None:
            if event["event"] == "position" and not first:
                first.append(time.perf_counter() - begin)

        frame = self._ask(metric, names, workers=workers, progress=progress)
        seconds = time.perf_counter() - begin
        there = frame.loc[frame["name"].isin(names), metric].notna().sum()
        if there != len(names) * self.epochs:
            raise AssertionError(
                f"{there} values of {metric} for {names}, not one for each of {self.epochs} epochs"
            )
        self.first_s += first
        return seconds

    def asked_again(self, metric: str, names: Sequence[str]) -> float:
        """Seconds of a request of which everything is there."""
        begin = time.perf_counter()
        self._ask(metric, names)
        return time.perf_counter() - begin

    def _ask(self, metric: str, names: Sequence[str], **how: Any) -> Any:
        return flor.replay(
            [metric], hooks=[self.hooks], run=list(names), store=self.project / ".flor", **how
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    with place(options.folder) as there:
        asked = _prepared(there.project, options)
        several = [f"run-{number}" for number in range(options.runs)]
        for name in ("one", *several):
            tell(f"{name} is recorded")
            asked.record(name)
        try:
            one = _one(asked, options.pairs)
            two = _two(asked, several, options.pairs)
        finally:
            servers().close()
    print(_table({**one, **two}), end="\n\n")
    seconds = {name: median(ones) for name, ones in {**one, **two}.items()}
    answer(
        "replay",
        options,
        _figures(one, two),
        {"seconds": seconds, "runs": options.runs, "epochs": options.epochs},
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--epochs", type=int, default=20, help="of each run")
    made.add_argument("--runs", type=int, default=4, help="that one worker and two workers replay")
    return made.parse_args(argv)


def _prepared(project: Path, options: argparse.Namespace) -> Asked:
    shape, texts = SHAPES[options.scale], TEXTS[options.scale]
    sizes = f"{shape.layers}, {shape.width}, {shape.words}, {shape.batch}, {shape.length}"
    (project / "train.py").write_text(SCRIPT.format(sizes=sizes, texts=texts), encoding="utf-8")
    hooks = project / "hooks.py"
    hooks.write_text(HOOKS.format(through=THROUGH[options.scale]), encoding="utf-8")
    return Asked(project, hooks, options.epochs)


def _one(asked: Asked, pairs: int) -> dict[str, list[float]]:
    """A training and replays of it by one worker."""
    asked.replay("wrong", ["one"], cold=True)  # the system has read all files once
    asked.first_s.clear()

    def warm() -> tuple[float, float, float]:
        seconds = asked.replay("wrong", ["one"])
        return seconds, asked.first_s[-1], asked.asked_again("wrong", ["one"])

    ways: dict[str, Callable[[], Any]] = {
        "training again": asked.again,
        "training again, once more": asked.again,
        "replay, cold": partial(asked.replay, "wrong", ["one"], cold=True),
        "replay, warm": warm,
    }
    found: dict[str, list[Any]] = alternate(ways, pairs)
    names = ("replay, warm", "first value, warm", "asked again")
    told = dict(zip(names, map(list, zip(*found["replay, warm"], strict=True)), strict=True))
    return {**found, **told}


def _two(asked: Asked, names: Sequence[str], pairs: int) -> dict[str, list[float]]:
    """Several runs, by one worker and by two."""
    by = partial(asked.replay, "wrong_often", names, cold=True)
    ways = {"one worker": by, "one worker, once more": by, "two workers": partial(by, workers=2)}
    return alternate(ways, pairs)


def _figures(
    one: Mapping[str, Sequence[float]], two: Mapping[str, Sequence[float]]
) -> list[Figure]:
    again = one["training again"]
    control = interval(pair_ratios(one["training again, once more"], again))
    figures = [
        Figure(
            "replay, warm / training again",
            interval(pair_ratios(one["replay, warm"], again)),
            control,
            Aim(1 / TIMES),
        ),
        Figure(
            "replay, cold / training again",
            interval(pair_ratios(one["replay, cold"], again)),
            control,
        ),
    ]
    ratio = interval(pair_ratios(two["two workers"], two["one worker"]))
    control = interval(pair_ratios(two["one worker, once more"], two["one worker"]))
    figures.append(Figure("two workers / one", ratio, control, Aim(1 / TIMES_BY_TWO)))
    seconds = interval(one["asked again"])
    none = interval([0.0] * len(one["asked again"]))  # a request that takes no time at all
    return [*figures, Figure("asked again, seconds", seconds, none, Aim(REQUEST_S, neutral=0.0))]


def _table(found: Mapping[str, Sequence[float]]) -> str:
    again = median(found["training again"])
    rows = []
    for name, ones in found.items():
        times = again / median(ones)
        is_of_one = name.startswith(("training", "replay"))
        rows.append((name, f"{median(ones):.3f}", f"{times:.1f}" if is_of_one else ""))
    by_two = median(found["one worker"]) / median(found["two workers"])
    rows[-1] = (*rows[-1][:2], f"{by_two:.2f}")
    return table(("way", "seconds", "times as fast"), rows)


if __name__ == "__main__":
    main()
