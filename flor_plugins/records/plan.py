"""What is asked of runs: a plan with its tasks, and how exactly they were done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flor_plugins.records.json_form import JsonObject, to_json
from flor_plugins.records.run import Grade, Position, Strategy


@dataclass(frozen=True, slots=True)
class TrainingRange:
    """Training that is run again, from the checkpoint at `start` up to `end`.

    The end lies inside an epoch or at its end. epochs: those that are touched, ascending, each
    by the count that is reached when it is complete.
    """

    start: Position
    end: Position
    epochs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplayPass:
    """One way through some positions of one run.

    positions: where values are wanted; the ways "state" and "validate" restore the checkpoint
    at each.
    stretches: what the way "train" runs again. reason: why this way is the cheapest.
    steps: of step metrics only these are wanted; None means all of the stretches.
    seconds, nbytes: estimates of what it takes and of what it reads; None where nothing is known.
    """

    way: Strategy
    metrics: tuple[str, ...]
    reason: str
    positions: tuple[Position, ...] = ()
    stretches: tuple[TrainingRange, ...] = ()
    seconds: float | None = None
    steps: tuple[int, ...] | None = None
    nbytes: int | None = None

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs that the pass answers for: completed counts, or the ones run again."""
        run_again = {epoch for stretch in self.stretches for epoch in stretch.epochs}
        return tuple(sorted(run_again or {position.epoch for position in self.positions}))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints that it starts from."""
        starts = [stretch.start for stretch in self.stretches] or list(self.positions)
        return tuple(map(str, starts))


@dataclass(frozen=True, slots=True)
class BackportedEdit:
    """An edit of the working tree in the code of one run.

    base: what the edit was compared with. sources: the files of that version that are others in
    the sandbox: path beneath the top of the repository to text. how: for each of them "same",
    "merged" or "aligned". patch: what `git diff` would print.
    """

    base: str
    sources: Mapping[str, str]
    how: Mapping[str, str]
    patch: str


@dataclass(frozen=True, slots=True)
class MethodPatch:
    """A function that takes the place of a method of the run's own code.

    target: `module:Class.method`, as that version calls it. function: its name in `path`; text:
    of that whole file.
    """

    target: str
    function: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker process does: some passes over one run.

    digests: metric to the sha256 of what gives it (hook, edit, replaced method), today's first;
    values that an earlier one gave are others. edit, methods: what is other in the run's own
    code.
    """

    run_id: str
    name: str
    vid: str
    passes: tuple[ReplayPass, ...]
    digests: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    edit: BackportedEdit | None = None
    methods: tuple[MethodPatch, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What is asked of past runs.

    metrics: names; none means all that the hook files define. where: only positions at which
    this expression holds. epochs: "all", "last", "1:3", "1,3", "sample:5" or numbers.
    runs: names, ids or places of runs (`bert@step=1200`); None means all runs.
    hooks: files; none means those of the recipes that the runs were recorded from.
    patch: `module:Class.method` to the `file.py:function` that replaces it.
    only: run_id to epochs of that run, of those that there are; a search asks for them. Of
    validations only those at their ends count, and a run that can't be replayed is no error:
    the plan says so in `skipped`.
    is_verification: training is run again and compared with the recording, for no metric.
    """

    metrics: tuple[str, ...] = ()
    where: str | None = None
    epochs: str | Sequence[int] = "all"
    runs: tuple[str, ...] | None = None
    hooks: tuple[Path, ...] = ()
    patch: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Collection[int]] = field(default_factory=dict)
    is_verification: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay will do. `skipped`: run_id to the reason why it can't be replayed."""

    replay_id: str
    metrics: tuple[str, ...]
    where: str | None
    hooks: tuple[str, ...]
    tasks: tuple[Task, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """The estimate for all tasks one after the other; None where one is unknown."""
        estimates = [one.seconds for task in self.tasks for one in task.passes]
        return None if None in estimates else sum(s for s in estimates if s is not None)

    def to_json(self) -> JsonObject:
        """Return the plan with what follows from its fields, as --json and plan.json show it."""
        data = to_json(self)
        for task, task_data in zip(self.tasks, data["tasks"], strict=True):
            for replay_pass, pass_data in zip(task.passes, task_data["passes"], strict=True):
                pass_data["epochs"] = list(replay_pass.epochs)
                pass_data["checkpoints"] = list(replay_pass.checkpoints)
        return {**data, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How exactly a pass reproduced the recorded run.

    compared: how many values and tensors were compared. first: the first
    differing position, or None. detail: names both values there.
    """

    grade: Grade
    compared: int = 0
    first: Position | None = None
    detail: str = ""
