"""A checkpoint of several processes is one to go on from only where each of them has its part."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook
from transformers import TrainingArguments

from flor_plugins.errors import FlorError, NoCheckpoint, ReplayError
from flor_plugins.hf import intercept as hf_intercept
from flor_plugins.lightning import intercept as lit_intercept
from flor_plugins.lightning import obstacles as lit
from flor_plugins.recorder import resume
from flor_plugins.recorder.options import RecordOptions, options_of
from flor_plugins.recorder.start_run import begin
from flor_plugins.records import Launch, Position, ReplayRequest, Run
from flor_plugins.replayer.planning.planner import make
from flor_plugins.state import ddp_buckets, processes
from flor_plugins.store import checkpoints, codec, ranks, runs
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import index_run

HERE, LATER = Position(0, 0), Position(0, 3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of two processes; the second has its part of the first checkpoint only."""
    launch = Launch(kind="script", target=str(tmp_path / "train.py"), cwd=str(tmp_path))
    recorder = begin("hf", RecordOptions(store=tmp_path / "store"), dict, launch)
    assert recorder is not None
    for position in (HERE, LATER):
        weights = {"w": torch.ones(2), "mean": torch.ones(1)}
        recorder.checkpoint(
            position, lambda weights=weights: {"model": weights, "optimizer": [1], "rng": 5}
        )
    recorder.finish("finished")
    made = replace(recorder.run, processes=2)
    runs.save_run(made)
    part: dict[str, Any] = {"model": {"mean": torch.zeros(1)}, "rng": 6}
    checkpoints.save_checkpoint(ranks.folder(made.path, 1), HERE, codec.encode(part))
    return runs.load_run(made.path)


def test_number_of_processes_is_read_back(run: Run) -> None:
    assert run.processes == 2


def test_state_of_a_process_is_the_first_ones_with_its_own_part_over_it(run: Run) -> None:
    whole = ranks.load_checkpoint(run.path, 1, HERE)
    assert whole["rng"] == 6 and whole["optimizer"] == [1]
    assert whole["model"]["w"].tolist() == [1, 1] and whole["model"]["mean"].tolist() == [0]
    assert ranks.load_checkpoint(run.path, 0, HERE)["rng"] == 5
    assert list(ranks.load_checkpoint(run.path, 1, HERE, ("model",))) == ["model"]
    with pytest.raises(NoCheckpoint):
        ranks.load_checkpoint(run.path, 1, LATER)


def test_checkpoint_that_a_process_lacks_has_weights_only(run: Run) -> None:
    first, second = ranks.list_checkpoints(run)
    assert first.is_full and first.can_train
    assert not second.is_full and not second.can_train and "rank 1" in second.lost[-1]
    assert index_run(run).starts == (HERE,) and set(index_run(run).saved) == {HERE, LATER}
    alone = replace(run, processes=1)
    assert index_run(alone).starts == (HERE, LATER)


def test_run_of_which_no_process_but_the_first_recorded_cant_be_trained_again(run: Run) -> None:
    (ranks.folder(run.path, 1) / "checkpoints").rename(run.path / "gone")
    assert index_run(run).starts == ()
    with pytest.raises(ReplayError, match="from which training could go on"):
        make(Store(run.path.parents[1]), [run], ReplayRequest(is_verification=True))


def test_resume_goes_on_from_where_every_process_can(run: Run) -> None:
    own, part = (
        ranks.folder(run.path, 1),
        codec.encode({"model": {"mean": torch.zeros(1)}, "rng": 7}),
    )
    saved = checkpoints.save_checkpoint(own, LATER, part)
    assert resume._at_last_state(run).position == LATER
    (saved.path / "model.safetensors").write_bytes(b"torn")
    found = resume._at_last_state(run)
    assert found.position == HERE and "model.safetensors" in found.damaged[0]
    assert [one.position for one in checkpoints.list_checkpoints(own)] == [HERE]


def test_run_is_resumed_by_as_many_processes_as_trained_it(run: Run, tmp_path: Path) -> None:
    runs.save_run(replace(run, status="killed"))
    first = replace(run, run_id="new", processes=1)
    with pytest.raises(FlorError, match="2 processes together"):
        resume.resumption(Store(tmp_path / "store"), RecordOptions(resume=run.run_id), first)


def test_replay_by_one_process_has_trainers_for_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pl.Trainer, "__init__", pl.Trainer.__init__)
    monkeypatch.setattr(TrainingArguments, "__post_init__", TrainingArguments.__post_init__)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    sharded: dict[str, Any] = {"output_dir": str(tmp_path), "fsdp": "full_shard"}
    assert TrainingArguments(**sharded).fsdp
    lit_intercept.train_alone()
    hf_intercept.train_alone()
    trainer = pl.Trainer(accelerator="cpu", devices=2, num_nodes=2, strategy="ddp", logger=False)
    assert trainer.world_size == 1 and not isinstance(trainer.strategy, DDPStrategy)
    assert not TrainingArguments(**sharded).fsdp and "ACCELERATE_USE_FSDP" not in os.environ


def test_time_decides_nothing_where_processes_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    launch = Launch(kind="script", target=str(tmp_path / "train.py"), cwd=str(tmp_path))
    recorder = begin("hf", options_of(store=tmp_path / "store", every_minutes=1e-9), dict, launch)
    assert recorder is not None and not recorder.policy.wants_inside(Position(0, 1))
    recorder.finish("finished")
    assert recorder.run.processes == 2


def test_process_that_is_alone_hears_itself() -> None:
    assert processes.from_first("anything", lambda: [1, None]) == [1, None]
    assert (processes.rank(), processes.count()) == (0, 1)


def test_order_of_gradients_is_none_of_a_model_that_is_alone() -> None:
    model = torch.nn.Linear(2, 2)
    assert ddp_buckets.capture(model) is None
    ddp_buckets.restore(model, [1, 0])
    assert model.weight.grad is None


def test_processes_that_a_script_makes_by_itself_are_named() -> None:
    (found,) = lit._of_strategy(SimpleNamespace(strategy=DDPStrategy(start_method="spawn")))  # type: ignore[arg-type]
    assert found.grade == "weights" and "spawn" in found.reason


def test_gradient_hook_with_a_state_is_named() -> None:
    made = DDPStrategy(ddp_comm_state=SimpleNamespace(), ddp_comm_hook=powerSGD_hook)
    (found,) = lit._of_strategy(SimpleNamespace(strategy=made))  # type: ignore[arg-type]
    assert found.grade == "partial" and "powerSGD_hook" in found.reason
