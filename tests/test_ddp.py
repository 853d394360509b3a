"""Several processes that train one model: recorded together, replayed together, each exact
on its own.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import flor_plugins as flor
from flor_plugins.records import Position, Run
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.conftest import few, table_of
from tests.replaying import Project

FRAMEWORKS = ("lightning", "hf")
SCRIPTS = {"lightning": "lit_pair.py", "hf": "hf_pair.py"}


def train(project: Project, framework: str, name: str, count: int = 2, **env: str) -> list[str]:
    """Returns what each micro-batch printed: rank, place and the bits of its loss. env: it
    may fail with it.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    words = [*(launcher if framework == "hf" else []), SCRIPTS[framework], name, str(count)]
    done = project.python(*words, ok=not env, **env)
    return losses(done.stdout)


def losses(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("LOSS"))


def replayed(project: Project) -> list[str]:
    """The same of the workers of the newest replay."""
    newest = max(path for path in project.store.root.glob("replays/*"))
    return losses("".join(path.read_text() for path in newest.glob("*/output*.txt")))


def run_of(project: Project, name: str = "pair") -> Run:
    (run,) = [run for run in list_runs(project.store) if run.name == name]
    return run


@dataclass(frozen=True)
class Pair:
    project: Project
    framework: str
    told: list[str]

    @property
    def run(self) -> Run:
        return run_of(self.project)


def saved(project: Project, name: str, rank: int) -> dict[str, torch.Tensor]:
    """The weights that a process wrote at its end, which may come after that of the first one."""
    path, end = project.root / f"out/{name}-{rank}.pt", time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    while True:
        try:
            return torch.load(path)
        except (RuntimeError, EOFError):  # it is being written
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


# Each process but the first is a new interpreter: in the default run stand all of one framework,
# and of the other one the training of three.
@pytest.fixture(scope="module", params=few(FRAMEWORKS, ["lightning"]))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    project = replaying.make(tmp_path_factory.mktemp(request.param) / "project")
    (project.root / "out").mkdir()
    return Pair(project, request.param, train(project, request.param, "pair"))


@pytest.mark.exactness
def test_two_processes_train_the_same_with_and_without_the_callback(pair: Pair) -> None:
    assert train(pair.project, pair.framework, "without") == pair.told
    for rank in (0, 1):
        without, recorded = (saved(pair.project, name, rank) for name in ("without", "pair"))
        assert all(torch.equal(without[name], recorded[name]) for name in without)


@pytest.mark.exactness
def test_each_process_keeps_what_is_its_own_and_values_stand_once(pair: Pair) -> None:
    run, own = pair.run, ranks.folder(pair.run.path, 1)
    assert run.processes == 2 and run.status == "finished" and not run.gaps and not run.obstacles
    saved = [one.position for one in checkpoints.list_checkpoints(run.path)]
    assert Position(0, 3) in saved and Position(3, 15) in saved
    assert [one.position for one in checkpoints.list_checkpoints(own)] == saved
    assert table_of(run)  # no value twice
    position = Position(1, 9)
    first, second = (checkpoints.load_checkpoint(path, position) for path in (run.path, own))
    assert "optimizer" not in second and set(second["model"]) < set(first["model"])
    assert all("running" in name or "num_batches" in name for name in second["model"])
    whole = ranks.load_checkpoint(run.path, 1, position)
    assert whole["optimizer"] and set(whole["model"]) == set(first["model"])
    assert not torch.equal(
        whole["model"]["net.1.running_mean"], first["model"]["net.1.running_mean"]
    )
    assert not torch.equal(whole["rng"]["now"]["torch"], first["rng"]["now"]["torch"])


@pytest.mark.exactness
def test_two_processes_replay_every_micro_batch_bit_for_bit(pair: Pair) -> None:
    found = json.loads(pair.project.flor("verify", "pair", "--json").stdout)
    assert {one["verdict"] for one in found} == {"exact"}
    assert {"epoch=1,step=6", "epoch=2,step=10", "epoch=2,step=12"} <= {
        one["from"] for one in found
    }
    assert replayed(pair.project) == pair.told and len(pair.told) == 54
    # Beginning inside an epoch, in processes that have trained nothing before:
    (found,) = json.loads(pair.project.flor("verify", "pair@step=14", "--json").stdout)
    assert found["from"] == "epoch=2,step=12" and found["verdict"] == "exact"


