"""Whatever breaks beside a training: it goes on, or goes on later, and no checkpoint is read
that is not whole.
"""

from __future__ import annotations

import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint
from flor_plugins.recorder.checkpointing.writer_lock import wait_for_writer
from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint, tensor_hashes
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests.conftest import PROJECTS
from tests.resuming import Starter, differences, make_folder, start, the_run

pytestmark = pytest.mark.xdist_group("killed")

__all__ = ["start"]  # a fixture

SCRIPT = "fault_cell.py"
CELLS = {"lightning": "dropout_shuffle", "hf": "plain"}
STATES = {"lightning": 16, "hf": 11}  # of a whole training, about
AT = 5  # states are handed over when it breaks
NO_MOUNTS = 77

frameworks = pytest.mark.parametrize("framework", CELLS)


@dataclass(frozen=True)
class Sound:
    """The training that nothing happened to."""

    run: Run
    weights: str


@pytest.fixture(scope="module")
def sound(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sound]:
    known: dict[str, Sound] = {}

    def of(framework: str) -> Sound:
        if framework not in known:
            folder = prepared(tmp_path_factory.mktemp("sound") / "project")
            status, output = start.run(folder, SCRIPT, framework, CELLS[framework])
            assert status == 0, output
            known[framework] = Sound(the_run(folder), weights_in(output))
        return known[framework]

    return of


def prepared(folder: Path) -> Path:
    make_folder(folder)
    shutil.copy(PROJECTS / SCRIPT, folder)
    return folder


def weights_in(output: str) -> str:
    (found,) = re.findall(r"^WEIGHTS (\w+)$", output, re.MULTILINE)
    return found


def run_with(start: Starter, folder: Path, framework: str, fault: str) -> tuple[int, str]:
    status, output = start.run(folder, SCRIPT, framework, CELLS[framework], FAULT=fault)
    if status == NO_MOUNTS:
        pytest.skip("no file system can be mounted here")
    after = folder / "flor_after"  # of a file system that went with the process
    if after.exists():
        shutil.rmtree(folder / ".flor", ignore_errors=True)
        after.rename(folder / ".flor")
    return status, output


def whole_ones(run_path: Path) -> list[Position]:
    """Every checkpoint that is listed, read to the last byte."""
    wait_for_writer(run_path)
    found = [one.position for one in list_checkpoints(run_path)]
    for position in found:
        assert load_checkpoint(run_path, position)["model"]
    return found


def none_is_read_in_part(run_path: Path) -> None:
    """Where others delete folders, a checkpoint may lose what it refers to: then it is
    damaged, and nothing else.
    """
    wait_for_writer(run_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list_checkpoints(run_path)
    for one in found:
        with suppress(DamagedCheckpoint):
            assert load_checkpoint(run_path, one.position)["model"]


def same_end(run: Run, sound: Run) -> bool:
    last = sound.position
    assert last is not None
    sections = ("model", "optimizer")
    return (
        run.status == "finished"
        and run.position == last
        and all(
            tensor_hashes(run.path, last, one) == tensor_hashes(sound.path, last, one)
            for one in sections
        )
    )


FAULTS = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "no-run": "",
    "no-checkpoints": "",
}


@frameworks
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_breaks_leaves_the_training_as_it_would_have_been(
    fault: str, framework: str, start: Starter, sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "project")
    status, output = run_with(start, folder, framework, f"{fault}:{AT}")
    assert status == 0 and "AFTER TRAINING" in output, output
    assert weights_in(output) == sound(framework).weights
    assert FAULTS[fault] in output  # said once, on the console
    for path in (folder / ".flor" / "runs").iterdir():
        none_is_read_in_part(path)
    if not fault.startswith("no-"):
        assert len(whole_ones(the_run(folder).path)) >= 3


