"""The replay grade at record time: what breaks exactness is found, named and told; a plain
training is exact.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from transformers import TrainerCallback

import flor_plugins as flor
from flor_plugins.cli import main
from flor_plugins.hf import obstacles as hf
from flor_plugins.lightning import obstacles as lit
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.replayability import obstacles
from flor_plugins.recorder.start_run import begin
from flor_plugins.records import Launch, Obstacle
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import load_run
from tests.conftest import launched
from tests.looking import Toys, holding, in_hf, in_lightning, load_toys, said

# Lightning warns of few workers, of few batches ...
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def toys(shared_project: Path) -> Toys:
    return load_toys(shared_project)


# ---- the launch and the device


def test_a_run_from_a_prompt_cant_be_replayed_and_says_so_from_its_first_moment(
    tmp_path: Path,
) -> None:
    launch = Launch(kind="interactive", target="", cwd=str(tmp_path))
    recorder = begin("hf", RecordOptions(store=tmp_path / "store"), dict, launch)
    assert recorder is not None
    run = load_run(recorder.run.path)
    recorder.finish("finished")
    assert run.replay_grade == "none"
    assert "notebook" in run.obstacles[0].reason and "script" in run.obstacles[0].remedy


def test_a_run_without_a_snapshot_cant_be_replayed_and_says_why(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("nonsense")
    launch = Launch(kind="script", target=str(tmp_path / "train.py"), cwd=str(tmp_path))
    recorder = begin("hf", RecordOptions(store=tmp_path / "store"), dict, launch)
    assert recorder is not None
    recorder.finish("finished")
    assert (
        said(list(load_run(recorder.run.path).obstacles), "snapshot", str(tmp_path / ".git"))
        == "none"
    )


@pytest.mark.parametrize(
    ("kind", "deterministic", "warn_only", "benchmark", "words"),
    [
        ("cuda", False, False, False, "without deterministic algorithms"),
        ("cuda", True, True, False, "warn_only"),
        ("cuda", True, False, True, "cudnn.benchmark"),
        ("mps", False, False, False, "mps"),
    ],
)
def test_kernels_that_may_round_differently_make_it_close(
    kind: str, deterministic: bool, warn_only: bool, benchmark: bool, words: str
) -> None:
    found = obstacles.of_device(
        kind, deterministic=deterministic, warn_only=warn_only, benchmark=benchmark
    )
    assert said(found, words) == "close"
    assert ("CUBLAS_WORKSPACE_CONFIG=:4096:8" in found[0].remedy) == (
        kind == "cuda" and not benchmark
    )


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_deterministic_algorithms_are_exact_on_any_device(kind: str) -> None:
    assert obstacles.of_device(kind, deterministic=True, warn_only=False, benchmark=False) == []


def test_a_cpu_is_exact_whatever_the_flags_say() -> None:
    assert obstacles.of_device("cpu", deterministic=False, warn_only=True, benchmark=True) == []


# ---- the clock and sharding


def test_what_the_clock_decides_is_named(toys: Toys) -> None:
    settings: dict[str, Any] = {
        "val_check_interval": "00:00:10:00",
        "check_val_every_n_epoch": None,
    }
    assert said(in_lightning(toys["lit_toy"], **settings), "val_check_interval", "600") == "partial"
    assert (
        said(in_lightning(toys["lit_toy"], max_time="00:01:00:00"), "max_time", "3600") == "partial"
    )
    assert in_lightning(toys["lit_toy"], pl.callbacks.Timer()) == []


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_a_sharded_lightning_training_is_recorded_with_its_weights_only(strategy: type) -> None:
    made = strategy()
    made.parallel_devices, made.cluster_environment = [torch.device("cpu")], LightningEnvironment()
    assert said(lit.obstacles_of(SimpleNamespace(strategy=made)), strategy.__name__) == "weights"  # type: ignore[arg-type]


def test_a_data_parallel_lightning_training_is_no_obstacle() -> None:
    assert list(lit._of_strategy(SimpleNamespace(strategy=DDPStrategy()))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda trainer: setattr(trainer.args, "fsdp", "full_shard"), "FSDP"),
        (lambda trainer: setattr(trainer.args, "deepspeed", {"zero": 2}), "DeepSpeed"),
        (
            lambda trainer: setattr(trainer.args, "parallelism_config", SimpleNamespace(tp_size=2)),
            "tp_size=2",
        ),
        (
            lambda trainer: setattr(
                trainer.accelerator.state, "distributed_type", hf.DistributedType.DEEPSPEED
            ),
            "DEEP",
        ),
    ],
)
def test_a_sharded_hf_training_is_recorded_with_its_weights_only(
    change: Callable[[Any], Any], words: str, toys: Toys, tmp_path: Path
) -> None:
    # Sharding needs several devices: the settings are what is looked at, and nothing is trained.
    trainer = toys["hf_toy"].build([], output_dir=str(tmp_path))
    before = trainer.accelerator.state.distributed_type
    assert list(hf._of_strategy(trainer)) == []
    try:
        change(trainer)
        assert said(hf.obstacles_of(trainer), words) == "weights"
    finally:
        trainer.accelerator.state.distributed_type = (
            before  # shared by all accelerators of a process
        )


# ---- what can't be encoded, run.json, and what is printed


def test_the_worst_section_grades_what_cant_be_stored() -> None:
    assert (
        said(obstacles.of_lost(["optimizer/0.x: a lock", "optimizer/0.y: a lock"]), "0.x", "0.y")
        == "partial"
    )
    assert said(obstacles.of_lost(["model/a: quantized"]), "model/a") == "none"
    (many,) = obstacles.of_lost([f"trainer/{i}: why" for i in range(9)])
    assert "4 more" in many.reason and "trainer/5" not in many.reason


def test_a_callback_whose_state_cant_be_stored_is_named_in_run_json(
    toys: Toys, shared_project: Path, tmp_path: Path
) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"stream": io.StringIO()}

    toy = toys["lit_toy"]
    flor_callback = launched(toy.FlorCallback(store=tmp_path), shared_project, "lit_toy")
    in_lightning(toy, flor_callback, Odd())
    (run,) = flor.runs(store=tmp_path)
    assert run.replay_grade == "partial"
    assert [
        one.grade for one in run.obstacles if "stream" in one.reason and "StringIO" in one.reason
    ] == ["partial"]


@pytest.mark.parametrize("framework", ["lightning", "hf"])
def test_what_a_flor_callback_records_says_its_grade(
    framework: str, toys: Toys, shared_project: Path, tmp_path: Path
) -> None:
    toy = toys["lit_toy" if framework == "lightning" else "hf_toy"]

    def train(*others: Any) -> None:
        callback = launched(
            toy.FlorCallback(store=tmp_path), shared_project, Path(toy.__file__ or "").stem
        )
        if framework == "lightning":
            in_lightning(toy, callback, *others)
        else:
            in_hf(toy, callback, *others, output_dir=str(tmp_path / "out"))

    train()
    train(holding(Callback if framework == "lightning" else TrainerCallback, iter([1])))
    plain, held = flor.runs(store=tmp_path)
    assert (plain.obstacles, plain.replay_grade) == ((), "exact")
    assert said(list(held.obstacles), "Holding", "`held`") == held.replay_grade == "partial"


CLOCK = Obstacle("partial", "the clock decides", "let it not")
ROUNDING = Obstacle("close", "kernels round", "make them not")


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose recorder was told of two obstacles, one of them twice."""
    monkeypatch.setenv("FLOR_DIR", str(tmp_path / "store"))
    launch = Launch(kind="script", target=str(tmp_path / "train.py"), cwd=str(tmp_path))
    recorder = begin("hf", RecordOptions(name="noted"), dict, launch)
    assert recorder is not None
    recorder.note_obstacles([ROUNDING, CLOCK, ROUNDING])
    recorder.note_obstacles([CLOCK])
    recorder._writer.flush()
    assert load_run(recorder.run.path).obstacles == (ROUNDING, CLOCK)
    recorder.finish("finished")
    return recorder.run.path


