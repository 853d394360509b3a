"""K checkpoints in one pass over the validation data against one: what is saved where loading
costs most.

python -m tests.benchmarks.passes [--scale full] [--pairs 11] [--together 8] [--costs 4]

A run with K checkpoints is replayed by a hook that goes through all validation data. Its loader
decodes each text anew, which takes `costs` times the forward pass: that is measured and set
before anything else. What is timed are the seconds of the pass as a replay tells them, weights
and their hashes included; on a machine that others use, the time of the processor says more.
Both ways must give the same values to the last bit."""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from flor_plugins.hooks.hook_files import HookFile, load
from flor_plugins.lightning.replay_driver import drive
from flor_plugins.records import Position, ReplayPass, Run, Task
from flor_plugins.records.events import Event, PassResult
from flor_plugins.replayer.worker_session import replay_loop
from flor_plugins.replayer.worker_session.batch_cache import BatchCache
from flor_plugins.replayer.worker_session.session import WorkerSession
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import load_run
from tests.benchmarks.place import Place, place, run_paths
from tests.benchmarks.ratios import Aim, alternate, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.workloads import Masked, Shape, Tokens, Validated, fit

SHAPES = {
    "tiny": Shape(1, 32, 100, 2, 8),
    "small": Shape(2, 128, 1000, 2, 16),
    "full": Shape(4, 192, 1000, 2, 16),
}
TIMES = 3.0  # how much faster K are than one at a time, at the least
CALIBRATIONS = 4
# of validation data; the first one is loaded twice, to compare it
BATCHES = {
    "tiny": 4,
    "small": 40,
    "full": 40,
}

METRIC = "held_out_loss"
HOOK = """
import torch
import flor_plugins as flor

@flor.metric(at="epoch")
def held_out_loss(ctx):
    losses = [ctx.model.net(**batch).loss for batch in ctx.val_dataloader]
    return float(torch.stack(losses).mean())
"""


class Decoded(Tokens):
    """Texts that are stored compressed, and decoded `rounds` times over when one is asked for."""

    def __init__(self, shape: Shape, number: int, rounds: int) -> None:
        super().__init__(shape, number)
        self.rounds = rounds
        self.packed = [
            zlib.compress(super(Decoded, self).__getitem__(i)["input_ids"].numpy())
            for i in range(number)
        ]

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        for _ in range(self.rounds):
            found = zlib.decompress(self.packed[i])
        x = torch.frombuffer(bytearray(found), dtype=torch.int64)
        return {"input_ids": x, "labels": x}


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one pass over the data: by the model alone, and by the loader alone.
    rounds: of each decoding.
    """

    forward_s: float
    loader_s: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Took:
    """A pass over all positions: seconds by the clock, and of the processor, which others
    don't use up.
    """

    clock_s: float
    cpu_s: float
    values: dict[Position, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A replay that can be asked for again and again."""

    run: Run
    data: DataLoader
    shape: Shape
    hook: HookFile
    numbers: Iterator[int]

    def once(self, together: int) -> Took:
        """together: checkpoints in one pass over the data."""
        told: list[Event] = []
        positions = tuple(
            one.position for one in list_checkpoints(self.run.path) if one.position.epoch
        )
        task = Task(
            self.run.run_id, self.run.name, "", (ReplayPass("state", (METRIC,), "", positions),)
        )
        number = f"20270101-000000-000-{next(self.numbers):06x}"
        session = WorkerSession(self.run, task, number, [self.hook], told.append)
        replay_loop.BatchCache = partial(BatchCache, positions=together)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            max_epochs=1,
        )
        begin = time.process_time()
        drive(
            trainer,
            partial(trainer.fit, Validated(self.shape.build()), _training(self.shape), self.data),
            session,
        )
        cpu_s = time.process_time() - begin
        session.finish()
        [passed] = [one for one in told if isinstance(one, PassResult)]
        rows = [
            row for source, row in read_run(self.run.path, (METRIC,)) if source.replay_id == number
        ]
        for journal in (self.run.path / "metrics").glob(f"replay-{number}-*"):
            journal.unlink()  # a value that is there is not stored again
        values = {row.position: row.values[METRIC] for row in rows if METRIC in row.values}
        return Took(passed.seconds, cpu_s, values)


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    torch.set_num_threads(1)
    shape, batches = SHAPES[options.scale], BATCHES[options.scale]
    with place(options.folder) as there:
        costs = _calibrated(shape, batches, options.costs)
        data = _loader(shape, batches, costs.rounds)
        run = _recorded(there, shape, options.together)
        hook = there.folder() / "hook.py"
        hook.write_text(HOOK, encoding="utf-8")
        asked = Asked(run, data, shape, load(hook), count())
        _check(asked, options.together)
        ways = {"one": 1, "one again": 1, "together": options.together}
        found = alternate(
            {name: partial(asked.once, together) for name, together in ways.items()}, options.pairs
        )
        print(_table(found, options.together), end="\n\n")
        details = {
            "forward_s": costs.forward_s,
            "loader_s": costs.loader_s,
            "costs": costs.loader_s / costs.forward_s,
        }
        seconds = {name: median(map(_clock, ones)) for name, ones in found.items()}
        answer(
            "passes", options, _figures(found, options.together), {**details, "seconds": seconds}
        )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument(
        "--together", type=int, default=8, help="checkpoints in one pass over the data"
    )
    made.add_argument(
        "--costs", type=float, default=4.0, help="what loading takes, in forward passes"
    )
    return made.parse_args(argv)


