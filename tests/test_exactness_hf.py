"""A replayed HF training equals the recorded one to the last bit, from any checkpoint,
whatever it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import index_run
from flor_plugins.store.runs import list_runs
from tests import cells_hf
from tests.conftest import few
from tests.variants import session_of

pytestmark = pytest.mark.filterwarnings("ignore")

Update = tuple[int, int]  # epochs and updates made before it
Micro = list[tuple[Update, str]]  # the bits of every micro-batch's loss


def watched(trainer: Any) -> Micro:
    """The list that every micro-batch's loss goes to, without flor."""
    losses: Micro = []
    epoch = 0
    original, original_epoch = trainer.training_step, trainer._run_epoch

    def _run_epoch(*args: Any, **kwargs: Any) -> Any:
        nonlocal epoch
        epoch = kwargs["epoch"]
        return original_epoch(*args, **kwargs)

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        losses.append(((epoch, trainer.state.global_step), loss.float().numpy().tobytes().hex()))
        return loss

    trainer.training_step, trainer._run_epoch = training_step, _run_epoch
    return losses


def windows(losses: Micro) -> list[tuple[Update, list[str]]]:
    """The losses of each update's micro-batches, in order."""
    found: list[tuple[Update, list[str]]] = []
    for update, loss in losses:
        if not found or found[-1][0] != update:
            found.append((update, []))
        found[-1][1].append(loss)
    return found


def record(name: str, folder: Path, **options: Any) -> tuple[Run, Micro]:
    from flor_plugins.hf import FlorCallback, loaders

    trainer, train = cells_hf.train(
        name, folder / "out", FlorCallback(store=folder / "store", **options)
    )
    losses = watched(trainer)
    train()
    loaders.end_workers(trainer)
    (run,) = list_runs(Store(folder / "store"))
    assert not [gap for gap in run.gaps if "git" not in gap], run.gaps
    return run, losses


def replay(
    name: str,
    folder: Path,
    run: Run,
    ways: dict[str, tuple[int, ...]],
    inside: Sequence[tuple[Position, Position]] = (),
) -> tuple[list[dict[str, Any]], Micro]:
    from flor_plugins.hf import FlorCallback, replay_driver

    session, events = session_of(run, ways, inside)
    trainer, train = cells_hf.train(name, folder / "out", FlorCallback())
    losses = watched(trainer)
    torch.manual_seed(99)
    replay_driver.drive(trainer, train, session)
    return events, losses


def passed(events: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        event["way"]: (event["grade"], event["detail"])
        for event in events
        if event["event"] == "passed"
    }


@pytest.mark.exactness
@pytest.mark.parametrize("name", few(cells_hf.CELLS, cells_hf.FEW))
def test_replay_from_epochs_and_steps_is_bit_equal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, recorded = record(name, tmp_path, every_n_steps=cells_hf.every_n_steps(name))
    places = index_run(run)
    last = max(places.ends)
    within = [
        p
        for p in places.starts
        if p.epoch == min(2, last - 1) and places.ends.get(p.epoch) != p.step
    ]
    assert len(within) >= 2, [str(c.position) for c in list_checkpoints(run.path)]
    first, second = within[:2]
    end = places.end_of(first.epoch + 1)
    before = sorted((tmp_path / "out").rglob("*"))

    wanted = tuple(sorted({1, min(3, last), last}))
    whole = [(places.end_of(epoch - 1), places.end_of(epoch)) for epoch in wanted]
    stretches = [*whole, (first, end), (first, second), (second, end)]
    events, replayed = replay(name, tmp_path, run, {"train": (), "validate": (last,)}, stretches)

    verdicts = passed(events)
    assert verdicts.pop("train") == ("exact", "")
    assert verdicts["validate"][0] in ("exact", "unverified")
    compared = {(e["epoch"], e["step"]) for e in events if e["event"] == "weights"}
    assert {(e.epoch, e.step) for _, e in stretches} <= compared
    known = dict(windows(recorded))
    again = windows(replayed)
    assert again == [(update, known[update]) for update, _ in again]
    assert {step for (_, step), _ in again} >= {
        step for s, e in stretches for step in range(s.step, e.step)
    }
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_epoch_without_a_checkpoint_before_it_is_reached_by_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = record("plain", tmp_path, every_n_epochs=3)
    events, _ = replay("plain", tmp_path, run, {"train": (1, 2, 3)})
    assert passed(events)["train"] == ("exact", "")
