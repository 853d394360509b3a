"""Hand-written loops, recorded by a script and replayed in new processes, as a user does it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.records import Run
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.conftest import at, table_of
from tests.replaying import Project, rows_of

HOOKS = """
import torch
import flor_plugins as flor

@flor.metric(at="epoch")
def weight_norm(ctx):
    assert not ctx.model.training
    return torch.stack([p.norm() for p in ctx.model.parameters()]).norm()

@flor.metric(at="step")
def grad_norm(ctx):
    return torch.stack([p.grad.norm() for p in ctx.model.parameters()]).norm()
"""

ENDING = """
import os, signal, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import flor_plugins as flor

how = sys.argv[1]

def main():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    data = torch.randn(40, 4)
    loader = DataLoader(TensorDataset(data, (data.sum(1) > 0).long()), batch_size=8, shuffle=True)
    patience, seen, history = 0, 0, []
    stop = int(os.environ.get("STOP", 0))
    flor.checkpoints(net, optimizer, name=how, every_n_steps=2, overhead=None)
    for epoch in flor.loop("epoch", range(5)):
        for i, (x, y) in enumerate(flor.loop("step", loader)):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += 1
            history.append(loss.item())
            flor.log("loss", loss)
            flor.log("seen", [seen, i, sum(history)])
            if seen == stop:
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "fails" and seen == 14:
                raise ZeroDivisionError("as planned")
        patience += 1
        flor.log("patience", patience)
        if how == "breaks" and patience == 3:
            break
    print("AFTER THE LOOP", how)

main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = replaying.make(tmp_path_factory.mktemp("loops") / "project")
    made.write("hooks.py", HOOKS)
    made.write("ending.py", ENDING)
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "loops")
    return made


def run_of(project: Project, name: str) -> Run:
    (run,) = [run for run in list_runs(project.store) if run.name == name]
    return run


def verified(project: Project, run: Run) -> list[dict]:
    found = json.loads(project.flor("verify", run.run_id, "--json").stdout)
    assert {one["verdict"]: one["detail"] for one in found} == {"exact": ""}
    return found


def test_loop_of_the_poster_is_recorded_and_asked_in_hindsight(project: Project) -> None:
    assert "AFTER THE LOOP" in project.python("loop_poster.py").stdout
    run = run_of(project, "loop_poster")
    assert (run.framework, run.replay_grade, run.gaps, str(run.position)) == (
        "loop",
        "exact",
        (),
        "epoch=3,step=18",
    )
    asked = (
        "--hook",
        "hooks.py",
        "--run",
        "loop_poster",
        "--metrics",
        "weight_norm,grad_norm",
        "--yes",
    )
    done = project.flor("replay", *asked)
    assert {(one["way"], one["verdict"]) for one in project.verdicts()} == {
        ("state", "exact"),
        ("train", "exact"),
    }
    assert done.returncode == 0 and "AFTER THE LOOP" not in project.printed_by_workers()
    frame = flor.dataframe("loss", "weight_norm", "grad_norm", store=project.store.root)
    norms = rows_of(frame, "loop_poster", "grad_norm")
    assert sorted(norms) == sorted(rows_of(frame, "loop_poster", "loss")) and len(norms) == 18
    weights = checkpoints.load_checkpoint(
        run.path, checkpoints.list_checkpoints(run.path)[-1].position, ["model"]
    )
    norm = sum(float(one.norm()) ** 2 for one in weights["model"].values()) ** 0.5
    assert rows_of(frame, "loop_poster", "weight_norm")[3, 18] == pytest.approx(norm, rel=1e-6)
    assert len(verified(project, run)) == 3


def test_script_of_the_tutorial_needs_another_import_only(project: Project) -> None:
    project.python("loop_tutorial.py", "--kwargs", "epochs=2", "hidden=24", "--lr", "0.02")
    run = run_of(project, "loop_tutorial")
    assert {name: run.params[name] for name in ("epochs", "hidden", "lr", "batch_size")} == {
        "epochs": 2, "hidden": 24, "lr": 0.02, "batch_size": 16,
    }  # fmt: skip
    table = table_of(run)
    assert sorted(place[0].step for place, values in table.items() if "loss" in values) == [
        5,
        10,
        15,
        20,
    ]
    assert at(table, 2, 20, level="epoch").keys() == {"val_acc", "accuracy", "correct"}
    assert at(table, 1, 10, level="epoch").keys() == {"val_acc"}
    # The seed was drawn: a replay has the one that was recorded.
    assert sum(one["compared"] for one in verified(project, run)) >= 40


@pytest.mark.parametrize(
    ("how", "status", "last"),
    [
        pytest.param("breaks", "finished", (3, 15), marks=pytest.mark.slow),
        ("fails", "failed", (2, 14)),
    ],
)
def test_loop_that_ends_early_is_verified_to_its_end(
    project: Project, how: str, status: str, last: tuple
) -> None:
    project.python("ending.py", how, ok=False)
    run = run_of(project, how)
    assert (run.status, (run.position.epoch, run.position.step)) == (status, last)
    assert run.error == (None if how == "breaks" else "ZeroDivisionError: as planned")
    found = verified(project, run)
    assert found[-1]["to"] == f"epoch={last[0]},step={last[1]}" and len(found) >= 6


