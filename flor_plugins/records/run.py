"""What is recorded: a run, where it has been, what it logged and saved there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flor_plugins.records.sections import OPTIMIZER, TRAINER

Phase = Literal["train", "validation", "test"]
Level = Literal["epoch", "step"]
Framework = Literal["lightning", "hf", "loop", "flordb"]
Strategy = Literal["state", "validate", "train"]
Grade = Literal["exact", "close", "diverged", "unverified"]
RunStatus = Literal["running", "finished", "failed", "killed"]
# How well a run can be replayed, best first: bit for bit; up to rounding; not all of its state is
# known; from its weights only; not at all.
ReplayGrade = Literal["exact", "close", "partial", "weights", "none"]
REPLAY_GRADES: tuple[ReplayGrade, ...] = ("exact", "close", "partial", "weights", "none")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a run has come; both frameworks are translated to this.

    epoch: epochs completed, 0 before the first batch.
    step:  optimizer updates completed. The update that completes an epoch
           already belongs to it, so a step has exactly one position.
    """

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"epoch={self.epoch},step={self.step}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The inverse of `str`; raises ValueError on anything else."""
        found = re.fullmatch(r"epoch=(\d+),step=(\d+)", text)
        if found is None:
            raise ValueError(f"not a position: {text!r} (it looks like epoch=3,step=120)")
        return cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class Row:
    """All that was logged at one position in one phase and at one level.

    at: seconds since 1970, UTC. verdict and hook are set on replayed rows only;
    hook is the sha256 of the source of the hook that computed the values.
    """

    position: Position
    phase: Phase
    level: Level
    values: Mapping[str, Any]
    at: float
    verdict: Grade | None = None
    hook: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """How the process of a run was started, enough to start it again.

    kind: "script" (target: path of the file), "module" (target: dotted name),
          "recipe" (target: module:function, with `folder` and `params`) or
          "interactive" (a notebook or a prompt: can't be started again).
    argv: the arguments after the target. call: how many recorded runs this
    process had begun before this one. injected: the callback was put on by
    `flor-hf record -- COMMAND`, the script does not name it.
    """

    kind: Literal["script", "module", "recipe", "interactive"]
    target: str
    argv: tuple[str, ...] = ()
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    call: int = 0
    folder: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a run: a commit, where it lies, and what it does not hold.

    vid: 40 hex digits. git_dir: the repository that holds it. root: the work tree.
    left_out: "path (why)" for each file that was left out of the snapshot.
    """

    vid: str
    git_dir: str
    root: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordingProcess:
    """The process that records a run. started: its start as the system counts it."""

    host: str
    pid: int
    started: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, as measured while recording; None where nothing was measured.

    build_s: process start to the first batch. epoch_s: one training epoch, its
    validation included. validation_s: one validation pass. recording_s: of the
    training's time so much went into checkpoints; what was copied beside it counts.
    """

    build_s: float | None = None
    epoch_s: float | None = None
    validation_s: float | None = None
    recording_s: float | None = None


@dataclass(frozen=True, slots=True)
class SkippedCheckpoint:
    """A checkpoint that was due and not taken.

    cost_s: seconds of training that lead there from a full one before.
    """

    position: Position
    why: str
    cost_s: float | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a run from being replayed bit for bit, found while it was recorded.

    grade: the best that is possible with it. remedy: what to do in the next run.
    """

    grade: ReplayGrade
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Run:
    """One call of fit/train with the callback on it: what run.json holds.

    framework: which trainer; "flordb": whatever logged to a store of FlorDB, of which only
    values are known.
    resumed: "<time> at <position>" for each time that the run went on after an interruption.
    processes: how many trained one model together. skipped: checkpoints that were due and not
    taken; of very many the first and the last are listed, and skipped_count is the number of
    all.
    """

    run_id: str
    name: str
    project: str
    framework: Framework
    status: RunStatus
    started_at: str
    launch: Launch
    code: Code | None
    process: RecordingProcess
    path: Path
    tags: tuple[str, ...] = ()
    finished_at: str | None = None
    error: str | None = None
    position: Position | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    timing: Timing = Timing()
    gaps: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    resumed: tuple[str, ...] = ()
    processes: int = 1
    skipped: tuple[SkippedCheckpoint, ...] = ()
    skipped_count: int = 0

    @property
    def is_weights_only(self) -> bool:
        """Only the weights of its State are recorded, because more could not be put back."""
        return any(one.grade == "weights" for one in self.obstacles)

    @property
    def replay_grade(self) -> ReplayGrade:
        """The best that a replay can be, as far as was known when the run was recorded."""
        return REPLAY_GRADES[
            max((REPLAY_GRADES.index(one.grade) for one in self.obstacles), default=0)
        ]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The saved state of a run at a position.

    is_full: training can go on from it bit for bit; else `lost` says what is missing.
    sections: what was saved: model, optimizer, ...
    """

    run_id: str
    position: Position
    path: Path
    is_full: bool
    nbytes: int
    lost: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()

    @property
    def can_train(self) -> bool:
        """Training can go on from it."""
        return OPTIMIZER in self.sections

    @property
    def can_validate(self) -> bool:
        """It holds more than the weights of the model."""
        return TRAINER in self.sections
