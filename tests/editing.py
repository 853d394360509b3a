"""Edits as records, made from two states of some files: what carrying needs, without a
repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from flor_plugins.replayer.backport import edit
from flor_plugins.replayer.backport.edit import Edit

NET = """import lightning.pytorch as pl
import torch
import flor_plugins as flor


def spread(values):
    return values.max() - values.min()


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 2)
        self.scale = 2.0

    def forward(self, x):
        return spread(self.body(x)) * self.scale

    def training_step(self, batch, index):
        x, y = batch
        out = self(x)
        loss = torch.nn.functional.cross_entropy(out, y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""
LOGGED = '        self.log("loss", loss)\n'


def changed(text: str, *changes: tuple[str, str]) -> str:
    """A text with parts of it replaced everywhere; each part must be there."""
    for old, new in changes:
        assert old in text, f"no {old!r}"
        text = text.replace(old, new)
    return text


def edit_of(base: Mapping[str, str], edited: Mapping[str, str]) -> Edit:
    """The edit that leads from one state to the other."""
    return edit.edit_of(base, edited, "the base")


def logging(*lines: str, base: str = NET, top: str = "") -> Edit:
    """Lines put behind the one that logs the loss, and something put above the first function."""
    text = changed(base, (LOGGED, LOGGED + "".join(f"        {line}\n" for line in lines)))
    return edit_of({"net.py": base}, {"net.py": changed(text, ("def spread", top + "def spread"))})
