"""Checkpoints inside an epoch of an HF training, fingerprints of its batches, and going on
from any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import flor_plugins as flor
from flor_plugins.hf import FlorCallback, fast_forward, loaders
from flor_plugins.records import Position, ReplayPass, Run
from flor_plugins.state import batch_fingerprint as fingerprints
from flor_plugins.state.method_wrapper import MethodWrapper
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import index_run
from flor_plugins.store.runs import list_runs
from tests import cells_hf
from tests.conftest import at, few, table_of
from tests.test_exactness_hf import passed, record, replay, watched

pytestmark = pytest.mark.filterwarnings("ignore")

BATCHES = cells_hf.SIZE // cells_hf.BATCH


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no git repository: nothing is recorded into that of the tests


def positions(run: Run) -> list[tuple[int, int]]:
    assert all(one.is_full for one in list_checkpoints(run.path))
    return [(one.position.epoch, one.position.step) for one in list_checkpoints(run.path)]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- where checkpoints stand


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (4, [(0, 0), (0, 4), (0, 8), (1, 10), (1, 12), (1, 16), (2, 20)]),
        # step 10 completes an epoch: its boundary has it
        (
            5,
            [(0, 0), (0, 5), (1, 10), (1, 15), (2, 20)],
        ),
    ],
)
@pytest.mark.parametrize("name", ["plain", "endless_name"])
def test_every_n_steps_saves_inside_epochs_and_no_moment_twice(
    name: str,
    every: int,
    expected: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        cells_hf.CELLS, name, {"num_train_epochs": 2, "max_steps": 20 if name != "plain" else -1}
    )
    run, _ = record(name, tmp_path, every_n_steps=every)
    assert positions(run) == expected


def test_every_minutes_saves_inside_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cells_hf.CELLS, "plain", {"num_train_epochs": 1})
    run, _ = record("plain", tmp_path, every_minutes=1e-9)
    assert positions(run) == [(0, step) for step in range(BATCHES)] + [(1, BATCHES)]


@pytest.mark.parametrize(
    "name",
    few(
        ["plain", "accumulate", "persistent_workers_by_steps"],
        ["accumulate", "persistent_workers_by_steps"],
    ),
)
def test_checkpoints_at_every_step_change_no_bit_of_the_training(name: str, tmp_path: Path) -> None:
    found = []
    for callback in (TrainerCallback(), FlorCallback(store=tmp_path / "store", every_n_steps=1)):
        trainer, train = cells_hf.train(name, tmp_path / "out", callback)
        losses = watched(trainer)
        train()
        loaders.end_workers(trainer)
        found.append((weights(trainer), losses))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


# ---- fingerprints


@pytest.mark.parametrize("name", ["plain", "accumulate"])
def test_every_update_has_the_fingerprint_of_its_batches(name: str, tmp_path: Path) -> None:
    trainer, train = cells_hf.train(name, tmp_path / "out", FlorCallback(store=tmp_path / "store"))
    seen: dict[int, list[Any]] = {}
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.setdefault(trainer.state.global_step + 1, []).append(
                {k: v.clone() for k, v in inputs.items()}
            )
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    train()
    (run,) = list_runs(Store(tmp_path / "store"))
    table, places = table_of(run), index_run(run)
    for step, batches in seen.items():
        position = places.at_step(step)
        values = at(table, position.epoch, position.step)
        assert values["flor.batch"] == sum(
            n * int(fingerprints.checksum(one)) for n, one in enumerate(batches, 1)
        )
        is_first = step - 1 in places.ends.values()
        assert values.get("flor.first_batch") == (
            fingerprints.sha256(batches[0]) if is_first else None
        )


def test_batch_that_cant_be_fingerprinted_is_trained_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(batch: Any) -> Any:
        raise TypeError("no such batch")

    monkeypatch.setattr(fingerprints, "checksum", refuse)
    trainer, train = cells_hf.train(
        "plain", tmp_path / "out", FlorCallback(store=tmp_path / "store")
    )
    train()
    (run,) = list_runs(Store(tmp_path / "store"))
    assert run.status == "finished" and any("no such batch" in gap for gap in run.gaps)
    assert "loss" in at(table_of(run), 0, 1) and "flor.batch" not in at(table_of(run), 0, 1)
    assert trainer.state.global_step == 4 * BATCHES


# ---- values at steps inside an epoch


@flor.metric(at="epoch")
def norm(ctx: Any) -> Any:
    return torch.stack([p.detach().norm() for p in ctx.model.parameters()]).norm()


def test_state_and_validation_are_computed_at_a_step_inside_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from flor_plugins.hf import replay_driver
    from tests.variants import session_of

    run, _ = record("evaluated_in_the_epoch", tmp_path, every_n_steps=4)
    session, events = session_of(run, {})
    place = Position(2, 24)
    passes = (
        ReplayPass("state", ("norm",), "", (place,)),
        ReplayPass("validate", ("nothing",), "", (place,)),
    )
    session.task = replace(session.task, passes=passes)
    monkeypatch.setattr(session, "hooks_of", lambda one: (norm,) if one.way == "state" else ())
    rows: list[Any] = []
    emit = session.timeline.emit
    monkeypatch.setattr(session.timeline, "emit", lambda row: (rows.append(row), emit(row)))
    replay_driver.drive(
        *cells_hf.train("evaluated_in_the_epoch", tmp_path / "out", FlorCallback()), session
    )

    assert passed(events) == {"state": ("exact", ""), "validate": ("exact", "")}
    assert {(row.position, row.phase, row.level) for row in rows} == {(place, "validation", "step")}
    saved = load_checkpoint(run.path, place, ["model"])["model"]
    expected = torch.stack([t.norm() for n, t in saved.items() if n != "lm_head.weight"]).norm()
    assert float(rows[0].values["norm"]) == pytest.approx(float(expected), rel=1e-5)


# ---- going on in the user's own train()


class GoOn(TrainerCallback):
    """Lets a training begin at a State."""

    def __init__(self, sections: dict[str, Any]) -> None:
        self.sections, self.trainer = sections, None
        self.ended = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fast_forward.resume_at(
            self.trainer, self.sections, MethodWrapper(), lambda: None, self.sections.clear
        )  # type: ignore[arg-type]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended += 1


PLACES = ((0, 0), (0, 4), (1, 10), (2, 24), (3, 36), (4, 40))
# In the default run: a beginning, an epoch's end, steps within, the end, and each cell.
FEW = (
    ("plain", (0, 0)),
    ("plain", (2, 24)),
    ("persistent_workers_by_steps", (1, 10)),
    ("own_callback", (0, 4)),
    ("best_model", (3, 36)),
    ("best_model", (4, 40)),
)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param(name, place, marks=() if (name, place) in FEW else pytest.mark.slow)
        for name in ("plain", "persistent_workers_by_steps", "own_callback", "best_model")
        for place in PLACES
    ],
)
def test_training_goes_on_from_a_state_to_its_natural_end(
    name: str, place: tuple[int, int], tmp_path: Path
) -> None:
    whole, train = cells_hf.train(
        name, tmp_path / "out", FlorCallback(store=tmp_path / "store", every_n_steps=4)
    )
    losses = watched(whole)
    done = train()
    loaders.end_workers(whole)
    (run,) = list_runs(Store(tmp_path / "store"))

    go_on = GoOn(load_checkpoint(run.path, Position(*place)))
    trainer, train = cells_hf.train(name, tmp_path / "out", go_on)
    go_on.trainer = trainer
    again = watched(trainer)
    torch.manual_seed(77)
    finished = train()
    loaders.end_workers(trainer)
    assert same(weights(whole), weights(trainer))
    assert again == [one for one in losses if one[0] >= place]
    assert (finished.training_loss, finished.global_step) == (done.training_loss, done.global_step)
    assert not go_on.sections, "a State is as large as the model and its optimizer"
    assert (
        go_on.ended == 1
        and trainer.state.log_history[-1]["epoch"] == whole.state.log_history[-1]["epoch"]
    )


def test_epoch_that_the_trainer_resumed_in_its_middle_is_noted_and_the_next_ones_are_exact(
    tmp_path: Path,
) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cells_hf.CELLS, "plain", arguments)
        cells_hf.train("plain", tmp_path / "out", TrainerCallback())[1]()
        callback = FlorCallback(store=tmp_path / "store", every_n_steps=4)
        trainer, _ = cells_hf.train("plain", tmp_path / "out", callback)
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
        (run,) = list_runs(Store(tmp_path / "store"))
        assert any("epoch 1 was resumed in its middle" in gap for gap in run.gaps)
        assert positions(run)[0] == (1, 10)
        events, _ = replay("plain", tmp_path, run, {"train": (2, 3)})
        assert passed(events)["train"] == ("exact", "")
