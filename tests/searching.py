"""Runs to search in, and a stand-in for the workers: it stores what hooks would have
computed, where a plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import (
    Code,
    Launch,
    Obstacle,
    Plan,
    Position,
    RecordingProcess,
    ReplayPass,
    Row,
    Run,
    Task,
    Timing,
    Verdict,
)
from flor_plugins.records.events import PassResult
from flor_plugins.replayer import requests
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.store.checkpoints import save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.runs import save_run

HOOKS = """
import flor_plugins as flor

@flor.metric
def acc(ctx): ...

@flor.metric(at="step")
def norm(ctx): ...
"""
Truth = Callable[[str, Position], Any]


def record(
    store: Store,
    number: int,
    epochs: int,
    *,
    steps: int = 4,
    saved: Sequence[int] | None = None,
    logged: Callable[[Position], dict[str, Any]] = lambda at: {"loss": 1 / at.step},
    obstacles: tuple[Obstacle, ...] = (),
    **params: Any,
) -> Run:
    """A run of so many epochs of so many updates.

    saved: epochs with a checkpoint, 0 the beginning; default all.
    """
    run_id = f"20261123-2005{number:02}-123-9f3a2c"
    run = Run(
        run_id,
        f"run{number}",
        "p",
        "hf",
        "finished",
        "2026-11-23T20:05:01Z",
        Launch("script", "/r/train.py"),
        Code("a" * 40, "/r/.git", "/r"),
        RecordingProcess("elsewhere", 1, "2"),
        store.run(run_id),
        timing=Timing(1, 10, 2),
        params=params,
        obstacles=obstacles,
    )
    run.path.mkdir(parents=True)
    save_run(run)
    for epoch in range(epochs + 1) if saved is None else saved:
        state = {"model": {"w": torch.full((2,), float(epoch))}, "optimizer": [], "trainer": {}}
        save_checkpoint(run.path, Position(epoch, epoch * steps), encode(state))
    places = [Position(step // steps, step) for step in range(1, epochs * steps + 1)]
    _write(run, "record-r0", [Row(one, "train", "step", logged(one), 0.0) for one in places])
    return run


def _write(run: Run, writer: str, rows: Sequence[Row]) -> None:
    journal = Journal(run.path / "metrics" / f"{writer}.jsonl", run.path / "media")
    for row in rows:
        journal.append(row)
    journal.close()


@dataclass
class Workers:
    """In the place of `requests.execute`. truth: what a hook gives at a place. called: (run_id,
    metric, place), in order.

    fails: names of runs of which a hook fails. diverges: names of runs that are not as they were.
    """

    truth: Truth
    fails: tuple[str, ...] = ()
    diverges: tuple[str, ...] = ()
    called: list[tuple[str, str, Position]] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    def execute(
        self, store: Store, runs: Sequence[Run], plan: Plan, **_: Any
    ) -> requests.ReplayResult:
        self.plans.append(plan)
        hooks = [found for path in plan.hooks for found in scan(Path(path))]
        by_id = {run.run_id: run for run in runs}
        outcomes = [
            self._do(by_id[task.run_id], plan, task, {one.name: one.digest for one in hooks})
            for task in plan.tasks
        ]
        return requests.ReplayResult(plan, tuple(runs), tuple(outcomes))

    def _do(self, run: Run, plan: Plan, task: Task, digests: dict[str, str]) -> Outcome:
        grade = "diverged" if run.name in self.diverges else "exact"
        passed = [
            PassResult(one.way, one.epochs, 0.1, Verdict(grade, compared=1)) for one in task.passes
        ]
        if run.name in self.fails:
            return Outcome(task, passed, hook_failures=["metric 'acc' failed"])
        rows = []
        for one in task.passes:
            for name, place in self._places(run, one):
                self.called.append((run.run_id, name, place))
                level = "step" if name == "norm" else "epoch"
                phase = "train" if name == "norm" else "validation"
                rows.append(
                    Row(
                        place,
                        phase,
                        level,
                        {name: self.truth(name, place)},
                        0.0,
                        grade,
                        digests[name],
                    )
                )
        _write(run, f"replay-{plan.replay_id}-w0", rows)
        return Outcome(task, passed)

    def _places(self, run: Run, one: ReplayPass) -> list[tuple[str, Position]]:
        found = [(name, place) for name in one.metrics if name != "norm" for place in one.positions]
        if "norm" in one.metrics:
            steps = [
                step for it in one.stretches for step in range(it.start.step + 1, it.end.step + 1)
            ]
            last = max((it.end for it in one.stretches), default=Position(0, 0))
            each = last.step // last.epoch if last.epoch else 1
            wanted = [step for step in steps if one.steps is None or step in one.steps]
            found += [("norm", Position(step // each, step)) for step in wanted]
        return found
