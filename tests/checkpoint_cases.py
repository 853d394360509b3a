"""A small state, and where its checkpoints lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flor_plugins.records import Position

AT = Position(1, 10)
LATER = Position(2, 20)


def sections(scale: float = 1.0) -> dict[str, Any]:
    tied = torch.full((4, 3), 7.0)
    return {
        "model": {
            "wte": tied,
            "head": tied,
            "layer.weight": torch.arange(6.0) * scale,
            "empty": torch.empty(0, 2),
        },
        "optimizer": [
            {"state": {0: {"step": torch.tensor(3.0 * scale), "exp_avg": torch.ones(6) * scale}}}
        ],
        "loops": {"epoch": 1, "seen": {1, 2}, "best": float("nan"), "lr": 0.1},
    }


def folder(run: Path, position: Position = AT) -> Path:
    return run / "checkpoints" / str(position)