def _recorded(there: Place, shape: Shape, epochs: int) -> Run:
    """A run with a checkpoint at the end of each epoch."""
    folder = there.folder()
    callback = there.callback("lightning", folder, every_n_epochs=1)
    options = {"max_epochs": epochs, "limit_train_batches": 2}
    fit(
        Masked(shape.build()),
        _training(shape),
        callbacks=[callback],
        folder=there.folder(),
        **options,
    )
    [path] = run_paths(folder)
    return load_run(path)


def _training(shape: Shape) -> DataLoader:
    return DataLoader(Tokens(shape, 2 * shape.batch), shape.batch)


def _loader(shape: Shape, batches: int, rounds: int) -> DataLoader:
    return DataLoader(Decoded(shape, batches * shape.batch, rounds), shape.batch)


def _calibrated(shape: Shape, batches: int, costs: float) -> Costs:
    """How often a text must be decoded so that loading takes `costs` forward passes."""
    model = shape.build().eval()

    def forward(data: DataLoader) -> float:
        held = list(data)
        begin = time.process_time()  # one thread computes; others on the machine don't count
        with torch.no_grad():
            for batch in held:
                model(**batch)
        return time.process_time() - begin

    def loading(data: DataLoader) -> float:
        begin = time.process_time()
        for _ in data:
            pass
        return time.process_time() - begin

    rounds, made = 50, Costs(0.0, 0.0, 0)
    for _ in range(CALIBRATIONS):
        data = _loader(shape, batches, rounds)
        seconds = [(forward(data), loading(data)) for _ in range(5)]
        made = Costs(
            median(one for one, _ in seconds), median(other for _, other in seconds), rounds
        )
        rounds = max(1, round(rounds * costs * made.forward_s / made.loader_s))
    tell(
        f"a pass takes {made.forward_s:.3f} s in the model and {made.loader_s:.3f} s in the loader"
    )
    return made


def _check(asked: Asked, together: int) -> None:
    """Both ways give the same bits at every position; else there is nothing to measure."""
    one, other = asked.once(1).values, asked.once(together).values
    if len(one) != together or one != other:
        raise AssertionError(f"one at a time gave {one}, and {together} together {other}")


def _figures(found: Mapping[str, Sequence[Took]], together: int) -> list[Figure]:
    # The aim is for 8: of fewer less of the loading can be saved.
    aim = Aim(1 / TIMES) if together >= 8 else None
    figures = []
    for name, seconds, limit in (("", _clock, aim), (", processor", _cpu, None)):
        one, other, again = (
            list(map(seconds, found[way])) for way in ("one", "together", "one again")
        )
        ratio, control = interval(pair_ratios(other, one)), interval(pair_ratios(again, one))
        figures.append(Figure(f"{together} in a pass / 1{name}", ratio, control, limit))
    return figures


def _clock(took: Took) -> float:
    return took.clock_s


def _cpu(took: Took) -> float:
    return took.cpu_s


def _table(found: Mapping[str, Sequence[Took]], together: int) -> str:
    names = {"one": "1", "one again": "1, again", "together": str(together)}
    rows = []
    for name, ones in found.items():
        clock, cpu = (median(map(seconds, ones)) for seconds in (_clock, _cpu))
        times = median(map(_clock, found["one"])) / clock
        rows.append((names[name], f"{clock:.3f}", f"{cpu:.3f}", f"{times:.2f}"))
    return table(("checkpoints in a pass", "seconds", "of the processor", "times as fast"), rows)


if __name__ == "__main__":
    main()