@pytest.mark.exactness
def test_metrics_of_the_weights_are_computed_by_one_process_that_sees_all_data(pair: Pair) -> None:
    project = pair.project
    asked = ("replay", "--run", "pair", "--yes", "--hook", "pair_hooks.py", "--metrics")
    project.flor(*asked, "seen_then,norm")
    newest = max(project.store.root.glob("replays/*/2*"))
    assert not list(newest.glob("*-1.*")) and (newest / "output.txt").exists()
    frame = flor.dataframe("seen", "seen_then", "share", store=project.store.root)
    assert frame["epoch"].tolist() == [1, 2, 3]
    # live, by two processes, and in hindsight, by one
    assert frame["seen"].tolist() == frame["seen_then"].tolist() == [20, 20, 20]
    assert set(frame["share"]) < set(range(8, 20))  # a metric of batches is the first process' own
    project.flor(*asked, "norm,lr_now")
    steps = flor.dataframe("lr_now", store=project.store.root)
    assert steps["step"].tolist() == list(range(1, 16))
    assert {one["verdict"] for one in project.verdicts()} == {"exact"}


@pytest.mark.exactness
def test_replay_ends_when_one_of_its_processes_dies(pair: Pair) -> None:
    done = pair.project.flor("verify", "pair", "--epochs", "last", ok=False, PAIR_DIES="1:10")
    assert done.returncode == 1
    assert "rank 1: it died (exit status 9)" in done.stdout + done.stderr


@pytest.mark.exactness
def test_killed_run_of_two_processes_goes_on_as_if_it_had_not_been(pair: Pair) -> None:
    project = pair.project
    before = train(project, pair.framework, "resumed", PAIR_DIES="1:8")
    assert run_of(project, "resumed").status in ("failed", "killed")
    after = train(project, pair.framework, "resumed")
    run = run_of(project, "resumed")
    assert run.status == "finished" and not run.gaps and len(run.resumed) == 1
    assert set(before) | set(after) == set(pair.told) and len(after) < len(pair.told)
    for rank in (0, 1):
        once, twice = (saved(project, name, rank) for name in ("pair", "resumed"))
        assert all(torch.equal(once[name], twice[name]) for name in once)
    found = json.loads(project.flor("verify", "resumed", "--json").stdout)
    assert {one["verdict"] for one in found} == {"exact"}


@pytest.mark.exactness
@pytest.mark.parametrize("framework", few(FRAMEWORKS, ["hf"]))
def test_three_processes_add_up_gradients_in_the_order_in_which_they_did(
    framework: str, tmp_path: Path
) -> None:
    project = replaying.make(tmp_path / "project")
    (project.root / "out").mkdir()
    told = train(project, framework, "three", 3)
    (found,) = json.loads(project.flor("verify", "three", "--epochs", "3", "--json").stdout)
    assert found["verdict"] == "exact"
    assert set(replayed(project)) < set(told)


@pytest.mark.exactness
def test_run_whose_other_processes_have_no_callback_keeps_its_weights(tmp_path: Path) -> None:
    project = replaying.make(tmp_path / "project")
    (project.root / "out").mkdir()
    train(project, "lightning", "first")
    refused = project.flor("verify", "first", ok=False)
    assert refused.returncode == 1 and "can't be verified" in refused.stderr
    project.flor(
        "replay", "--run", "first", "--yes", "--hook", "pair_hooks.py", "--metrics", "norm"
    )
    assert flor.dataframe("norm", store=project.store.root)["step"].tolist() == [
        3,
        5,
        6,
        9,
        10,
        12,
        15,
    ]
    assert not any(one.can_train for one in ranks.list_checkpoints(run_of(project, "first")))
