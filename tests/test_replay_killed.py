"""Workers killed with SIGKILL at any moment of a replay: it completes, and each value is stored once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.store.journal import read_run
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import HOOKS, Project

# The metrics are the way "state" or "validate", so that each epoch is a position with a checkpoint.
PICKED = {"lightning": ["val_accuracy", "wrong"], "hf": ["token_accuracy"]}
SCRIPT = """
train(FlorCallback("long"), epochs={epochs})
"""
# The process that asks, and kills: it knows the pids of its own workers only.
ASK = """
import json, os, random, signal, sys
from pathlib import Path

from flor_plugins.replay import plan as planning
from flor_plugins.replay.crew import Crew
from flor_plugins.replay.engine import run_all
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs

asked = json.loads(sys.argv[1])
draw = random.Random(asked["seed"])
begun, events = [], []
begin = Crew._start

def noting(self, *args):
    begin(self, *args)
    begun.append(self._processes[-1])

Crew._start = noting

def tell(task, event):
    events.append(event["event"])
    if event["event"] == "position" and draw.random() < asked["chance"] and events.count("kill") < asked["kills"]:
        events.append("kill")
        os.kill(begun[-1].pid, signal.SIGKILL)

def main():
    store = Store(Path(asked["store"]))
    runs = list_runs(store)
    request = planning.Request(tuple(asked["metrics"]), None, "all", (Path(asked["hook"]),))
    made = planning.make(runs, request)
    outcomes = run_all(store, {run.run_id: run for run in runs}, made, tell)
    print(json.dumps({
        "kills": events.count("kill"), "lost": events.count("lost"), "workers": len(begun),
        "failures": [line for o in outcomes for line in [*o.hook_failures, *([o.failure] if o.failure else [])]],
        "passed": [[one["way"], one["epochs"], one["grade"]] for o in outcomes for one in o.passed],
        "planned": [[one.way, list(one.epochs)] for task in made.tasks for one in task.passes],
        "again": len(planning.make(list_runs(store), request).tasks),
    }))

main()
"""


def killed_on_the_way(root: Path, framework: str, *, epochs: int, kills: int, chance: float) -> tuple[Project, Any]:
    project = replaying.make(root / "project")
    project.write("train.py", replaying.TRAIN[framework] + SCRIPT.format(epochs=epochs))
    project.python("train.py")
    project.write("ignored/ask.py", ASK)
    asked = {
        "store": str(project.store.root), "hook": str(project.root / HOOKS[framework]), "seed": 5,
        "metrics": PICKED[framework], "kills": kills, "chance": chance,
    }  # fmt: skip
    return project, json.loads(project.python("ignored/ask.py", json.dumps(asked)).stdout.splitlines()[-1])


def stored(project: Project) -> Counter[tuple[str, int]]:
    """How many values there are of each metric at each epoch, over all journals of replays."""
    [run] = list_runs(project.store)
    rows = [row for writer, row in read_run(run.path) if writer.startswith("replay")]
    return Counter((name, row.position.epoch) for row in rows for name in row.values)


@pytest.mark.parametrize(
    ("framework", "epochs", "kills", "chance"),
    [
        ("lightning", 6, 1, 1.0),
        pytest.param("lightning", 100, 8, 0.12, marks=pytest.mark.slow),
        pytest.param("hf", 100, 8, 0.12, marks=pytest.mark.slow),
    ],
)
def test_a_replay_whose_workers_are_killed_completes_with_each_value_once(
    tmp_path: Path, framework: str, epochs: int, kills: int, chance: float
) -> None:
    project, said = killed_on_the_way(tmp_path, framework, epochs=epochs, kills=kills, chance=chance)
    assert said["failures"] == []
    assert said["kills"] == kills
    assert kills >= said["lost"] >= 1 and said["workers"] == 1 + said["lost"]
    assert [one[:2] for one in said["passed"]] == said["planned"]
    assert {one[2] for one in said["passed"]} == {"exact"}
    found = stored(project)
    assert set(found.values()) == {1}
    assert {epoch for _, epoch in found} >= set(range(1, epochs + 1))
    assert {name for name, _ in found} == set(PICKED[framework])
    assert said["again"] == 0
