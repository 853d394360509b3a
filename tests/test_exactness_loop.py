"""A replayed hand-written loop equals the recorded one to the last bit, from any checkpoint,
whatever it uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flor_plugins
from flor_plugins.loops import replay_driver
from flor_plugins.loops.api import loop_stack
from flor_plugins.loops.collector import MetricCollector
from flor_plugins.records import Position, Run
from flor_plugins.replayer.execution.launched_fit import RelaunchScript, ReplayDone
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import index_run
from flor_plugins.store.runs import list_runs
from tests import cells_loop
from tests.cells_loop import Flor
from tests.conftest import few, table_of
from tests.variants import session_of

pytestmark = pytest.mark.filterwarnings("ignore")


# The others are marked slow.
FEW = (
    "break_and_continue",
    "generators",
    "own_trainer",
    "counters",
    "accelerated",
    "arrays",
    "own_environment",
)
CELLS = few(cells_loop.CELLS, FEW)


def alone(act: Callable[[], Any]) -> Any:
    """As in a thread of its own: nothing of an earlier training is on the stage."""
    return Context().run(act)


def record(name: str, folder: Path, **options: Any) -> tuple[Run, Flor]:
    flor = Flor(flor_plugins, {"store": folder / "store", "overhead": None, **options})
    alone(lambda: cells_loop.train(name, flor))
    (run,) = list_runs(Store(folder / "store"))
    assert not [gap for gap in run.gaps if "git" not in gap], run.gaps
    return run, flor


def replay(
    name: str,
    run: Run,
    ways: dict[str, tuple[int, ...]],
    inside: Sequence[tuple[Position, Position]] = (),
) -> tuple[list[dict[str, Any]], Flor]:
    session, events = session_of(run, ways, inside)
    flor = Flor(flor_plugins)

    found: list[replay_driver.LoopReplayDriver] = []

    def begin(on: Any, main: Any) -> Any:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(99)
        if found:
            found[0].begin_again((on, main))
        else:
            found.append(replay_driver.drive((on, main), lambda: None, session))
        return found[0]

    def train() -> None:
        loop_stack().begin = begin
        with pytest.raises((ReplayDone, RelaunchScript)):
            cells_loop.train(name, flor)

    while not found or not found[0].is_done:
        alone(train)
    return events, flor


def passed(events: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        event["way"]: (event["grade"], event["detail"])
        for event in events
        if event["event"] == "passed"
    }


@pytest.mark.exactness
@pytest.mark.parametrize("name", CELLS)
def test_recorded_loop_trains_as_one_without_flor(name: str, tmp_path: Path) -> None:
    without = alone(lambda: cells_loop.train(name, Flor()))
    _, recorded = record(name, tmp_path, every_n_steps=2)
    assert recorded.told == without.told
    assert all(torch.equal(recorded.final[key], value) for key, value in without.final.items())


@pytest.mark.exactness
@pytest.mark.parametrize("name", CELLS)
def test_replay_from_epochs_and_steps_is_bit_equal(name: str, tmp_path: Path) -> None:
    run, recorded = record(name, tmp_path, every_n_steps=1)
    places = index_run(run)
    last, starts = max(places.ends), places.starts
    within = [one for one in starts if places.ends.get(one.epoch) != one.step]
    assert within or name in ("only_batches", "three_levels"), [str(one) for one in starts]
    wanted = tuple(sorted({1, min(3, last), last}))
    whole = [(places.end_of(epoch - 1), places.end_of(epoch)) for epoch in wanted]
    inside = [(one, places.end_of(one.epoch + 1)) for one in within if one.epoch in (0, last - 1)]
    steps = [(one, next(two for two in starts if two > one)) for one in within if one.epoch == 1]

    events, replayed = replay(
        name, run, {"state": (1, last), "train": ()}, [*whole, *inside, *steps]
    )

    assert passed(events) == {"state": ("exact", ""), "train": ("exact", "")}
    compared = {(e["epoch"], e["step"]) for e in events if e["event"] == "weights"}
    assert {(end.epoch, end.step) for _, end in (*whole, *inside, *steps)} <= compared
    known = [bits for _, bits in recorded.told]
    assert {bits for _, bits in replayed.told} <= {*known} and len(replayed.told) >= len(
        known
    ) / last


def test_values_logged_in_threads_are_recorded_at_their_steps_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = record("logged_in_threads", tmp_path)
    rows = table_of(run).items()
    steps = [row for _, row in rows if "loss_in_thread" in row]
    assert len(steps) == 18 and all(row["loss_in_thread"] == row["loss"] for row in steps)
    epochs = [str(place[0]) for place, row in rows if "norm_in_thread" in row]
    assert epochs == ["epoch=1,step=6", "epoch=2,step=12", "epoch=3,step=18"]

    heard, original = [], MetricCollector.log

    def log(self: MetricCollector, name: str, value: object) -> None:
        heard.append(name)
        original(self, name, value)

    monkeypatch.setattr(MetricCollector, "log", log)
    events, _ = replay("logged_in_threads", run, {"train": (2,)})
    assert passed(events)["train"] == ("exact", "")
    assert heard.count("loss_in_thread") == 6 and heard.count("norm_in_thread") == 1


def test_epoch_without_a_checkpoint_before_it_is_reached_by_going_on(tmp_path: Path) -> None:
    run, _ = record("counters", tmp_path, every_n_epochs=3)
    events, _ = replay("counters", run, {"train": (1, 2, 3)})
    assert passed(events)["train"] == ("exact", "")
