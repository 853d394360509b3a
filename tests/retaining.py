"""Runs with checkpoints to give up: small ones, in which something changes at each epoch and
something never does.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flor_plugins.records import Code, Launch, Position, RecordingProcess, Row, Run, Timing
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.runs import save_run

STEPS = 10  # in an epoch
IDS = tuple(f"20260101-00000{number}-000-abcdef" for number in range(5))


def at(epoch: int) -> Position:
    return Position(epoch, epoch * STEPS)


def weight(epoch: int, size: int = 4000) -> torch.Tensor:
    """Nearly as it was an epoch before, with noise in the lowest bits: as weights are that
    train slowly.
    """
    start = torch.rand(size, generator=torch.Generator().manual_seed(0)) + 1
    return start + 1e-3 * torch.rand(size, generator=torch.Generator().manual_seed(epoch))


def sections(epoch: int, size: int = 4000) -> dict[str, Any]:
    """A layer that is trained, one that is frozen, one that is frozen from the third epoch
    on, and Adam's state.
    """
    return {
        "model": {
            "trained": weight(epoch, size),
            "frozen": torch.ones(size),
            "late": torch.full((size,), float(min(epoch, 3))),
        },
        "optimizer": [{"state": {0: {"exp_avg": weight(epoch, 2 * size) * 3}}}],
        "rng": {"python": epoch},
        "timeline": {"rows": []},
    }


def make_run(store: Store, run_id: str = IDS[0], **changes: Any) -> Run:
    """A finished run without checkpoints."""
    fields: dict[str, Any] = {
        "run_id": run_id,
        "name": "toy",
        "project": "p",
        "framework": "hf",
        "status": "finished",
        "started_at": "2026-01-01T00:00:00Z",
        "launch": Launch("script", "train.py"),
        "code": Code("a" * 40, "/r/.git", "/r"),
        "process": RecordingProcess(socket.gethostname(), 1, "another"),
        "path": store.run(run_id),
        "timing": Timing(1.0, 100.0, 1.0),
    }
    run = Run(**{**fields, **changes})
    save_run(run)
    return run


def train(store: Store, epochs: int, run_id: str = IDS[0], size: int = 4000, **changes: Any) -> Run:
    """A run with a row and a full checkpoint at each epoch."""
    run = make_run(store, run_id, position=at(epochs), **changes)
    save_all(run.path, range(epochs + 1), size)
    journal = Journal(run.path / "metrics" / "record-r0.jsonl", run.path / "media")
    for epoch in range(1, epochs + 1):
        journal.append(Row(at(epoch), "train", "epoch", {"loss": 1.0 / epoch}, 0.0))
    journal.close()
    return run


def save_all(
    path: Path, epochs: Iterable[int], size: int = 4000, known: dict[Any, Any] | None = None
) -> None:
    known = {} if known is None else known
    for epoch in epochs:
        save_checkpoint(path, at(epoch), encode(sections(epoch, size)), known)


def forms(path: Path) -> dict[int, str]:
    return {
        one.position.epoch: "full" if one.can_train else "weights" for one in list_checkpoints(path)
    }


def check_all(path: Path, size: int = 4000) -> dict[int, str]:
    """Every checkpoint that is listed loads, and is what was saved. Returns the forms by epoch."""
    for one in list_checkpoints(path):
        state, saved = load_checkpoint(path, one.position), sections(one.position.epoch, size)
        assert state["rng"] == saved["rng"]
        for name, tensor in saved["model"].items():
            assert torch.equal(state["model"][name], tensor), (one.position, name)
        assert one.can_train == ("optimizer" in state) == one.is_full
        if one.can_train:
            exp_avg = state["optimizer"][0]["state"][0]["exp_avg"]
            assert torch.equal(exp_avg, saved["optimizer"][0]["state"][0]["exp_avg"])
    return forms(path)


def begin_replay(
    store: Store, run: Run, epochs: Iterable[int], process: RecordingProcess | None = None
) -> Path:
    """The folder of a replay that starts from checkpoints of a run and has not ended."""
    folder = store.replay("20260102-000000-000-abcdef")
    folder.mkdir(parents=True)
    task = {"run_id": run.run_id, "passes": [{"checkpoints": [str(at(epoch)) for epoch in epochs]}]}
    plan = {"format": 1, "tasks": [task], **({"process": asdict(process)} if process else {})}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def ended() -> RecordingProcess:
    """A process of this host that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return RecordingProcess(socket.gethostname(), process.pid, "")
