"""A replay of a Lightning training equals the recording to the last bit, from any epoch and
any step.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

import flor_plugins as flor
from flor_plugins.lightning import FlorCallback, fast_forward, replay_driver
from flor_plugins.records import Position, ReplayPass, Row, Run, TrainingRange
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.store.checkpoints import load_checkpoint
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.run_index import RunIndex, index_run
from flor_plugins.store.runs import list_runs
from tests import cells_lightning, variants
from tests.conftest import few

pytestmark = pytest.mark.filterwarnings("ignore")

Losses = dict[tuple[int, int], list[torch.Tensor]]


def watched(module: pl.LightningModule) -> Losses:
    """The loss of every micro-batch, by (epochs completed, batch); a batch that is run again
    has another one.
    """
    losses: Losses = {}
    original: Callable[..., Any] = module.training_step

    @functools.wraps(original)  # Lightning looks at the names of the parameters
    def training_step(batch: Any, index: int) -> Any:
        loss = original(batch, index)
        losses.setdefault((module.current_epoch, index), []).append(loss.detach().clone())
        return loss

    module.training_step = training_step  # type: ignore[method-assign]
    return losses


def record(name: str, folder: Path, **options: Any) -> tuple[Run, Losses]:
    callback = FlorCallback(store=folder / "store", **options)
    module, _, fit = cells_lightning.train(name, folder / "saved", callback, seed=5)
    losses = watched(module)
    fit()
    (run,) = list_runs(Store(folder / "store"))
    return run, losses


def replay(
    name: str,
    folder: Path,
    run: Run,
    stretches: list[tuple[Position, Position]],
    validated: tuple[int, ...] = (),
) -> tuple[list[dict[str, Any]], Losses]:
    ways = {"train": (), **({"validate": validated} if validated else {})}
    session, events = variants.session_of(run, ways, stretches)
    module, trainer, fit = cells_lightning.train(name, folder / "saved", FlorCallback(), seed=77)
    losses = watched(module)
    replay_driver.drive(trainer, fit, session)
    return events, losses


def inside(places: RunIndex, epoch: int) -> list[Position]:
    """Checkpoints inside the epoch that follows `epoch` completed ones."""
    return [one for one in places.starts if one.epoch == epoch and one.step != places.ends[epoch]]


def graded(events: list[dict[str, Any]], way: str) -> tuple[str, str]:
    (found,) = [
        (one["grade"], one["detail"])
        for one in events
        if one["event"] == "passed" and one["way"] == way
    ]
    return found


def times_run(recorded: Losses, replayed: Losses) -> int:
    """How often the batch was run that was run most; with LBFGS one run takes several losses."""
    return max(len(found) // len(recorded[place]) for place, found in replayed.items())


def same_bits(recorded: Losses, replayed: Losses) -> bool:
    for place, found in replayed.items():
        expected = recorded[place] * (len(found) // len(recorded[place]))
        if not torch.equal(
            torch.stack(found).view(torch.int32), torch.stack(expected).view(torch.int32)
        ):
            return False
    return True


@pytest.mark.exactness
@pytest.mark.parametrize("name", few(cells_lightning.CELLS, cells_lightning.FEW))
def test_replayed_epochs_and_steps_are_bit_equal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = cells_lightning.CELLS[name]
    run, recorded = record(name, tmp_path, every_n_steps=cell.every)
    assert (run.status, run.gaps) == ("finished", ())
    before = sorted(tmp_path.glob("saved/*"))
    places = index_run(run)
    last = max(places.ends)
    steps = inside(places, min(2, last - 1))
    assert len(steps) >= 2
    whole = [
        (places.end_of(epoch - 1), places.end_of(epoch))
        for epoch in sorted({1, min(3, last), last})
    ]
    halves = [(step, places.end_of(step.epoch + 1)) for step in (steps[0], steps[-1])]

    events, replayed = replay(
        name, tmp_path, run, [*whole, *halves], (last,) if cell.validates else ()
    )

    assert graded(events, "train") == ("exact", "")
    assert cell.validates == ("validate" in [one.get("way") for one in events])
    if cell.validates:
        assert graded(events, "validate") == ("exact", "")
    compared = {(one["epoch"], one["step"]) for one in events if one["event"] == "weights"}
    assert {(end.epoch, end.step) for _, end in [*whole, *halves]} <= compared
    assert {epoch for epoch, _ in replayed} >= {epoch - 1 for epoch in (1, min(3, last), last)}
    # its last batches: once from the start, twice from steps inside
    assert times_run(recorded, replayed) == 3
    assert same_bits(recorded, replayed)
    assert sorted(tmp_path.glob("saved/*")) == before


@pytest.mark.exactness
@pytest.mark.parametrize(
    ("name", "is_inside"),
    [
        ("accumulate_stream", True),
        ("persistent_workers", False),
        ("swa", True),
        *(
            pytest.param(name, is_inside, marks=pytest.mark.slow)
            for name, is_inside in [
                ("accumulate_stream", False),
                ("persistent_workers", True),
                ("swa", False),
                *product(
                    ["plateau", "ema", "manual_stream", "early_stopping_min_steps"], [True, False]
                ),
            ]
        ),
    ],
)
def test_fit_that_begins_at_a_state_ends_in_the_weights_of_the_uninterrupted_one(
    name: str, is_inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every = cells_lightning.CELLS[name].every
    callback = FlorCallback(store=tmp_path / "store", every_n_steps=every)
    whole, _, fit = cells_lightning.train(name, tmp_path, callback, seed=5)
    recorded = watched(whole)
    fit()
    (run,) = list_runs(Store(tmp_path / "store"))
    places = index_run(run)
    start = inside(places, 2)[-1] if is_inside else places.end_of(2)

    restored: list[int] = []

    class Resuming(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            state = load_checkpoint(run.path, start)
            fast_forward.resume_at(
                trainer, state, MethodWrapper(), lambda: restored.append(trainer.global_step)
            )

    resumed, trainer, fit = cells_lightning.train(name, tmp_path, Resuming(), seed=77)
    losses = watched(resumed)
    fit()
    assert same_bits(recorded, losses) and times_run(recorded, losses) == 1
    assert max(losses) == max(recorded) and min(losses)[0] == 2
    assert (min(losses)[1] > 0) == is_inside and restored == [start.step]
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert trainer.global_step == places.last.step


def test_stretch_that_ends_inside_an_epoch_leaves_it_without_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, recorded = record("dropout_shuffle", tmp_path, every_n_steps=2)
    ends: list[int] = []
    monkeypatch.setattr(
        variants.Net, "on_train_epoch_end", lambda self: ends.append(self.current_epoch)
    )
    cuts = [
        (Position(0, 0), Position(0, 4)),
        (Position(2, 32), Position(2, 36)),
        (Position(2, 36), Position(2, 38)),
    ]
    over = (Position(2, 40), Position(3, 48))
    events, replayed = replay("dropout_shuffle", tmp_path, run, [*cuts, over])
    assert graded(events, "train") == ("exact", "")
    assert ends == [2]
    batches = {0: range(4), 2: [*range(2, 8), *range(10, 15)], 3: range(3)}
    assert replayed.keys() == {
        (epoch, batch) for epoch, found in batches.items() for batch in found
    }
    assert times_run(recorded, replayed) == 1 and same_bits(recorded, replayed)


@pytest.mark.parametrize(
    "name",
    few(
        ["swa", "finetuning", "reloaded", "two_loaders", "own_generator_workers"],
        ["swa", "reloaded"],
    ),
)
def test_epochs_can_be_run_again_in_any_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, recorded = record(name, tmp_path, every_n_steps=4)
    places = index_run(run)
    wanted = [max(places.ends), 1, max(places.ends), 2]
    stretches = tuple(
        TrainingRange(places.end_of(epoch - 1), places.end_of(epoch), (epoch,)) for epoch in wanted
    )
    session, events = variants.session_of(run, {})
    session.task = replace(
        session.task, passes=(ReplayPass("train", ("nothing",), "", stretches=stretches),)
    )
    module, trainer, fit = cells_lightning.train(name, tmp_path / "saved", FlorCallback(), seed=77)
    losses = watched(module)
    replay_driver.drive(trainer, fit, session)
    assert graded(events, "train") == ("exact", "")
    assert same_bits(recorded, losses) and times_run(recorded, losses) == 2


def test_stretch_that_diverges_is_run_again_from_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = record("persistent_workers", tmp_path, every_n_steps=4)
    session, events = variants.session_of(run, {"train": ()}, [(Position(2, 32), Position(3, 45))])
    module, trainer, fit = cells_lightning.train(
        "persistent_workers", tmp_path, FlorCallback(), seed=77
    )
    original = module.forward
    monkeypatch.setattr(
        module, "forward", lambda x: original(x) * (1.01 if trainer.global_step == 37 else 1)
    )
    losses = watched(module)
    replay_driver.drive(trainer, fit, session)
    assert graded(events, "train")[0] == "diverged"
    assert {len(losses[2, batch]) for batch in range(2, 8)} == {2}
    assert all(
        torch.equal(first, second) for first, second in (losses[2, batch] for batch in range(2, 8))
    )


def test_second_replay_of_one_stretch_is_no_evidence_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = record("dropout_shuffle", tmp_path, every_n_steps=4)
    both = [(Position(2, 32), Position(2, 36)), (Position(2, 36), Position(2, 40))]
    session, events = variants.session_of(run, {"train": ()}, both)
    module, trainer, fit = cells_lightning.train(
        "dropout_shuffle", tmp_path, FlorCallback(), seed=77
    )
    original, unseeded = module.forward, random.Random()
    draws: dict[int, Callable[[], float]] = {33: lambda: 1.5 + unseeded.random(), 38: lambda: 1.5}
    monkeypatch.setattr(
        module, "forward", lambda x: original(x) * draws.get(trainer.global_step, lambda: 1.0)()
    )
    replay_driver.drive(trainer, fit, session)
    first, second = (one["causes"] for one in events if one["event"] == "stretch")
    assert "two replays differ from each other at step 34" in first[0]
    assert second and not any(line.startswith("two replays") for line in second)


def test_views_of_weights_that_a_callback_holds_are_not_saved_as_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watching(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.view, self.seen = pl_module.head.weight.data, 3

    monkeypatch.chdir(tmp_path)
    callback = FlorCallback(store=tmp_path / "store")
    _, trainer, fit = cells_lightning.train("dropout_shuffle", tmp_path, callback, seed=5)
    trainer.callbacks.append(Watching())
    fit()
    (run,) = list_runs(Store(tmp_path / "store"))
    saved = load_checkpoint(run.path, Position(0, 0), ["trainer"])["trainer"]["callbacks"]
    (kept,) = [one["attributes"] for name, one in saved.items() if "Watching" in name]
    assert kept == {"seen": 3}


def test_validation_inside_an_epoch_is_repeated_from_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = record("validated_at_0.4", tmp_path, every_n_steps=2)
    validated = tuple(sorted(one for one in index_run(run).validated if one.epoch == 2))
    assert validated == (Position(2, 36), Position(2, 42))
    session, events = variants.session_of(run, {"validate": ()})
    session.task = replace(
        session.task, passes=(ReplayPass("validate", ("nothing",), "", validated),)
    )
    _, trainer, fit = cells_lightning.train("validated_at_0.4", tmp_path, FlorCallback(), seed=77)
    replay_driver.drive(trainer, fit, session)
    assert graded(events, "validate") == ("exact", "")
    assert [one["compared"] for one in events if one["event"] == "passed"] == [2]


def test_weights_are_all_that_a_hook_on_the_state_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flor.metric(at="epoch")
    def size(ctx: flor.Context) -> float:
        return float(sum(p.square().sum() for p in ctx.model.parameters()))

    monkeypatch.chdir(tmp_path)
    run, _ = record("dropout_shuffle", tmp_path, every_n_steps=4, metrics=[size])
    wanted = (Position(2, 36), Position(3, 45))
    for position in wanted:
        (run.path / "checkpoints" / str(position) / "optimizer.safetensors").unlink()
    session, events = variants.session_of(run, {})
    session.task = replace(session.task, passes=(ReplayPass("state", ("size",), "", wanted),))
    session.hooks_of = lambda one: (size,)  # type: ignore[method-assign]
    rows: list[Row] = []
    session.timeline.emit = rows.append
    replay_driver.drive(
        *cells_lightning.train("dropout_shuffle", tmp_path, FlorCallback(), seed=77)[1:], session
    )
    assert graded(events, "state") == ("exact", "")
    found = [(row.position, row.level, row.values["size"]) for row in rows]
    assert [one[:2] for one in found] == [(Position(2, 36), "step"), (Position(3, 45), "epoch")]
    recorded = [row.values["size"] for _, row in read_run(run.path) if "size" in row.values]
    assert found[1][2] == recorded[2]


@pytest.mark.parametrize(
    "name",
    few(
        ["dropout_shuffle", "accumulate_stream", "persistent_workers", "manual_stream"],
        ["dropout_shuffle", "persistent_workers"],
    ),
)
def test_checkpoints_at_steps_change_no_bit_of_the_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, _, fit = cells_lightning.train(name, tmp_path, None, seed=5)
    alone = watched(module)
    fit()
    _, recorded = record(name, tmp_path, every_n_steps=1)
    assert recorded.keys() == alone.keys() and same_bits(alone, recorded)


def test_time_alone_makes_a_checkpoint_inside_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = record("stream", tmp_path, every_minutes=1e-9)
    # at some updates the RNG of the batch before is not known
    assert len(inside(index_run(run), 0)) >= 13


def test_epoch_without_a_checkpoint_before_it_is_reached_by_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, recorded = record("dropout_shuffle", tmp_path, every_n_epochs=3)
    events, replayed = replay("dropout_shuffle", tmp_path, run, [(Position(0, 0), Position(3, 45))])
    assert graded(events, "train") == ("exact", "")
    assert len(replayed) == 45 and same_bits(recorded, replayed)
