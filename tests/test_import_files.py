"""What is read of the files that Lightning and the HF Trainer wrote, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from codec_cases import same
from safetensors.torch import load_file, save_file

import flor_plugins as flor
from flor_plugins.errors import ReplayError, StoreError
from flor_plugins.hf import state
from flor_plugins.lightning import FlorCheckpointIO
from flor_plugins.recorder.importers import hf, import_run, lightning
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import list_runs
from tests.conftest import load_script
from tests.importing import ENDS, Bomb, train
from tests.replaying import Project, rows_of


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return train(tmp_path_factory, "lightning")


@pytest.fixture(scope="module")
def trained_hf(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return train(tmp_path_factory, "hf")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def checkpoint(trained_hf: Project, tmp_path: Path) -> Path:
    """A checkpoint folder of the HF Trainer, of the test's own."""
    return Path(
        shutil.copytree(trained_hf.root / "out/ends/checkpoint-16", tmp_path / "checkpoint-16")
    )


def test_lightnings_parameters_and_monitored_values_are_imported(
    lit: Project, store: Store
) -> None:
    run = import_run(lit.root / "out/ends", name="old", store=store).run
    assert run.params == {"lr": 0.01, "width": 12}
    last = torch.load(lit.root / "out/ends/epoch=2-step=24.ckpt", weights_only=True)
    (state,) = [one for key, one in last["callbacks"].items() if "val_loss" in key]
    scores = {Path(path).name: float(score) for path, score in state["best_k_models"].items()}
    found = rows_of(flor.dataframe("val_loss", store=store.root), "old", "val_loss")
    assert len(found) == 3
    assert found[3, 24] == scores["epoch=2-step=24.ckpt"]


def test_checkpoints_inside_epochs_have_the_completed_epochs(lit: Project, store: Store) -> None:
    run = import_run(lit.root / "out/inside", store=store).run
    positions = [one.position for one in list_checkpoints(run.path)]
    expected = [(0, 3), (0, 6), (1, 9), (1, 12), (1, 15), (2, 18), (2, 21), (3, 24)]
    assert positions == [Position(*one) for one in expected]


