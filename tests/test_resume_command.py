"""`flor-hf resume RUN`, FlorCallback(resume=RUN), and what makes a run that can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from transformers import TrainerCallback

from flor_plugins.hf import FlorCallback as HfCallback
from flor_plugins.lightning import FlorCallback as LightningCallback
from flor_plugins.recorder.gaps import FlorWarning
from flor_plugins.records import Position
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests import cells_hf, cells_lightning, replaying
from tests.conftest import PROJECTS
from tests.replaying import Project
from tests.resuming import SCRIPT, Starter, Whole, differences, start, the_run, whole
from tests.trainings import ROOT

__all__ = ["start", "whole"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the frameworks

# ---- FlorCallback(resume=RUN), and what ends a training


def _hf(folder: Path, stop: Callable[[int], None], **options: Any) -> Callable[[], Any]:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            stop(state.global_step)

    trainer, train = cells_hf.train(
        "plain", folder / "out", HfCallback(store=folder / "store", **options)
    )
    trainer.add_callback(Stop())
    return train


def _lightning(folder: Path, stop: Callable[[int], None], **options: Any) -> Callable[[], Any]:
    class Stop(pl.Callback):
        def on_before_zero_grad(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
        ) -> None:
            stop(trainer.global_step)

    callback = LightningCallback(store=folder / "store", **options)
    _, trainer, fit = cells_lightning.train("dropout_shuffle", folder, callback, seed=5)
    trainer.callbacks.append(Stop())  # type: ignore[attr-defined]
    return fit


@pytest.mark.parametrize("make", [_hf, _lightning])
def test_a_run_that_an_exception_ended_goes_on_where_it_is_named(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def stumble(step: int) -> None:
        if step == 18:
            raise ZeroDivisionError("the user's own mistake")

    make(tmp_path / "whole", lambda step: None, every_n_steps=4)()
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, stumble, every_n_steps=4)()
    (failed,) = list_runs(Store(tmp_path / "store"))
    assert failed.status == "failed"
    make(tmp_path, lambda step: None, every_n_steps=4, resume=failed.run_id)()
    (run,), (whole,) = (
        list_runs(Store(tmp_path / "store")),
        list_runs(Store(tmp_path / "whole" / "store")),
    )
    assert differences(run, whole) == []
    assert len(run.resumed) == 1 and run.resumed[0].endswith("step=16")
    with pytest.warns(
        FlorWarning, match="a new run is recorded: run .* is finished; there is nothing to resume"
    ):
        make(tmp_path, lambda step: None, every_n_steps=4, resume=failed.run_id)()
    assert len(list_runs(Store(tmp_path / "store"))) == 2


def test_an_hf_training_that_ends_between_its_epochs_is_failed(tmp_path: Path) -> None:
    class Stumble(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step:
                raise ZeroDivisionError("the user's own mistake")

    trainer, train = cells_hf.train("plain", tmp_path / "out", HfCallback(store=tmp_path / "store"))
    trainer.add_callback(Stumble())
    with pytest.raises(ZeroDivisionError):
        train()
    (run,) = list_runs(Store(tmp_path / "store"))
    assert (run.status, run.error) == ("failed", "ZeroDivisionError: the user's own mistake")


def test_an_hf_training_that_stumbles_after_its_last_epoch_is_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, train = cells_hf.train(
        "max_steps_short", tmp_path / "out", HfCallback(store=tmp_path / "store")
    )

    def find_checkpoints(trial: Any) -> str:
        raise ZeroDivisionError("the user's own mistake")

    monkeypatch.setattr(trainer, "_get_output_dir", find_checkpoints)
    with pytest.raises(ZeroDivisionError):
        train()
    (run,) = list_runs(Store(tmp_path / "store"))
    assert (run.status, run.position) == ("failed", Position(1, 7))


# ---- flor-hf resume RUN


def a_project(folder: Path) -> Project:
    project = replaying.make(folder, git=False)
    shutil.copy(PROJECTS / SCRIPT, folder)
    project.write(".gitignore", "out/\n__pycache__/\noutput.txt\n")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-q", "-m", "first")):
        project.git(*words)
    return Project(folder, {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"})


@pytest.mark.parametrize("framework", ["lightning", "hf"])
def test_resume_goes_on_with_a_killed_script(
    framework: str, start: Starter, whole: Whole, tmp_path: Path
) -> None:
    cell = {"lightning": "dropout_shuffle", "hf": "plain"}[framework]
    project = a_project(tmp_path / "project")
    start.run(project.root, SCRIPT, framework, cell, STOP="step:KILL:33")
    done = project.flor("resume", "resume_cell")
    run = the_run(project.root)
    position = {"lightning": "epoch=4,step=60", "hf": "epoch=4,step=40"}[framework]
    assert f"resuming resume_cell ({run.run_id}) at epoch=" in done.stdout
    assert (
        "AFTER TRAINING" in done.stdout and f"resume_cell is finished at {position}" in done.stdout
    )
    assert differences(run, whole(framework, cell)) == []
    refused = project.flor("resume", "resume_cell", ok=False)
    assert refused.returncode == 1 and "is finished; there is nothing to resume" in refused.stderr


@pytest.mark.parametrize("launch", ["script", "module"])
def test_resume_runs_the_recorded_code_where_it_has_changed_since(
    launch: str, start: Starter, whole: Whole, tmp_path: Path
) -> None:
    project = a_project(tmp_path / "project")
    words = [SCRIPT] if launch == "script" else ["-m", "resume_cell"]
    start.run(project.root, *words, "hf", "plain", STOP="step:KILL:33")
    assert the_run(project.root).launch.kind == launch
    project.write(SCRIPT, "raise SystemExit('this is the new code')\n")
    done = project.flor("resume", the_run(project.root).run_id)
    assert f"changed since: {SCRIPT}; a copy of" in done.stdout
    assert differences(the_run(project.root), whole("hf", "plain")) == []
    assert "new code" in (project.root / SCRIPT).read_text()


RECIPE = """
version: 1
name: cells
trainer: resume_cell:for_recipe
params: {cell: plain}
versions:
  - {name: one}
"""


def test_resume_goes_on_with_a_version_of_a_recipe(start: Starter, tmp_path: Path) -> None:
    project, whole = a_project(tmp_path / "project"), a_project(tmp_path / "whole")
    for one, stop in ((project, "step:KILL:33"), (whole, "::0")):
        recipe = one.write("cell.yaml", RECIPE)
        start.run(
            one.root,
            "-m",
            "flor_plugins.recorder.launching.run_script",
            "recipe",
            str(recipe),
            "one",
            STOP=stop,
        )
    project.write(SCRIPT, "raise SystemExit('this is the new code')\n")
    done = project.flor("resume", "one")
    run = the_run(project.root)
    assert f"one is finished at {run.position}" in done.stdout and len(run.resumed) == 1
    assert differences(run, the_run(whole.root)) == []


def test_resume_names_what_stands_in_its_way(start: Starter, tmp_path: Path) -> None:
    project = a_project(tmp_path / "project")
    start.run(project.root, SCRIPT, "hf", "max_steps_short", STOP="checkpoint:KILL:1")
    refused = project.flor("resume", "resume_cell", ok=False)
    assert refused.returncode == 1 and "there is no full checkpoint in" in refused.stderr
    unknown = project.flor("resume", "nothing", ok=False)
    assert unknown.returncode == 1 and "no run answers to 'nothing'" in unknown.stderr
