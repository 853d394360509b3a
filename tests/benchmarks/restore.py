"""How fast a live model is set to a random epoch of a run: in copies of its weights.

python -m tests.benchmarks.restore [--scale full] [--pairs 11] [--epochs 5]

The unit is one memcpy of the weights into the model, from memory that was touched before. Warm:
checkpoints as they were written, in the page cache. Cold: the tier that compresses older
checkpoints. Read ahead: as a replay does it, while the epoch before is evaluated; what is timed
begins when the reading is over. Ours check the hash of every tensor; torch.load and
safetensors, measured beside them on the same weights, check nothing."""

from __future__ import annotations

import argparse
import random
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flor_plugins.records import Position
from flor_plugins.replayer.worker_session.prefetch import StatePrefetcher, StateRequest
from flor_plugins.state.fast_load import copy_into
from flor_plugins.store import codec
from flor_plugins.store.checkpoints import load_checkpoint, save_checkpoint
from tests.benchmarks.place import place
from tests.benchmarks.ratios import Aim, alternate, interval, pair_ratios
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell
from tests.benchmarks.workloads import LARGE, Memcpy

LIMITS = {
    "warm, read ahead": 1.1,
    "warm, into the model": 1.1,
    "cold, read ahead": 2.0,
    "cold, into the model": 2.0,
}
SECTION = "model"
# how far AdamW moves a weight in one step; an epoch here is one step, and the worst for a delta
LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class Way:
    """How the model is set to an epoch.

    prepare: what was done before it is asked for, and is not timed.
    """

    restore: Callable[[int], object]
    prepare: Callable[[int], object] = lambda epoch: None


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    quiet()
    with place(options.folder) as there:
        model = LARGE[options.scale].build()
        folder = there.folder()
        _record(folder, model, options.epochs)
        cold = _cooled(folder)
        for one in folder.rglob("*"):
            if one.is_file():
                one.read_bytes()  # into the page cache
        variants = _variants(folder, cold, model)
        for name, way in variants.items():
            _check(name, way, folder, model, options.epochs)
        measures = {name: partial(_measure, one, options.epochs) for name, one in variants.items()}
        found = alternate(measures, options.pairs)
    print(_table(found), end="\n\n")
    nbytes = sum(one.nbytes for one in model.state_dict().values())
    seconds = {name: median(ones) for name, ones in found.items()}
    details = {
        "weights_bytes": nbytes,
        "seconds": seconds,
        "cold": "measured" if cold else "absent",
    }
    answer("restore", options, _figures(found), details)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--epochs", type=int, default=5, help="checkpoints to choose from")
    return made.parse_args(argv)


def _record(folder: Path, model: torch.nn.Module, epochs: int) -> None:
    """The same weights as a run, as files of torch.save and as plain safetensors."""
    known: Any = {}
    for epoch in range(1, epochs + 1):
        with torch.no_grad():
            for one in model.parameters():
                one.add_(torch.randn_like(one).sign_(), alpha=LEARNING_RATE)
        state = model.state_dict()
        save_checkpoint(folder / "run", _position(epoch), codec.encode({SECTION: state}), known)
        torch.save(state, folder / f"{epoch}.pt")
        save_file(
            {name: one.clone() for name, one in state.items()}, folder / f"{epoch}.safetensors"
        )


def _cooled(folder: Path) -> Path | None:
    """A copy of the run in the cold tier; None if there is no such tier."""
    try:
        compress_run = import_module("flor_plugins.store.checkpoints.compression").compress_run
    except (ModuleNotFoundError, AttributeError):
        tell("cold tier: absent")
        return None
    shutil.copytree(folder / "run", folder / "cold")
    begin = time.perf_counter()
    compress_run(folder / "cold", keep=0)
    sizes = [
        sum(one.stat().st_size for one in (folder / name).rglob("*")) for name in ("cold", "run")
    ]
    tell(f"cooled in {time.perf_counter() - begin:.1f} s to {sizes[0] / sizes[1]:.3f} of its size")
    return folder / "cold"