def test_killed_loop_goes_on_in_the_middle_of_an_epoch_with_its_variables(project: Project) -> None:
    project.python("ending.py", "whole")
    killed = project.python("ending.py", "killed", ok=False, STOP="13")
    assert killed.returncode == -9
    run = run_of(project, "killed")
    assert "AFTER THE LOOP killed" in project.flor("resume", run.run_id).stdout
    run, whole = run_of(project, "killed"), run_of(project, "whole")
    assert (run.status, run.gaps) == ("finished", ()) and run.resumed[0].endswith("epoch=2,step=12")
    assert table_of(run) == table_of(whole)
    end = checkpoints.list_checkpoints(run.path)[-1].position
    assert checkpoints.tensor_hashes(run.path, end, "model") == checkpoints.tensor_hashes(
        whole.path, end, "model"
    )
    verified(project, run)


def test_error_and_early_end_that_the_recording_did_not_have_are_failures(project: Project) -> None:
    script = ENDING.replace("        patience += 1", OTHERWISE + "        patience += 1")
    project.write("otherwise.py", script.replace("every_n_steps=2", "every_n_epochs=2"))
    project.python("otherwise.py", "otherwise")
    for text, said in (
        ("raise", "LookupError: now"),
        ("break", "left its loop 'epoch' at epoch 1"),
    ):
        done = project.flor("verify", "otherwise", ok=False, OTHERWISE=text)
        assert done.returncode == 1 and said in done.stderr, done.stderr


OTHERWISE = """
        if epoch == 1 and os.environ.get("OTHERWISE") == "raise":
            raise LookupError("now")
        if epoch == 0 and os.environ.get("OTHERWISE") == "break":
            break
"""


@pytest.mark.slow
def test_resume_auto_goes_on_by_the_same_command(project: Project) -> None:
    script = ENDING.replace("every_n_steps=2,", 'every_n_steps=2, resume="auto",')
    project.write("again.py", script)
    project.python("again.py", "auto", ok=False, STOP="8")
    project.python("again.py", "auto")
    run = run_of(project, "auto")
    assert (run.status, len(run.resumed), str(run.position)) == ("finished", 1, "epoch=5,step=25")
    whole = (
        table_of(run_of(project, "whole"))
        if any(r.name == "whole" for r in list_runs(project.store))
        else None
    )
    assert whole is None or table_of(run) == whole


def test_line_that_was_added_to_the_loop_is_carried_to_the_recorded_version(
    project: Project,
) -> None:
    pytest.importorskip(
        "flor_plugins.replayer.method_patching.patches", reason="edits are not carried yet"
    )
    text = (project.root / "loop_poster.py").read_text()
    if not any(run.name == "loop_poster" for run in list_runs(project.store)):
        project.python("loop_poster.py")
    line = 'flor.log("loss", loss.item())\n'
    added = f'{line}        flor.log("bias", net[0].bias.sum())\n'
    project.write("loop_poster.py", text.replace(line, added))
    try:
        project.flor("replay", "--run", "loop_poster", "--metrics", "bias", "--yes")
    finally:
        project.write("loop_poster.py", text)
    assert {(one["way"], one["verdict"]) for one in project.verdicts()} == {("train", "exact")}
    assert (
        len(rows_of(flor.dataframe("bias", store=project.store.root), "loop_poster", "bias")) == 18
    )


RECIPE = """
version: 1
name: balance
trainer: balance:main
params: {rate: 0.1}
versions: [{name: slow}, {name: fast, rate: 0.3}]
replay: {metrics: [weight_norm], hooks: [hooks.py], where: weight_norm.isna()}
"""
BALANCE = """
import torch
import flor_plugins as flor

def main(rate):
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    flor.checkpoints(net, optimizer)
    epsilon = 1.0
    for update in flor.loop("update", range(4)):
        reward = torch.rand(()) * epsilon
        for _ in range(3):
            optimizer.zero_grad()
            (net(torch.randn(8, 3)).mean() - reward).pow(2).backward()
            optimizer.step()
        epsilon *= 0.8
        flor.log("reward", reward)
"""


def test_recipe_whose_function_trains_by_itself_is_recorded_and_replayed(tmp_path: Path) -> None:
    project = replaying.make(tmp_path / "project")
    for name, text in {"balance.yaml": RECIPE, "balance.py": BALANCE, "hooks.py": HOOKS}.items():
        project.write(name, text)
    project.flor("replay", "balance.yaml", "--yes")
    runs = list_runs(project.store)
    assert [(run.name, run.project, run.framework, run.launch.kind) for run in runs] == [
        (name, "balance", "loop", "recipe") for name in ("slow", "fast")
    ]
    assert [run.params for run in runs] == [{"rate": 0.1}, {"rate": 0.3}]
    frame = flor.dataframe("reward", "weight_norm", store=project.store.root)
    for run in runs:
        assert (
            len(rows_of(frame, run.name, "weight_norm"))
            == len(rows_of(frame, run.name, "reward"))
            == 4
        )
    assert {one["verdict"] for one in project.verdicts()} == {"exact"}
    verified(project, runs[1])


@pytest.mark.parametrize("how", ["ddp", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_are_recorded_and_replayed_each_bit_for_bit(
    project: Project, how: str
) -> None:
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "loop_pair.py",
        how,
        how,
    ]
    told = project.run(sys.executable, *words, OMP_NUM_THREADS="1").stdout
    run = run_of(project, how)
    assert (run.processes, run.status, run.replay_grade) == (2, "finished", "exact")
    assert (ranks.folder(run.path, 1) / "checkpoints").is_dir()
    verified(project, run)
    newest = max(project.store.root.glob("replays/*"))
    again = "".join(path.read_text() for path in newest.glob("*/output*.txt"))

    def losses(text: str) -> set[str]:
        return {line for line in text.splitlines() if line.startswith("LOSS")}

    assert losses(again) == losses(told)
    project.flor("replay", "--hook", "hooks.py", "--run", how, "--metrics", "weight_norm", "--yes")
    assert [(one["way"], one["verdict"]) for one in project.verdicts()] == [("state", "exact")]
