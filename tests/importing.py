"""Trainings without a callback of ours, and what is left of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from flor_plugins.records import Position
from tests import replaying
from tests.conftest import load_script
from tests.replaying import Project

ENDS = [Position(1, 8), Position(2, 16), Position(3, 24)]

PLAIN = {
    "lightning": """
import lightning.pytorch as pl, torch, lit_toy
from lightning.pytorch.callbacks import ModelCheckpoint
torch.set_num_threads(1)
pl.seed_everything(7, verbose=False)
def saver(folder, **settings):
    return ModelCheckpoint(dirpath=folder, filename="{epoch}-{step}", save_top_k=-1, **settings)
savers = [
    saver("out/ends", monitor="val_loss", save_last="link"),
    saver("out/inside", every_n_train_steps=3),
]
lit_toy.trainer(savers, 3, enable_checkpointing=True).fit(lit_toy.Net(width=12), *lit_toy.data())
""",
    "hf": """
import torch, hf_toy
torch.set_num_threads(1)
hf_toy.build([], epochs=3, save_strategy="epoch", output_dir="out/ends").train()
""",
}


def train(tmp_path_factory: pytest.TempPathFactory, framework: str) -> Project:
    """A training without a callback of ours: only what its trainer saved is left of it."""
    project = replaying.make(tmp_path_factory.mktemp(framework) / "project")
    project.write("plain.py", PLAIN[framework])
    project.python("plain.py")
    assert not project.store.root.exists()
    return project


def by_hand(project: Project, framework: str) -> dict[tuple[int, int], float]:
    """The metric of the toy's hook file, of the weights that the trainer saved."""
    toy = load_script(project.root, "lit_toy" if framework == "lightning" else "hf_toy")
    hooks = load_script(project.root, replaying.HOOKS[framework].removesuffix(".py"))
    found = {}
    for position in ENDS:
        if framework == "lightning":
            (file,) = (project.root / "out/ends").glob(f"*step={position.step}.ckpt")
            model = toy.Net(width=12)
            model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
            loader, function = toy.data()[1], hooks.val_accuracy
        else:
            model = type(toy.build([]).model).from_pretrained(
                project.root / f"out/ends/checkpoint-{position.step}"
            )
            loader, function = toy.build([]).get_eval_dataloader(), hooks.token_accuracy
        found[position.epoch, position.step] = _called(function, model.eval(), loader)
    return found


def _called(metric: Any, model: Any, loader: Any) -> float:
    from types import SimpleNamespace

    with torch.no_grad():
        return metric.function(SimpleNamespace(model=model, val_dataloader=loader, device="cpu"))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)