def _variants(folder: Path, cold: Path | None, model: torch.nn.Module) -> dict[str, Way]:
    copy = Memcpy(model.state_dict().values())
    read_back = {
        "torch.load": lambda epoch: torch.load(
            folder / f"{epoch}.pt", mmap=True, weights_only=True
        ),
        "safetensors": lambda epoch: load_file(folder / f"{epoch}.safetensors"),
    }
    variants = {
        "memcpy": Way(lambda epoch: copy.once()),
        "memcpy again": Way(lambda epoch: copy.once()),
    }
    for name, read in read_back.items():
        variants[name] = Way(lambda epoch, read=read: model.load_state_dict(read(epoch)))
    for name, run in {"warm": folder / "run", "cold": cold}.items():
        if run is not None:
            ahead = ReadAhead(run, model)
            buffers = {key: one.clone() for key, one in _live(model).items()}
            variants[f"{name}, read ahead"] = Way(ahead.restore, ahead.prepare)
            variants[f"{name}, into the model"] = Way(partial(_in_place, run, model))
            variants[f"{name}, through buffers"] = Way(partial(_through, run, model, buffers))
            variants[f"{name}, fresh memory"] = Way(partial(_through, run, model, None))
    return variants


class ReadAhead:
    """As a replay restores: the State was read while the one before was evaluated."""

    def __init__(self, run: Path, model: torch.nn.Module) -> None:
        self._model, self._order = model, []
        # All that it asks of a run is where it lies and how many processes trained it.
        place: Any = SimpleNamespace(path=run, processes=1)
        self._prefetch = StatePrefetcher(place, 0, self._order, tell)

    def prepare(self, epoch: int) -> None:
        """Returns when the epoch is read: an evaluation takes longer than that."""
        self._order.append(StateRequest(_position(epoch), (SECTION,)))
        self._prefetch.begin()
        for one in threading.enumerate():
            if one.name.startswith("flor reads"):
                one.join()

    def restore(self, epoch: int) -> None:
        _set(self._model, self._prefetch.load(self._order[-1])[SECTION])


def _in_place(run: Path, model: torch.nn.Module, epoch: int) -> None:
    """The live tensors are what is read into: nothing is copied afterwards."""
    load_checkpoint(run, _position(epoch), [SECTION], into=_live(model))


def _through(
    run: Path, model: torch.nn.Module, buffers: Mapping[str, torch.Tensor] | None, epoch: int
) -> None:
    """As the adapters restore a State that was not read ahead."""
    _set(model, load_checkpoint(run, _position(epoch), [SECTION], into=buffers)[SECTION])


def _set(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    if not copy_into(model, state):
        model.load_state_dict(state)


def _live(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's own tensors by the names that a checkpoint gives them; a tied one under
    its first name.
    """
    return dict(codec.survey({SECTION: model.state_dict()}).tensors)


def _position(epoch: int) -> Position:
    return Position(epoch, 10 * epoch)


def _measure(way: Way, epochs: int) -> float:
    """Seconds, the median of three epochs drawn at random."""
    return median(_seconds(way, random.randint(1, epochs)) for _ in range(3))


def _seconds(way: Way, epoch: int) -> float:
    way.prepare(epoch)
    begin = time.perf_counter()
    way.restore(epoch)
    return time.perf_counter() - begin


def _check(name: str, way: Way, folder: Path, model: torch.nn.Module, epochs: int) -> None:
    """Each way sets the model to the epoch asked for, to the last bit; else there is nothing
    to measure.
    """
    if name.startswith("memcpy"):
        return
    for epoch in (1, epochs):
        way.prepare(epoch)
        way.restore(epoch)
        expected = load_file(folder / f"{epoch}.safetensors")
        if not all(torch.equal(one, expected[key]) for key, one in model.state_dict().items()):
            raise AssertionError(f"{name} did not set the model to epoch {epoch}")


def _figures(found: Mapping[str, Sequence[float]]) -> list[Figure]:
    control = interval(pair_ratios(found["memcpy again"], found["memcpy"]))
    figures = []
    for name, seconds in found.items():
        if not name.startswith("memcpy"):
            limit = LIMITS.get(name)
            ratio = interval(pair_ratios(seconds, found["memcpy"]))
            figures.append(
                Figure(f"{name} / memcpy", ratio, control, None if limit is None else Aim(limit))
            )
    return figures


def _table(found: Mapping[str, Sequence[float]]) -> str:
    return table(
        ("restore", "ms"), [(name, f"{1000 * median(ones):.2f}") for name, ones in found.items()]
    )


if __name__ == "__main__":
    main()
