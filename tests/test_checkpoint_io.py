"""`Trainer(plugins=[FlorCheckpointIO()])`: Lightning's own checkpoints, in our format."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from codec_cases import same
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from safetensors import safe_open

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint, StoreError
from flor_plugins.lightning import FlorCheckpointIO, load_checkpoint
from flor_plugins.recorder.gaps import FlorWarning
from flor_plugins.records import Position
from flor_plugins.store import checkpoints, codec
from tests.conftest import load_script

EPOCHS, STEPS = 2, 8
LAST = f"epoch={EPOCHS - 1}-step={EPOCHS * STEPS}.ckpt"

# Lightning's own remarks about tiny trainings, and about folders that hold checkpoints already
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Checkpoint directory .* exists and is not empty:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch:UserWarning"),
]


class Spy(FlorCheckpointIO):
    """Keeps what Lightning handed over."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, dict[str, Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        self.given[Path(path).name] = dict(checkpoint)


@pytest.fixture(scope="module")
def toy(shared_project: Path) -> ModuleType:
    return load_script(shared_project, "lit_toy")


def saver(folder: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder, filename="{epoch}-{step}", **{"save_top_k": -1, **settings}
    )


def fit(
    toy: ModuleType,
    callbacks: list[Any],
    epochs: int = EPOCHS,
    *,
    module: Any = None,
    io: FlorCheckpointIO | None = None,
    ckpt_path: Any = None,
) -> pl.Trainer:
    pl.seed_everything(7, verbose=False)
    plugins = [] if io is None else [io]
    trainer = toy.trainer(callbacks, epochs, enable_checkpointing=True, plugins=plugins)
    trainer.fit(module or toy.Net(), *toy.data(), ckpt_path=ckpt_path)
    return trainer


def names(folder: Path) -> set[str]:
    """All that lies there, what is unfinished included."""
    return set(os.listdir(folder))


@pytest.fixture(scope="module")
def saved(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    """A training whose checkpoints are ours, one per epoch."""
    folder, spy = tmp_path_factory.mktemp("saved"), Spy()
    fit(toy, [saver(folder)], io=spy)
    return folder, spy


def copied(saved: tuple[Path, Spy], to: Path) -> Path:
    """A checkpoint of the test's own."""
    return Path(shutil.copytree(saved[0] / LAST, to))


def test_all_that_lightning_dumps_comes_back(saved: tuple[Path, Spy]) -> None:
    folder, spy = saved
    assert {
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "loops",
        "callbacks",
        "hyper_parameters",
    } <= set(spy.given[LAST])
    loaded = load_checkpoint(folder / LAST)
    # Tensors that Lightning handed over were trained on since (or were not, at the end).
    assert same(loaded, spy.given[LAST])
    assert loaded["hyper_parameters"] == {"lr": 0.01, "width": 16}


def test_a_checkpoint_is_json_and_safetensors_and_nothing_else(saved: tuple[Path, Spy]) -> None:
    found = sorted(one.name for one in (saved[0] / LAST).iterdir())
    assert found == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "trainer.safetensors",
    ]
    assert json.loads((saved[0] / LAST / "state.json").read_text())["full"] is True
    for name in found[:2]:
        with safe_open(saved[0] / LAST / name, framework="pt") as file:
            assert list(file.keys())


@pytest.mark.parametrize(
    "averaging", [None, EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-2, 2)]
)
def test_resuming_from_ours_equals_resuming_from_lightnings_own(
    toy: ModuleType, tmp_path: Path, averaging: Any
) -> None:
    ends = []
    for io in (None, FlorCheckpointIO()):
        folder = tmp_path / ("own" if io is None else "ours")
        extra = [] if averaging is None else [averaging()]
        fit(toy, [saver(folder), *extra], 4, io=io)
        middle = folder / f"epoch=1-step={2 * STEPS}.ckpt"
        assert middle.is_dir() == (io is not None)
        extra = [] if averaging is None else [averaging()]
        trainer = fit(toy, [saver(folder / "resumed"), *extra], 4, io=io, ckpt_path=middle)
        assert trainer.global_step >= 4 * STEPS  # SWA with batch norm makes one more pass
        ends.append(trainer._checkpoint_connector.dump_checkpoint(weights_only=False))
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert same(ends[0][part], ends[1][part]), part


@pytest.mark.parametrize("save_last", [True, "link"])
def test_best_and_last_are_found_and_others_removed(
    toy: ModuleType, tmp_path: Path, save_last: Any
) -> None:
    def best_and_last() -> ModelCheckpoint:
        return saver(tmp_path, monitor="val_loss", save_top_k=1, save_last=save_last)

    io, module = FlorCheckpointIO(), toy.Net()
    trainer = fit(toy, [best_and_last()], 3, module=module, io=io)
    best = Path(trainer.checkpoint_callback.best_model_path)
    assert names(tmp_path) == {best.name, "last.ckpt"}
    assert (tmp_path / "last.ckpt").is_symlink() == (save_last == "link")
    recorded = float(trainer.checkpoint_callback.best_model_score)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    (values,) = trainer.validate(module, toy.data()[1], ckpt_path="best", verbose=False)
    assert values["val_loss"] == pytest.approx(recorded, abs=0)
    resumed = fit(toy, [best_and_last()], 4, io=io, ckpt_path="last")
    assert resumed.global_step == 4 * STEPS
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_save_checkpoint_replaces_what_is_there(saved: tuple[Path, Spy], tmp_path: Path) -> None:
    io, path = FlorCheckpointIO(), tmp_path / "one.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, path)
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    assert load_checkpoint(path)["state_dict"]["w"].tolist() == [1.0, 1.0]
    assert names(tmp_path) == {"one.ckpt"}


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    io = FlorCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "epoch.ckpt")
    (tmp_path / "last.ckpt").symlink_to("epoch.ckpt")
    io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "epoch.ckpt")["state_dict"]["w"].tolist() == [0.0, 0.0]
    assert load_checkpoint(tmp_path / "last.ckpt")["state_dict"]["w"].tolist() == [1.0, 1.0]


