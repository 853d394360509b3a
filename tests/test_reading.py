"""What `show` and `checkpoints` say of what has a checkpoint and what has none."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

from flor_plugins.cli import read, tables
from flor_plugins.records import (
    Checkpoint,
    Launch,
    Position,
    RecordingProcess,
    Row,
    Run,
    SkippedCheckpoint,
    Timing,
)
from flor_plugins.store.checkpoints import save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.run_index import RunIndex, RunProgress
from flor_plugins.store.runs import save_run

DEAR = "recording would cost more than 2 % of the training's time"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Four epochs of ten steps; the first, the second (weights only) and the last have a
    checkpoint.
    """
    monkeypatch.setenv("FLOR_DIR", str(tmp_path / ".flor"))
    store = Store(tmp_path / ".flor").make()
    run_id = "20261123-200501-123-9f3a2c"
    run = Run(
        run_id,
        "bert",
        "p",
        "hf",
        "finished",
        "2026-11-23T20:05:01Z",
        Launch("script", "t.py"),
        None,
        RecordingProcess("elsewhere", 1, "2"),
        store.run(run_id),
        timing=Timing(1.0, 10.0, None, 0.123),
        skipped=(
            SkippedCheckpoint(Position(3, 30), DEAR, 31.0),
            SkippedCheckpoint(Position(3, 35), "the writer was busy"),
        ),
        skipped_count=2,
    )
    save_run(run)
    for epoch in (0, 1, 2, 4):
        state = {"model": {"w": torch.ones(250)}, "optimizer": [1]}
        if epoch == 2:
            del state["optimizer"]
        save_checkpoint(run.path, Position(epoch, 10 * epoch), encode(state))
    journal = Journal(run.path / "metrics" / "record-r0.jsonl", run.path / "media")
    for epoch in range(1, 5):
        journal.append(Row(Position(epoch, 10 * epoch), "train", "epoch", {"loss": 1.0}, 0.0))
    journal.close()
    return run


def test_checkpoints_say_what_they_hold_and_how_the_rest_is_reached(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    read.checkpoints("bert", False, False)
    *table, said = capsys.readouterr().out.splitlines()
    holds, size = table[0].split().index("holds"), table[0].split().index("bytes")
    assert "full" not in table[0].split()
    assert [line.split()[holds] for line in table[1:]] == ["full", "full", "weights", "full"]
    assert [line.split()[size + 1] for line in table[1:]] == ["kB"] * 4
    assert said == (
        "3 of 4 epochs have a checkpoint (1 of them the weights only); "
        "the others are reached by training again: at most 20 s."
    )


def test_checkpoints_are_told_to_programs_in_bytes(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    read.checkpoints("bert", True, False)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["epoch"], row["holds"]) for row in rows] == [
        (0, "full"),
        (1, "full"),
        (2, "weights"),
        (4, "full"),
    ]
    assert all(type(row["bytes"]) is int for row in rows)
    read.checkpoints("bert", False, True)
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 4


def test_show_says_what_was_skipped_and_what_recording_cost(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(replace(run, skipped_count=900))
    read.show("bert", False)
    lines = capsys.readouterr().out.splitlines()
    assert "recording    0.12 s of the training's time" in lines
    assert [line for line in lines if line.startswith("skipped")] == [
        f"skipped      {DEAR}: epoch=3,step=30; training comes there again in 31 s at most",
        "skipped      the writer was busy: epoch=3,step=35",
        "skipped      900 checkpoints in all; not all of them are listed",
    ]
    read.show("bert", True)
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"][0] == {"position": {"epoch": 3, "step": 30}, "why": DEAR, "cost_s": 31.0}
    assert told["skipped_count"] == 900 and told["timing"]["recording_s"] == 0.123


def places(
    saved: dict[Position, tuple[str, ...]], epochs: int = 20, epoch_s: float | None = 10.0
) -> RunIndex:
    """Epochs of ten steps; saved: the sections of each checkpoint."""
    path = Path("/nowhere")
    run = Run(
        "r",
        "n",
        "p",
        "hf",
        "finished",
        "",
        Launch("script", "t"),
        None,
        RecordingProcess("h", 1, "2"),
        path,
        timing=Timing(None, epoch_s),
    )
    made = {
        at: Checkpoint("r", at, path, len(parts) > 1, 1, (), parts) for at, parts in saved.items()
    }
    starts = tuple(at for at, one in made.items() if one.can_train)
    ends = {epoch: 10 * epoch for epoch in range(epochs + 1)}
    return RunIndex(run, RunProgress(ends, Position(epochs, 10 * epochs)), made, starts)


FULL, WEIGHTS = ("model", "optimizer"), ("model",)
EVERY = {Position(epoch, 10 * epoch): FULL for epoch in range(21)}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (places(EVERY), "20 of 20 epochs have a checkpoint."),
        (
            places({at: FULL for at in EVERY if at.epoch % 5 == 0}),
            "4 of 20 epochs have a checkpoint; the others are reached by training again: at "
            "most 40 s.",
        ),
        (  # inside an epoch is a place to start from as well
            places({Position(0, 0): FULL, Position(9, 95): FULL, Position(20, 200): FULL}),
            "1 of 20 epochs have a checkpoint; the others are reached by training again: at "
            "most 95 s.",
        ),
        (
            places(
                {at: FULL if at.epoch in (0, 20) else WEIGHTS for at in EVERY if at.epoch != 19}
            ),
            "19 of 20 epochs have a checkpoint (18 of them the weights only); "
            "the others are reached by training again: at most 3 min.",
        ),
        (
            places({Position(0, 0): FULL}, epoch_s=None),
            "0 of 20 epochs have a checkpoint; the others are reached by training again.",
        ),
        (
            places({Position(2, 20): FULL}),
            "1 of 20 epochs have a checkpoint; from none before epoch 1 training goes on.",
        ),
        (places({}, epochs=0), "0 of 0 epochs have a checkpoint."),
    ],
)
def test_how_the_epochs_without_a_checkpoint_are_reached(found: RunIndex, said: str) -> None:
    assert read.reach(found) == said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.123, "0.12 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"),
     (120.0, "2 min"), (7169.0, "119 min"), (7200.0, "2.0 h")],
)  # fmt: skip
def test_a_duration_is_printed_for_people(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_frame_with_dicts_as_values_is_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pandas.DataFrame({"by_class": [{"a": 0.5, "b": math.nan}, None]})
    tables.frame(frame, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"by_class": {"a": 0.5, "b": None}},
        {"by_class": None},
    ]
    tables.frame(frame, as_csv=True)
    header, first, *_ = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["by_class"] and json.loads(first[0]) == {"a": 0.5, "b": None}