def test_obstacles_are_in_run_json_once_each_from_the_moment_they_are_found(noted: Path) -> None:
    run = load_run(noted)
    assert (run.obstacles, run.replay_grade, run.status) == (
        (ROUNDING, CLOCK),
        "partial",
        "finished",
    )


def flor_hf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    monkeypatch.setattr(sys, "argv", ["flor-hf", *args])
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    return capsys.readouterr().out


def test_runs_and_show_tell_the_grade_the_reasons_and_the_remedies(
    noted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = json.loads(flor_hf(monkeypatch, capsys, "runs", "--json"))
    assert row["replay"] == "partial"
    shown = flor_hf(monkeypatch, capsys, "show", "noted")
    assert "partial" in shown.split("replay", 1)[1].splitlines()[0]
    for one in (CLOCK, ROUNDING):
        assert f"{one.grade}: {one.reason}" in shown and one.remedy in shown
    assert (
        json.loads(flor_hf(monkeypatch, capsys, "show", "noted", "--json"))["replay_grade"]
        == "partial"
    )


def test_a_run_without_obstacles_is_exact(tmp_path: Path) -> None:
    launch = Launch(kind="script", target=str(tmp_path / "train.py"), cwd=str(tmp_path))
    recorder = begin("hf", RecordOptions(store=tmp_path / "store"), dict, launch)
    assert recorder is not None
    recorder.finish("finished")
    assert load_run(Store(tmp_path / "store").run(recorder.run.run_id)).replay_grade == "exact"
