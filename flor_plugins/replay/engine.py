"""Worker processes on this machine: one per task, at most `workers` at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError
from flor_plugins.records import Plan, Run, Task
from flor_plugins.replay.sandbox import sandbox
from flor_plugins.store.commits import find_commit
from flor_plugins.store.layout import Store

Tell = Callable[[Task, dict[str, Any]], None]


@dataclass(slots=True)
class Outcome:
    """What became of one task. passed: one event per finished pass (way, epochs, seconds, grade, ...)."""

    task: Task
    passed: list[dict[str, Any]] = field(default_factory=list)
    hook_failures: list[str] = field(default_factory=list)
    failure: str | None = None
    log: Path | None = None

    @property
    def is_whole(self) -> bool:
        return self.failure is None and not self.hook_failures


def run_all(store: Store, runs: dict[str, Run], plan: Plan, tell: Tell, *, workers: int = 1) -> list[Outcome]:
    """Do all tasks of a plan; one that fails does not stop the others. In the order of the plan."""
    folder = store.replay(plan.replay_id)
    folder.mkdir(parents=True, exist_ok=True)

    def one(task: Task) -> Outcome:
        return _run_task(store, runs[task.run_id], plan, task, tell)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return list(pool.map(one, plan.tasks))


def _run_task(store: Store, run: Run, plan: Plan, task: Task, tell: Tell) -> Outcome:
    outcome = Outcome(task)
    folder = store.replay(plan.replay_id) / task.run_id
    folder.mkdir(parents=True, exist_ok=True)
    outcome.log = folder / "output.txt"
    assert run.code is not None
    try:
        repo = find_commit(run.code, store, Path.cwd())
        with (
            tempfile.TemporaryDirectory(prefix="flor-sandbox-", ignore_cleanup_errors=True) as scratch,
            sandbox(repo, run.code, Path(scratch) / Path(run.code.root).name) as place,
        ):
            order = {
                "run": str(run.path),
                "store": str(store.root),
                "sandbox": str(place),
                "replay_id": plan.replay_id,
                "hooks": list(plan.hooks),
                "task": asdict(task),
            }
            task_file = folder / "task.json"
            task_file.write_text(json.dumps(order, indent=1))
            _watch(outcome, run, task_file, place, tell)
    except FlorError as error:
        outcome.failure = str(error)
    return outcome


def _watch(outcome: Outcome, run: Run, task_file: Path, place: Path, tell: Tell) -> None:
    """Start the worker, read its events until it ends."""
    read, write = os.pipe()
    assert outcome.log is not None
    with outcome.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flor_plugins.replay.worker", str(task_file), str(write)],
            pass_fds=[write],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(run),
        )
    os.close(write)
    ended = False
    try:
        with os.fdopen(read) as events:
            for line in events:
                event = json.loads(line)
                ended = _note(outcome, event) or ended
                tell(outcome.task, event)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if not ended:
        outcome.failure = (
            f"the worker of run {run.name} died (exit status {code}); its output is in {outcome.log}"
        )


def _note(outcome: Outcome, event: dict[str, Any]) -> bool:
    """Keep what matters of an event; True for the last one."""
    kind = event["event"]
    if kind == "passed":
        outcome.passed.append(event)
    elif kind == "hook_failed":
        outcome.hook_failures.append(event["message"])
    elif kind == "failed":
        outcome.failure = event["message"]
    return kind in ("done", "failed")


def _environment(run: Run) -> dict[str, str]:
    """The recorded variables that matter, and trackers told to stay silent."""
    package = str(Path(__file__).resolve().parents[2])
    recorded = dict(run.launch.env)
    silent = {
        "WANDB_MODE": "disabled",
        "COMET_MODE": "disabled",
        "NEPTUNE_MODE": "debug",
        "CLEARML_OFFLINE_MODE": "1",
        "SWANLAB_MODE": "disabled",
        "MLFLOW_TRACKING_URI": f"file:{tempfile.gettempdir()}/flor-mlflow",
        "PYTHONUNBUFFERED": "1",
    }
    # -P keeps the present folder off the import path: the user's newer files must not be found there.
    found = recorded.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    paths = [*filter(None, found.split(os.pathsep)), package]
    return {**os.environ, **recorded, **silent, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