def test_a_checkpoint_of_the_end_of_epoch_validation_counts_the_epoch(lit: Project) -> None:
    held = torch.load(lit.root / "out/ends/epoch=0-step=8.ckpt", weights_only=True)
    held["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] = 0
    assert lightning.position_of(held) == Position(1, 8)
    held["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
    assert lightning.position_of(held) == Position(0, 8)


def test_a_file_without_loop_counters_is_placed_by_a_guess_that_is_noted(
    lit: Project, store: Store, tmp_path: Path
) -> None:
    held = torch.load(lit.root / "out/ends/epoch=1-step=16.ckpt", weights_only=True)
    torch.save(
        {key: held[key] for key in ("epoch", "global_step", "state_dict")}, tmp_path / "old.ckpt"
    )
    run = import_run(tmp_path / "old.ckpt", store=store).run
    assert run.position == Position(2, 16)
    assert any("is a guess" in gap for gap in run.gaps)


def test_one_file_is_a_run_of_one_checkpoint(lit: Project, store: Store) -> None:
    run = import_run(lit.root / "out/ends/epoch=1-step=16.ckpt", store=store).run
    assert run.name == "epoch=1-step=16"
    assert [one.position for one in list_checkpoints(run.path)] == [Position(2, 16)]


def test_folders_of_florcheckpointio_are_imported(
    lit: Project, store: Store, tmp_path: Path
) -> None:
    held = torch.load(lit.root / "out/ends/epoch=1-step=16.ckpt", weights_only=True)
    FlorCheckpointIO().save_checkpoint(held, tmp_path / "checkpoints/one.ckpt")
    run = import_run(tmp_path, store=store).run
    assert [one.position for one in list_checkpoints(run.path)] == [Position(2, 16)]
    assert same(dict(load_checkpoint(run.path, Position(2, 16))["model"]), dict(held["state_dict"]))
    assert run.params == {"lr": 0.01, "width": 12}


def test_code_in_a_ckpt_is_named_and_not_run(lit: Project, store: Store, tmp_path: Path) -> None:
    held = torch.load(lit.root / "out/ends/epoch=1-step=16.ckpt", weights_only=True)
    torch.save({**held, "odd": Bomb(tmp_path / "boom")}, tmp_path / "odd.ckpt")
    with pytest.raises(StoreError, match=r"mkdir.*weights_only=True") as raised:
        import_run(tmp_path / "odd.ckpt", store=store)
    assert "torch.save" in str(raised.value)
    assert not (tmp_path / "boom").exists()
    assert list_runs(store) == []
    # Beside others it is left out, and the run says so.
    shutil.copy(lit.root / "out/ends/epoch=0-step=8.ckpt", tmp_path)
    run = import_run(tmp_path, store=store).run
    assert [one.position for one in list_checkpoints(run.path)] == [Position(1, 8)]
    assert any("odd.ckpt is left out" in gap for gap in run.gaps)


def test_a_torn_ckpt_is_refused_by_name(lit: Project, store: Store, tmp_path: Path) -> None:
    content = (lit.root / "out/ends/epoch=0-step=8.ckpt").read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"torn\.ckpt can't be read"):
        import_run(tmp_path / "torn.ckpt", store=store)


def test_two_files_of_one_position_are_one_checkpoint(
    lit: Project, store: Store, tmp_path: Path
) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        shutil.copy(lit.root / "out/ends/epoch=0-step=8.ckpt", tmp_path / name)
    run = import_run(tmp_path, store=store).run
    assert len(list_checkpoints(run.path)) == 1
    assert any("b.ckpt is left out: a.ckpt" in gap for gap in run.gaps)


def test_what_the_hf_trainer_logged_is_at_its_positions(trained_hf: Project, store: Store) -> None:
    run = import_run(trained_hf.root / "out/ends", name="old", store=store).run
    state = json.loads((trained_hf.root / "out/ends/checkpoint-24/trainer_state.json").read_text())
    steps = {entry["step"]: entry for entry in state["log_history"] if "loss" in entry}
    assert len(steps) == 8
    frame = flor.dataframe("loss_logged", "grad_norm", store=store.root)
    found = rows_of(frame, "old", "loss_logged")
    assert found == {(min(step // 8, 3), step): entry["loss"] for step, entry in steps.items()}
    evaluated = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    rows = {
        r.position: r.values
        for _, r in read_run(run.path)
        if (r.phase, r.level) == ("validation", "epoch")
    }
    assert [rows[position]["eval_loss"] for position in ENDS] == evaluated
    assert (run.params["num_train_epochs"], run.params["model.n_layer"]) == (3, 1)


def test_epochs_with_two_digits_end_at_the_last_step_that_claims_it() -> None:
    history = [
        {"step": 333, "epoch": 1.0, "loss": 2.0},
        {"step": 334, "epoch": 1.0, "eval_loss": 1.0},
    ]
    rows = list(hf._rows(history, (), 0.0))
    assert [(row.position, row.level) for row in rows] == [
        (Position(0, 333), "step"),
        (Position(1, 334), "epoch"),
    ]


def test_training_args_are_never_opened(checkpoint: Path, store: Store, tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "boom"), checkpoint / "training_args.bin")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Bomb(tmp_path / "boom"), checkpoint / name)
    run = import_run(checkpoint, store=store).run
    assert [one.position for one in list_checkpoints(run.path)] == [Position(2, 16)]
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("form", ["shards", "bin", "bin shards"])
def test_weights_in_shards_and_in_bin_files_are_read(
    checkpoint: Path, store: Store, form: str
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    whole = "pytorch_model.bin" if "bin" in form else "model.safetensors"
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for index, name in enumerate(weights):
        part = f"part-{index % 2}{Path(whole).suffix}" if "shards" in form else whole
        parts.setdefault(part, {})[name] = weights[name]
    for part, tensors in parts.items():
        (torch.save if "bin" in form else save_file)(tensors, checkpoint / part)
    if "shards" in form:
        index = {"weight_map": {name: part for part, tensors in parts.items() for name in tensors}}
        (checkpoint / f"{whole}.index.json").write_text(json.dumps(index))
    run = import_run(checkpoint, store=store).run
    found = load_checkpoint(run.path, Position(2, 16))["model"]
    assert same(dict(sorted(found.items())), dict(sorted(weights.items())))


def test_a_bin_file_that_holds_code_is_not_run(
    checkpoint: Path, store: Store, tmp_path: Path
) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"w": Bomb(tmp_path / "boom")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(StoreError, match=r"pytorch_model\.bin"):
        import_run(checkpoint, store=store)
    assert not (tmp_path / "boom").exists()
    assert list(store.root.glob("runs/*")) == []


def test_an_adapter_alone_is_refused_with_what_to_do(checkpoint: Path, store: Store) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match="merge_and_unload"):
        import_run(checkpoint, store=store)


def test_a_folder_that_a_kill_left_unfinished_is_left_out(
    trained_hf: Project, store: Store, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained_hf.root / "out/ends", tmp_path / "ends"))
    (folder / "checkpoint-24/trainer_state.json").unlink()
    weights = folder / "checkpoint-16/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run = import_run(folder, store=store).run
    assert [one.position for one in list_checkpoints(run.path)] == [Position(1, 8)]
    assert sum("is left out" in gap for gap in run.gaps) == 2


def test_a_checkpoint_of_another_training_is_noted(
    trained_hf: Project, store: Store, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained_hf.root / "out/ends", tmp_path / "ends"))
    file = folder / "checkpoint-8/trainer_state.json"
    state = json.loads(file.read_text())
    state["log_history"][0]["loss"] += 1
    file.write_text(json.dumps(state))
    run = import_run(folder, store=store).run
    assert [gap.partition(" seems")[0] for gap in run.gaps if "another training" in gap] == [
        str(folder / "checkpoint-8")
    ]


def test_tied_weights_that_were_not_saved_are_set_and_others_are_missed(
    trained_hf: Project,
) -> None:
    toy: ModuleType = load_script(trained_hf.root, "hf_toy")
    weights = load_file(trained_hf.root / "out/ends/checkpoint-24/model.safetensors")
    assert "lm_head.weight" not in weights
    trainer = toy.build([])
    state.restore_weights(trainer, {"model": weights})
    restored = trainer.model.state_dict()
    assert all(torch.equal(restored[name], weights[name]) for name in weights)
    assert torch.equal(restored["lm_head.weight"], weights["transformer.wte.weight"])
    first = "transformer.ln_f.weight"
    with pytest.raises(ReplayError, match=first):
        state.restore_weights(trainer, {"model": {k: v for k, v in weights.items() if k != first}})
    with pytest.raises(ReplayError, match="unknown to the model odd"):
        state.restore_weights(trainer, {"model": {**weights, "odd": torch.zeros(1)}})
