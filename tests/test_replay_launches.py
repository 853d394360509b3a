"""However a training was started, it starts again as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.records import Run
from tests import replaying
from tests.replaying import HOOKS, Project, rows_of

INJECTED = """
import torch, hf_toy
torch.set_num_threads(1)
hf_toy.build([], lr=2e-3, epochs=2).train()
print("AFTER TRAIN")
"""


def only_run(project: Project) -> Run:
    [run] = flor.runs(store=project.store.root)
    return run


def check_step_metric(project: Project, hook: Path, store: Path | None = None, **names: str) -> Run:
    """Re-run the last epoch and look at what it was compared with."""
    run = only_run(project)
    frame = flor.replay(
        "update_norm", hooks=[hook], epochs="last", store=store or project.store.root
    )
    assert len(rows_of(frame, run.name, "update_norm")) == 8
    return run


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A script in src/, detached HEAD, a dirty tree; edited and committed over afterwards."""
    project = replaying.make(tmp_path_factory.mktemp("script") / "project")
    (project.root / "src").mkdir()
    project.git("mv", "lit_toy.py", "src/train.py")
    project.git("commit", "-q", "-m", "moved")
    project.git("checkout", "-q", "--detach")
    source = (project.root / "src/train.py").read_text()
    project.write("src/train.py", source.replace("Dropout(0.3)", "Dropout(0.4)"))
    project.python("src/train.py", "--lr", "0.02", "--epochs", "2", "--name", "detached")
    project.write("src/train.py", "raise SystemExit('this is the new code')\n")
    project.git("commit", "-q", "-am", "broken")
    check_step_metric(project, project.root / HOOKS["lightning"])
    return project


def test_a_script_replays_with_its_arguments(script: Project) -> None:
    run = only_run(script)
    assert run.launch.kind == "script"
    assert run.launch.argv[:2] == ("--lr", "0.02")
    assert run.params["lr"] == 0.02
    assert [row["verdict"] for row in script.verdicts()] == ["exact"]


def test_the_code_of_the_dirty_tree_was_replayed_not_todays(script: Project) -> None:
    run = only_run(script)
    assert run.code is not None
    assert "Dropout(0.4)" in script.git("show", f"{run.code.vid}:src/train.py")
    assert script.git("rev-parse", "--abbrev-ref", "HEAD").strip() == "HEAD"


def test_nothing_after_fit_is_run(script: Project) -> None:
    assert "AFTER FIT" not in script.printed_by_workers()


def test_no_work_tree_is_left(script: Project) -> None:
    assert len(script.git("worktree", "list").splitlines()) == 1


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Started with `python -m`; what is left of it is a bare clone and a copy of the store."""
    folder = tmp_path_factory.mktemp("mirrored")
    project = replaying.make(folder / "project")
    project.write("pkg/__init__.py", "")
    project.write("pkg/train.py", "import hf_toy\nif __name__ == '__main__':\n    hf_toy.main()\n")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "package")
    project.python("-m", "pkg.train", "--epochs", "2", "--lr", "0.003", "--name", "module")
    project.git("clone", "-q", "--mirror", str(project.root), str(folder / "bare.git"))
    shutil.copytree(project.store.root, folder / "store")
    shutil.copy(project.root / HOOKS["hf"], folder)
    shutil.rmtree(project.root)
    return Project(folder)


def test_a_module_replays_from_a_bare_clone(
    mirrored: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mirrored.root / "bare.git")
    monkeypatch.setenv("FLOR_DIR", str(mirrored.root / "store"))
    [run] = flor.runs()
    assert (run.launch.kind, run.launch.target) == ("module", "pkg.train")
    frame = flor.replay(
        "update_norm", hooks=[mirrored.root / HOOKS["hf"]], epochs="last", run="module"
    )
    assert len(rows_of(frame, "module", "update_norm")) == 8
    shown = flor.dataframe("update_norm", source=True)
    assert set(shown["update_norm.verdict"].dropna()) == {"exact"}


def test_a_script_without_callback_and_without_git_replays(tmp_path: Path) -> None:
    project = replaying.make(tmp_path / "project", git=False)
    project.write("plain.py", INJECTED)
    printed = project.flor("record", "--name", "injected", "--", "python", "plain.py").stdout
    assert "AFTER TRAIN" in printed
    project.write("plain.py", "raise SystemExit('this is the new code')\n")
    run = check_step_metric(project, project.root / HOOKS["hf"])
    assert run.launch.injected and run.name == "injected"
    assert [row["verdict"] for row in project.verdicts()] == ["exact"]
    assert "AFTER TRAIN" not in project.printed_by_workers()


def test_a_run_from_a_prompt_is_skipped_with_its_reason(tmp_path: Path) -> None:
    project = replaying.make(tmp_path / "project")
    project.python("-c", replaying.TRAIN["hf"] + "train(FlorCallback('prompt'), epochs=1)")
    done = project.flor("replay", "--metrics", "token_accuracy", "--hook", HOOKS["hf"], ok=False)
    assert "prompt or a notebook" in done.stderr


# ---- one process, two trainings; the second goes on with the model of the first

TWICE = {
    "lightning": """
import sys, torch, lightning.pytorch as pl, lit_toy
from lit_toy import FlorCallback
torch.set_num_threads(1)
pl.seed_everything(7, verbose=False)
model = lit_toy.Net(float(sys.argv[1]))
lit_toy.trainer([FlorCallback("first")], 2).fit(model, *lit_toy.data())
lit_toy.trainer([FlorCallback("second")], 3).fit(model, *lit_toy.data())
""",
    "hf": """
import sys, torch, hf_toy
from hf_toy import FlorCallback
torch.set_num_threads(1)
first = hf_toy.build([FlorCallback("first")], float(sys.argv[1]), 2)
first.train()
second = hf_toy.build([FlorCallback("second")], float(sys.argv[1]), 3)
second.model.load_state_dict(first.model.state_dict())
second.train()
""",
}


@pytest.mark.parametrize("framework", list(TWICE))
def test_second_training_of_a_process_replays_from_its_own_call(
    framework: str, tmp_path: Path
) -> None:
    project = replaying.make(tmp_path / "project")
    project.write("twice.py", TWICE[framework])
    project.python("twice.py", "0.02")
    assert [(run.name, run.launch.call) for run in flor.runs(store=project.store.root)] == [
        ("first", 0),
        ("second", 1),
    ]
    hook = project.root / HOOKS[framework]
    frame = flor.replay("update_norm", hooks=[hook], run="second", store=project.store.root)
    assert len(rows_of(frame, "second", "update_norm")) == 24
    assert [(row["name"], row["verdict"]) for row in project.verdicts()] == [("second", "exact")]