def test_a_removed_link_leaves_its_target(tmp_path: Path) -> None:
    io = FlorCheckpointIO()
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "epoch.ckpt")
    (tmp_path / "last.ckpt").symlink_to("epoch.ckpt")
    io.remove_checkpoint(tmp_path / "last.ckpt")
    assert names(tmp_path) == {"epoch.ckpt"}
    io.remove_checkpoint(tmp_path / "epoch.ckpt")
    io.remove_checkpoint(tmp_path / "epoch.ckpt")
    assert names(tmp_path) == set()


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path = FlorCheckpointIO(), tmp_path / "one.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flor_plugins.store.checkpoints.writer._write_file", full)
    with pytest.raises(StoreError, match="No space left"):
        io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    assert load_checkpoint(path)["state_dict"]["w"].tolist() == [0.0, 0.0]
    assert names(tmp_path) == {"one.ckpt"}


def test_a_failed_swap_puts_the_old_checkpoint_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path, rename = FlorCheckpointIO(), tmp_path / "one.ckpt", Path.rename
    io.save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, path)
    tried: list[Path] = []

    def once(self: Path, target: Path) -> Path:
        if target == path and not tried:
            tried.append(target)
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(StoreError, match="could not be replaced"):
        io.save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    assert tried and load_checkpoint(path)["state_dict"]["w"].tolist() == [0.0, 0.0]
    assert names(tmp_path) == {"one.ckpt"}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_file_is_refused_by_name(saved: tuple[Path, Spy], tmp_path: Path, file: str) -> None:
    path = copied(saved, tmp_path / "torn.ckpt")
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedCheckpoint, match=file):
        FlorCheckpointIO().load_checkpoint(path)


def test_an_altered_byte_is_refused(
    saved: tuple[Path, Spy], tmp_path: Path, toy: ModuleType
) -> None:
    path = copied(saved, tmp_path / "altered.ckpt")
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="altered"):
        fit(toy, [saver(tmp_path / "more")], 3, io=FlorCheckpointIO(), ckpt_path=path)


def test_what_cannot_be_stored_is_warned_about_once_and_the_training_goes_on(
    toy: ModuleType, tmp_path: Path
) -> None:
    class Odd(toy.Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["odd"] = {"fine": 1, "function": lambda: None}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(toy, [saver(tmp_path)], module=Odd(), io=FlorCheckpointIO())
    assert trainer.global_step == EPOCHS * STEPS
    (told,) = [one for one in caught if issubclass(one.category, FlorWarning)]
    assert "odd" in str(told.message) and "function" in str(told.message)
    loaded = load_checkpoint(tmp_path / LAST)
    assert loaded["odd"]["fine"] == 1
    with pytest.warns(FlorWarning, match="was saved without .*function"):
        FlorCheckpointIO().load_checkpoint(tmp_path / LAST)


def test_python_w_error_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlorCheckpointIO().save_checkpoint(
            {"state_dict": {}, "odd": lambda: None}, tmp_path / "one.ckpt"
        )
    assert "odd" in capsys.readouterr().err


def test_tied_tensors_stay_tied_wherever_they_are_put(tmp_path: Path) -> None:
    tied = torch.ones(3)
    FlorCheckpointIO().save_checkpoint(
        {"state_dict": {"a": tied, "b": tied}}, tmp_path / "one.ckpt"
    )
    for where in (
        None,
        "cpu",
        "meta",
        torch.device("meta"),
        {"cpu": "meta"},
        lambda storage, place: storage,
    ):
        found = FlorCheckpointIO().load_checkpoint(tmp_path / "one.ckpt", map_location=where)[
            "state_dict"
        ]
        assert found["a"] is found["b"]
        expected = "cpu" if where in (None, "cpu") or callable(where) else "meta"
        assert found["a"].device.type == expected


def test_lightnings_own_files_can_be_read_on(toy: ModuleType, tmp_path: Path) -> None:
    fit(toy, [saver(tmp_path)])
    assert (tmp_path / LAST).is_file()
    resumed = fit(
        toy, [saver(tmp_path / "ours")], 3, io=FlorCheckpointIO(), ckpt_path=tmp_path / LAST
    )
    assert resumed.global_step == 3 * STEPS
    assert (tmp_path / "ours" / f"epoch=2-step={3 * STEPS}.ckpt").is_dir()


def test_a_pickle_that_holds_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "odd": os.getcwd}, tmp_path / "odd.ckpt")
    with pytest.raises(StoreError, match="getcwd"):
        FlorCheckpointIO().load_checkpoint(tmp_path / "odd.ckpt", weights_only=False)


def test_refusals_say_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint, match=r"absent\.ckpt"):
        load_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "empty.ckpt").mkdir()
    with pytest.raises(StoreError, match=r"without state\.json"):
        load_checkpoint(tmp_path / "empty.ckpt")
    with pytest.raises(StoreError, match="local"):
        FlorCheckpointIO().save_checkpoint({}, "s3://bucket/one.ckpt")
    with pytest.raises(StoreError, match="storage_options"):
        FlorCheckpointIO().save_checkpoint({}, tmp_path / "one.ckpt", storage_options={"a": 1})
    of_run = {"model": {"w": torch.ones(1)}, "trainer": {}, "rng": {}}
    made = checkpoints.save_checkpoint(tmp_path / "run", Position(1, 8), codec.encode(of_run))
    with pytest.raises(StoreError, match="FlorCallback recorded"):
        load_checkpoint(made.path)