@frameworks
@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_that_was_killed_after_its_store_broke_comes_to_the_same_end(
    fault: str, framework: str, start: Starter, sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "project")
    status, _ = run_with(start, folder, framework, f"{fault}:{AT}:3")
    assert status == -9
    for path in (folder / ".flor" / "runs").iterdir():
        none_is_read_in_part(path)
    status, output = start.run(folder, SCRIPT, framework, CELLS[framework])
    assert status == 0, output
    run = list_runs(Store(folder / ".flor"))[-1]
    assert weights_in(output) == sound(framework).weights and same_end(run, sound(framework).run)
    if not fault.startswith("no-"):  # else there may be nothing to go on from
        assert len(run.resumed) == 1
    whole_ones(run.path)


@frameworks
def test_a_writer_that_is_killed_again_and_again_costs_no_checkpoint(
    framework: str, start: Starter, sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "project")
    status, output = run_with(start, folder, framework, "writer:2")
    assert status == 0 and "AFTER TRAINING" in output, output
    run = the_run(folder)
    assert differences(run, sound(framework).run) == []
    assert whole_ones(run.path) == whole_ones(sound(framework).run.path)


def killed_and_gone_on(
    start: Starter, folder: Path, framework: str, stop: str, sound: Run
) -> tuple[int, int, str]:
    """How many checkpoints there were after SIGKILL, how many torn folders, and what differs
    in the end.
    """
    cell = CELLS[framework]
    variable = "FAULT" if stop.startswith("both:") else "STOP"
    killed = start.run(folder, SCRIPT, framework, cell, **{variable: stop})[0]
    assert killed == -9
    torn = len(list(folder.rglob(".partial-*")))
    there = len(whole_ones(the_run(folder).path))
    status, output = start.run(folder, SCRIPT, framework, cell)
    assert status == 0, output
    run = list_runs(Store(folder / ".flor"))[-1]
    whole_ones(run.path)
    found = differences(run, sound)
    return there, torn, "; ".join(found) or "equal"


def moments(seed: int, framework: str) -> Iterator[str]:
    """By turns of the training, and of both it and its writer."""
    chance = random.Random(seed)
    while True:
        for killed in ("checkpoint:KILL", "both"):
            state, delay_s = chance.randrange(3, STATES[framework]), chance.uniform(0.0001, 0.03)
            yield f"{killed}:{state}:{delay_s:.4f}"


@frameworks
def test_two_trainings_that_are_killed_while_checkpoints_are_written_come_to_the_same_end(
    framework: str, start: Starter, sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    stops = moments(1, framework)
    for number in range(2):
        folder = prepared(tmp_path / str(number))
        stop = next(stops)
        assert (
            killed_and_gone_on(start, folder, framework, stop, sound(framework).run)[2] == "equal"
        ), stop


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_50_trainings_that_are_killed_while_checkpoints_are_written_come_to_the_same_end(
    sound: Callable[[str], Sound], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = []
    start = Starter()
    for framework in CELLS:
        stops = moments(50, framework)
        for number in range(25):
            folder, stop = prepared(tmp_path / f"{framework}{number}"), next(stops)
            table.append((framework, stop, *killed_and_gone_on(
                start, folder, framework, stop, sound(framework).run)))  # fmt: skip
            shutil.rmtree(folder)
    equal = sum(row[-1] == "equal" for row in table)
    with capsys.disabled():
        print("\nframework  killed at                  whole  torn  in the end")
        for row in table:
            print("{:10} {:27}{:5}{:6}  {}".format(*row))
        print(f"{equal} of {len(table)} ended as the one that was left alone")
    assert equal == len(table) == 50


def test_a_checkpoint_without_its_files_is_no_state(start: Starter, tmp_path: Path) -> None:
    """What the others rest on: the reader notices."""
    folder = prepared(tmp_path / "project")
    assert start.run(folder, SCRIPT, "hf", CELLS["hf"], STOP="step:KILL:20")[0] == -9
    run = the_run(folder)
    first, *_, last = whole_ones(run.path)
    (last_folder,) = (one.path for one in list_checkpoints(run.path) if one.position == last)
    for file in last_folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(run.path, last)
    (last_folder / "state.json").unlink()
    with pytest.warns(UserWarning, match="passed over"):
        assert last not in [one.position for one in list_checkpoints(run.path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shutil.rmtree(last_folder)
        with pytest.raises(NoCheckpoint):
            load_checkpoint(run.path, last)
    assert load_checkpoint(run.path, first)["model"]
