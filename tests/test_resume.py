"""A run that was killed, stopped or cut short goes on, as the same run, to the same end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flor_plugins.records import Position, RecordingProcess
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs, save_run
from tests.resuming import SCRIPT, Starter, Whole, differences, make_folder, start, the_run, whole

__all__ = ["start", "whole"]  # fixtures

# ---- killed and started again by the same command

ANYWHERE = [
    "step:KILL:18",
    "validation:KILL:20",
    "checkpoint:KILL:5",
    "step:TERM:18",
    "step:INT:18",
    "end:KILL:1",
]
CASES = {
    "lightning": {
        "dropout_shuffle": [*ANYWHERE, "step:KILL:9+validation:KILL:30"],
        "persistent_workers": ["step:KILL:33"],
        "accumulate": ["step:KILL:9"],
        "accumulate_stream": ["step:KILL:13"],
        "plateau": ["step:KILL:40"],
        "ema": ["validation:KILL:30"],
        "swa": ["step:KILL:50", "end:KILL:1"],
        "validated_by_persistent_workers_unchecked": ["step:KILL:34"],
        "early_stopping_min_steps": ["step:KILL:40", "end:KILL:1"],
        "model_checkpoint": ["validation:KILL:30", "step:INT:40"],
        "manual_two_optimizers": ["step:KILL:40"],
        "max_steps_long": ["step:KILL:40"],
        "torchmetrics": ["step:KILL:40"],
        "rates_monitored": ["step:KILL:40"],
        "own_callback": ["step:KILL:40"],
    },
    "hf": {
        "plain": [*ANYWHERE, "step:KILL:9+validation:KILL:30"],
        "persistent_workers_by_steps": ["step:KILL:27"],
        "accumulate": ["step:KILL:9"],
        "endless_accumulate": ["step:KILL:9"],
        "plateau": ["step:KILL:28"],
        "early_stopping": ["step:KILL:19", "end:KILL:1"],
        "best_model": ["validation:KILL:30", "save:KILL:30", "step:INT:26", "end:KILL:1"],
        "max_steps_long": ["step:KILL:26"],
        "own_callback": ["step:KILL:27"],
        "stream": ["step:KILL:15"],
    },
}
# In the default run: one for each way of being stopped, and for each mechanism of a restoration.
FEW = {
    ("lightning", "dropout_shuffle"): {"step:KILL:18", "checkpoint:KILL:5", "step:TERM:18"},
    ("lightning", "accumulate_stream"): {"step:KILL:13"},
    ("lightning", "persistent_workers"): {"step:KILL:33"},
    ("lightning", "swa"): {"step:KILL:50"},
    ("lightning", "early_stopping_min_steps"): {"end:KILL:1"},
    ("lightning", "model_checkpoint"): {"validation:KILL:30"},
    ("lightning", "manual_two_optimizers"): {"step:KILL:40"},
    ("lightning", "own_callback"): {"step:KILL:40"},
    ("hf", "plain"): {"step:KILL:9+validation:KILL:30", "step:INT:18", "end:KILL:1"},
    ("hf", "persistent_workers_by_steps"): {"step:KILL:27"},
    ("hf", "endless_accumulate"): {"step:KILL:9"},
    ("hf", "plateau"): {"step:KILL:28"},
    ("hf", "early_stopping"): {"step:KILL:19"},
    ("hf", "best_model"): {"save:KILL:30"},
    ("hf", "own_callback"): {"step:KILL:27"},
}


@pytest.mark.exactness
@pytest.mark.parametrize(
    ("framework", "cell", "stops"),
    [
        pytest.param(
            framework,
            cell,
            stops,
            marks=[
                pytest.mark.xdist_group(f"resume {framework} {cell}"),  # one uninterrupted run
                *([] if stops in FEW.get((framework, cell), ()) else [pytest.mark.slow]),
            ],
        )
        for framework in CASES
        for cell, all_ in CASES[framework].items()
        for stops in all_
    ],
)
def test_the_same_command_goes_on_with_a_stopped_run_to_the_same_end(
    framework: str, cell: str, stops: str, start: Starter, whole: Whole, tmp_path: Path
) -> None:
    expected, folder = whole(framework, cell), make_folder(tmp_path / "project")
    for stop in stops.split("+"):
        status, output = start.run(folder, SCRIPT, framework, cell, STOP=stop)
        assert "AFTER TRAINING" not in output
        assert status == -9 or "KILL" not in stop
    status, output = start.run(folder, SCRIPT, framework, cell)
    assert status == 0 and "AFTER TRAINING" in output, output
    run = the_run(folder)
    assert differences(run, expected) == []
    assert len(run.resumed) == len(stops.split("+"))
    own = [
        {str(path.relative_to(one)) for path in one.rglob("out/*")}
        for one in (folder, expected.path.parents[2])
    ]
    assert own[0] == own[1]


def test_a_finished_run_is_followed_by_a_new_one(start: Starter, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "project")
    for _ in range(2):
        assert start.run(folder, SCRIPT, "hf", "max_steps_short")[0] == 0
    runs = list_runs(Store(folder / ".flor"))
    assert [run.status for run in runs] == ["finished", "finished"]
    assert not any(run.resumed for run in runs)


def test_a_run_killed_before_its_first_checkpoint_is_followed_by_a_new_one(
    start: Starter, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "project")
    assert start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="checkpoint:KILL:1")[0] == -9
    assert start.run(folder, SCRIPT, "hf", "max_steps_short")[0] == 0
    killed, finished = list_runs(Store(folder / ".flor"))
    assert (killed.status, finished.status, finished.resumed) == ("killed", "finished", ())


def test_changed_code_begins_a_new_run_and_says_why(start: Starter, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "project")
    start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="end:KILL:1")
    (folder / "note.txt").write_text("no code")
    with (folder / SCRIPT).open("a") as script:
        script.write("# changed\n")
    status, output = start.run(folder, SCRIPT, "hf", "max_steps_short")
    killed, new = list_runs(Store(folder / ".flor"))
    assert (status, killed.status, new.status, new.resumed) == (0, "killed", "finished", ())
    assert (
        f"a new run is recorded: the code of the interrupted run resume_cell ({killed.run_id})"
        in output
    )
    assert "has changed since: resume_cell.py." in output


def test_other_arguments_begin_a_new_run(start: Starter, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "project")
    start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="end:KILL:1")
    assert start.run(folder, SCRIPT, "hf", "frozen", STOP="step:KILL:30")[0] == -9
    assert [run.resumed for run in list_runs(Store(folder / ".flor"))] == [(), ()]


@pytest.mark.parametrize(("framework", "cell"), [("lightning", "dropout_shuffle"), ("hf", "plain")])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_is_gone_on_from(
    framework: str, cell: str, start: Starter, whole: Whole, tmp_path: Path
) -> None:
    expected, folder = whole(framework, cell), make_folder(tmp_path / "project")
    start.run(folder, SCRIPT, framework, cell, STOP="step:KILL:30")
    *_, before, last = list_checkpoints(the_run(folder).path)
    with (last.path / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"torn")
    assert start.run(folder, SCRIPT, framework, cell)[0] == 0
    run = the_run(folder)
    assert run.resumed[0].endswith(f"at {before.position}")
    assert differences(run, expected) == []


def test_of_two_trainings_in_one_script_only_the_second_is_trained_again(
    start: Starter, whole: Whole, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "project")
    argv = (SCRIPT, "hf", "max_steps_short", "plain")
    assert start.run(folder, *argv, STOP="step:KILL:25")[0] == -9
    first = list_runs(Store(folder / ".flor"))[0]
    assert first.status == "finished" and first.position == Position(1, 7)
    assert start.run(folder, *argv)[0] == 0
    runs = list_runs(Store(folder / ".flor"))
    assert [len(run.resumed) for run in runs] == [1, 1]
    assert runs[0].resumed[0].endswith("at epoch=1,step=7")
    assert differences(runs[0], whole("hf", "max_steps_short")) == []
    assert [run.status for run in runs] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("framework", "cell"), [("lightning", "model_checkpoint"), ("hf", "best_model")]
)
def test_a_checkpoint_of_the_trainers_own_that_the_script_asks_for_does_not_replace_ours(
    framework: str, cell: str, start: Starter, whole: Whole, tmp_path: Path
) -> None:
    expected, folder = whole(framework, cell), make_folder(tmp_path / "project")
    start.run(
        folder,
        SCRIPT,
        framework,
        cell,
        STOP="step:KILL:42" if framework == "lightning" else "step:KILL:33",
    )
    newest = list_checkpoints(the_run(folder).path)[-1]
    shutil.rmtree(newest.path)  # now the trainer's own one is later than ours
    before = list_checkpoints(the_run(folder).path)[-1]
    shutil.rmtree(before.path)
    status, output = start.run(folder, SCRIPT, framework, cell, OWN="1")
    assert status == 0, output
    assert differences(the_run(folder), expected) == []


def test_another_environment_than_before_the_interruption_is_an_obstacle(
    start: Starter, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "project")
    start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="end:KILL:1")
    was = the_run(folder)
    packages = {**was.environment["packages"], "torch": "2.1.0"}
    save_run(replace(was, environment={**was.environment, "packages": packages}))
    assert start.run(folder, SCRIPT, "hf", "max_steps_short")[0] == 0
    run = the_run(folder)
    (found,) = set(run.obstacles) - set(was.obstacles)
    now = was.environment["packages"]["torch"]
    assert found.grade == "close"
    assert (
        found.reason
        == f"it was interrupted and went on elsewhere: packages torch 2.1.0 then, {now} now"
    )


ELSEWHERE = RecordingProcess("another-host", 1, "")


def test_a_requeued_job_goes_on_with_its_run_on_another_host(
    start: Starter, tmp_path: Path
) -> None:
    folder, job = make_folder(tmp_path / "project"), {"SLURM_JOB_ID": "4711"}
    start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="end:KILL:1", **job)
    save_run(replace(the_run(folder), status="running", process=ELSEWHERE))
    assert start.run(folder, SCRIPT, "hf", "max_steps_short", **job)[0] == 0
    assert (the_run(folder).status, len(the_run(folder).resumed)) == ("finished", 1)


def test_a_run_that_may_go_on_elsewhere_is_left_alone_with_a_warning(
    start: Starter, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "project")
    start.run(folder, SCRIPT, "hf", "max_steps_short", STOP="end:KILL:1", SLURM_JOB_ID="4711")
    elsewhere = the_run(folder)
    save_run(replace(elsewhere, status="running", process=ELSEWHERE))
    status, output = start.run(folder, SCRIPT, "hf", "max_steps_short", SLURM_JOB_ID="4712")
    runs = list_runs(Store(folder / ".flor"))
    assert (status, [run.status for run in runs]) == (0, ["running", "finished"])
    assert f"({elsewhere.run_id}), is not known to have ended: another-host wrote to it" in output


def test_a_task_of_an_array_does_not_go_on_with_the_run_of_another_one(
    start: Starter, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "project")
    for task in ("1", "2", "1"):
        stop = {} if task == "2" else {"STOP": "end:KILL:1"}
        start.run(folder, SCRIPT, "hf", "max_steps_short", SLURM_ARRAY_TASK_ID=task, **stop)
    runs = list_runs(Store(folder / ".flor"))
    assert [len(run.resumed) for run in runs] == [1, 0]
