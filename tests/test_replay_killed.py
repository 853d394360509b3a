"""Workers killed with SIGKILL at any moment of a replay: it completes, and each value is
stored once.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import HOOKS, Project

pytestmark = pytest.mark.xdist_group("killed")

# The metrics are the way "state" or "validate", so that each epoch is a position with a checkpoint.
PICKED = {"lightning": ["val_accuracy", "wrong"], "hf": ["token_accuracy"]}
SCRIPT = """
train(FlorCallback("long", overhead=None), epochs={epochs})
"""
# The process that asks, and kills. A worker is who has the replay's journal open, however it
# was started. It is killed at any moment of the position after the one that was told.
ASK = """
import json, os, random, signal, sys, threading
from glob import glob
from pathlib import Path

from flor_plugins.records import ReplayRequest
from flor_plugins.records.events import event_to_json
from flor_plugins.replayer.planning import planner
from flor_plugins.replayer.execution.executors import executor_of
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs

asked = json.loads(sys.argv[1])
draw = random.Random(asked["seed"])
events, killed = [], set()

def journal_of(fd):
    try:
        return os.readlink(fd)
    except OSError:
        return ""

def workers():
    found = {
        int(fd.split("/")[2]) for fd in glob("/proc/[0-9]*/fd/*")
        if journal_of(fd).endswith("-w0.jsonl") and asked["store"] in journal_of(fd)
    }
    return found - {os.getpid()} - killed

def kill():
    for pid in workers():
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)

def tell(task, told):
    event = event_to_json(told)
    events.append(event["event"])
    is_picked = event["event"] == "position" and draw.random() < asked["chance"]
    if is_picked and len(killed) < asked["kills"]:
        threading.Timer(draw.random() * asked["delay_s"], kill).start()

def main():
    store = Store(Path(asked["store"]))
    runs = list_runs(store)
    request = ReplayRequest(tuple(asked["metrics"]), hooks=(Path(asked["hook"]),))
    made = planner.make(store, runs, request)
    outcomes = executor_of("local").run_all(store, {run.run_id: run for run in runs}, made, tell)
    print(json.dumps({
        "kills": len(killed), "lost": events.count("lost"), "positions": events.count("position"),
        "failures": [
            line for o in outcomes for line in [*o.hook_failures, o.failure] if line is not None
        ],
        "passed": [[one.way, one.epochs, one.verdict.grade] for o in outcomes for one in o.passed],
        "planned": [[one.way, list(one.epochs)] for task in made.tasks for one in task.passes],
        "again": len(planner.make(store, list_runs(store), request).tasks),
    }))

main()
"""


def killed_on_the_way(
    root: Path, framework: str, *, epochs: int, kills: int, chance: float
) -> tuple[Project, Any]:
    project = replaying.make(root / "project")
    toy = (project.root / "lit_toy.py").read_text()  # its schedule ends after 100 updates
    project.write("lit_toy.py", toy.replace("total_steps=100", f"total_steps={8 * epochs + 8}"))
    project.write("train.py", replaying.TRAIN[framework] + SCRIPT.format(epochs=epochs))
    project.python("train.py")
    project.write("ignored/ask.py", ASK)
    asked = {
        "store": str(project.store.root), "hook": str(project.root / HOOKS[framework]), "seed": 5,
        "metrics": PICKED[framework], "kills": kills, "chance": chance,
        "delay_s": 0.0 if kills == 1 else 0.05,
    }  # fmt: skip
    return project, json.loads(
        project.python("ignored/ask.py", json.dumps(asked)).stdout.splitlines()[-1]
    )


def stored(project: Project) -> Counter[tuple[str, int]]:
    """How many values there are of each metric at each epoch, over all journals of replays."""
    [run] = list_runs(project.store)
    rows = [row for source, row in read_run(run.path) if source.is_replay]
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
    project, said = killed_on_the_way(
        tmp_path, framework, epochs=epochs, kills=kills, chance=chance
    )
    found = stored(project)
    twice = sum(count > 1 for count in found.values())
    print(
        f"{framework}: {said['kills']} kills, {said['lost']} workers begun again, "
        f"{said['positions']} positions told; "
        f"{len(found)} values, {twice} of them more than once"
    )
    assert said["failures"] == []
    # one that was killed after its last position had nothing left to do
    assert kills >= said["kills"] >= said["lost"] >= (1 if kills == 1 else kills // 2)
    assert [one[:2] for one in said["passed"]] == said["planned"]
    assert {one[2] for one in said["passed"]} == {"exact"}
    assert set(found.values()) == {1}
    assert {epoch for _, epoch in found} >= set(range(1, epochs + 1))
    assert {name for name, _ in found} == set(PICKED[framework])
    assert said["again"] == 0
