"""`verify` proves that a replay was the run; where it is not, it names the first step that
differs, and why.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flor_plugins as flor
from flor_plugins.records import Position, Run
from flor_plugins.store.metrics.journal import read_run
from tests import replaying
from tests.replaying import Project

# Everything that can be planted lies in the folder `ignored`: git does not see it change.
SCRIPT = """
import os, pathlib, sys
import numpy as np, torch

sys.path.insert(0, os.path.abspath("ignored/site"))
import toypkg

HERE = pathlib.Path("ignored")
torch.set_num_threads(int((HERE / "threads").read_text()))
UNSEEDED = (HERE / "unseeded").exists()
POINTS = torch.from_numpy(np.load(HERE / "points.npy"))

def noise(step):
    return int.from_bytes(os.urandom(2), "little") / 2**16 if UNSEEDED and step == 7 else 0.0

class Points(torch.utils.data.Dataset):
    def __len__(self):
        return len(POINTS)
    def __getitem__(self, i):
        return {"x": POINTS[i], "labels": (POINTS[i].sum() > 0).float()}

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 2048), torch.nn.ReLU(), torch.nn.Dropout(0.2),
            torch.nn.Linear(2048, 1),
        )
        self.step = 0
    def forward(self, x, labels=None):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.net(x)[:, 0], labels)
        # Of a long sum with changing signs the last bits depend on the number of threads.
        loss = loss + 1e-6 * (1000 * self.net[0].weight).sin().sum().square()
        self.step += self.training
        return {"loss": loss * toypkg.scale(self.step) + noise(self.step - 1)}
"""
TRAINING = {
    "lightning": """
import lightning.pytorch as pl
from flor_plugins.lightning import FlorCallback

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Model()
    def training_step(self, batch, index):
        return self.model(**batch)["loss"]
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

pl.seed_everything(3, verbose=False)
trainer = pl.Trainer(
    accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, max_epochs=2, callbacks=[FlorCallback()],
)
trainer.fit(Net(), torch.utils.data.DataLoader(Points(), 64))
""",
    "hf": """
from transformers import Trainer, TrainingArguments
from flor_plugins.hf import FlorCallback

torch.manual_seed(3)
arguments = TrainingArguments(
    "out", per_device_train_batch_size=64, num_train_epochs=2, use_cpu=True, disable_tqdm=True,
    report_to="none", save_strategy="no", dataloader_pin_memory=False,
    train_sampling_strategy="sequential", learning_rate=1e-3,
)
Trainer(Model(), arguments, train_dataset=Points(), callbacks=[FlorCallback()]).train()
""",
}


def toy_package(folder: Path, version: str, change: float) -> None:
    """A distribution whose function gives another number from the fourth call on."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / f"toypkg-{version}.dist-info").mkdir(parents=True)
    (folder / f"toypkg-{version}.dist-info" / "METADATA").write_text(
        f"Name: toypkg\nVersion: {version}\n"
    )
    (folder / "toypkg.py").write_text(
        f"def scale(step):\n    return {change} if step >= 4 else 1.0\n"
    )


@pytest.fixture(scope="module", params=["lightning", "hf"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two epochs of ten updates each."""
    root = tmp_path_factory.mktemp(request.param) / "project"
    project = replaying.make(root)
    project.write("train.py", SCRIPT + TRAINING[request.param])
    project.write("ignored/threads", "1")
    np.save(
        root / "ignored" / "points.npy",
        np.random.default_rng(1).normal(size=(640, 64)).astype("float32"),
    )
    toy_package(root / "ignored" / "site", "1.0", 1.0)
    project.python("train.py")
    return project


@pytest.fixture
def planted(recorded: Project, tmp_path: Path) -> Project:
    """The project, as it is; whatever a test plants in it is taken out again."""
    ignored = recorded.root / "ignored"
    shutil.copytree(ignored, tmp_path / "kept")
    yield recorded  # type: ignore[misc]
    shutil.rmtree(ignored)
    shutil.copytree(tmp_path / "kept", ignored)


def run_of(project: Project) -> Run:
    return flor.runs(store=project.store.root)[0]


def verified(project: Project, run: str | None = None) -> dict[str, Any]:
    """What `verify --json` says of the first stretch that differs; the exit status must say
    so, too.
    """
    done = project.flor("verify", run or run_of(project).run_id, "--json", ok=False)
    assert done.returncode == 3, done.stdout + done.stderr
    return next(one for one in json.loads(done.stdout) if one["verdict"] == "diverged")


def test_an_untouched_run_is_exact_in_all_its_epochs(recorded: Project) -> None:
    done = recorded.flor("verify", run_of(recorded).run_id, "--json")
    stretches = json.loads(done.stdout)
    assert [one["verdict"] for one in stretches] == ["exact", "exact"]
    assert all(one["compared"] > 20 for one in stretches)
    assert (
        "all equal to the last bit"
        in recorded.flor("verify", run_of(recorded).run_id, "--epochs", "2").stdout
    )


def test_a_changed_data_file_is_named_at_the_step_that_reads_it(planted: Project) -> None:
    points = np.load(planted.root / "ignored" / "points.npy")
    points[330] += 1  # of the sixth batch
    np.save(planted.root / "ignored" / "points.npy", points)
    found = verified(planted)
    assert found["first"] == "epoch=0,step=6"
    assert found["causes"][0].startswith("the data differ")


def test_a_changed_package_is_named(planted: Project) -> None:
    toy_package(planted.root / "ignored" / "site", "2.0", 1.5)
    found = verified(planted)
    assert found["first"] == "epoch=0,step=4"
    assert found["causes"][0].startswith("package toypkg: 1.0 recorded, 2.0 now")


def test_another_number_of_threads_is_named(planted: Project) -> None:
    recorded = run_of(planted)
    planted.write("ignored/threads", "2")
    found = verified(planted, recorded.run_id)
    planted.python("train.py")
    other = flor.runs(store=planted.store.root)[-1]
    assert found["first"] == str(first_difference(recorded, other))
    assert found["causes"][0].startswith("num_threads: 1 recorded, 2 now")


def test_an_unseeded_draw_is_named(planted: Project) -> None:
    (planted.root / "ignored" / "unseeded").touch()
    planted.python("train.py")
    found = verified(planted, flor.runs(store=planted.store.root)[-1].run_id)
    assert found["first"] == "epoch=0,step=8"
    assert "two replays differ from each other at step 8: an unseeded draw" in found["causes"][0]


def first_difference(one: Run, other: Run) -> Position:
    """The first update whose loss or gradient norm is not the same in both runs."""
    steps = [
        {
            row.position: row.values
            for _, row in read_run(run.path)
            if (row.phase, row.level) == ("train", "step")
        }
        for run in (one, other)
    ]
    names = ("loss", "grad_norm")
    return min(p for p in steps[0] if any(steps[0][p].get(n) != steps[1][p].get(n) for n in names))
