"""A machine loses its power while it trains: on what the disk holds the same command comes
to the same end.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests.conftest import PROJECTS
from tests.resuming import Starter, differences, start
from tests.test_checkpoint_faults import (
    CELLS,
    Sound,
    none_is_read_in_part,
    prepared,
    same_end,
    sound,
    weights_in,
)

pytestmark = pytest.mark.xdist_group("power loss")

__all__ = ["sound", "start"]  # fixtures

SCRIPT = "power_cell.py"
EVENTS = {"lightning": 149, "hf": 177}  # fsyncs and renames of a whole training
FIRST = 12  # by then a run has its first files


def moments(seed: int, framework: str) -> Iterator[str]:
    chance = random.Random(seed)
    while True:
        yield f"{chance.randrange(FIRST, EVENTS[framework] - 10)}:{chance.randrange(1 << 30)}"


def cut_off_and_gone_on(
    start: Starter, folder: Path, framework: str, power: str, sound: Sound
) -> tuple[int, int, str]:
    """How many checkpoints the disk had to hold, how many it held, and what came of the next
    start.
    """
    shutil.copy(PROJECTS / SCRIPT, prepared(folder))
    assert start.run(folder, SCRIPT, framework, CELLS[framework], POWER=power)[0] == -9
    shutil.rmtree(folder / ".flor")
    (folder / "flor_after").rename(folder / ".flor")
    (path,) = [*(folder / ".flor" / "runs").iterdir()] or [folder]
    none_is_read_in_part(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of those that are no longer whole
        there = {str(one.position) for one in list_checkpoints(path)}
    safe = set((folder / "safe.txt").read_text().split())
    assert safe <= there
    status, output = start.run(folder, SCRIPT, framework, CELLS[framework])
    assert status == 0 and weights_in(output) == sound.weights, output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a run whose run.json was lost
        run = list_runs(Store(folder / ".flor"))[-1]
    none_is_read_in_part(run.path)
    assert same_end(run, sound.run)
    if not run.resumed:
        assert not safe
        return len(safe), len(there), "a new run"
    return len(safe), len(there), "; ".join(differences(run, sound.run)) or "equal"


@pytest.mark.parametrize("framework", CELLS)
def test_a_training_whose_machine_loses_its_power_comes_to_the_same_end(
    framework: str, start: Starter, sound: Callable[[str], Sound], tmp_path: Path
) -> None:
    power = f"{EVENTS[framework] // 2}:1"
    safe, _, found = cut_off_and_gone_on(
        start, tmp_path / "project", framework, power, sound(framework)
    )
    assert safe and found == "equal"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_40_trainings_whose_machine_loses_its_power_come_to_the_same_end(
    sound: Callable[[str], Sound], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = []
    start = Starter()
    for framework in CELLS:
        powers = moments(40, framework)
        for number in range(20):
            folder, power = tmp_path / f"{framework}{number}", next(powers)
            table.append((framework, power, *cut_off_and_gone_on(
                start, folder, framework, power, sound(framework))))  # fmt: skip
            shutil.rmtree(folder)
    equal = sum(row[-1] in ("equal", "a new run") for row in table)
    with capsys.disabled():
        print("\nframework  cut at           safe  whole  in the end")
        for row in table:
            print("{:10} {:17}{:4}{:7}  {}".format(*row))
        print(f"{equal} of {len(table)} ended as the one that was left alone")
    assert equal == len(table) == 40
