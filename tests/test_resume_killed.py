"""Twenty trainings are killed at random moments and go on: each ends as the one that was
left alone.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.resuming import Starter, differences, make_folder, the_run

pytestmark = pytest.mark.xdist_group("killed")

CELLS = {
    "lightning": ["dropout_shuffle", "two_workers", "accumulate_clip", "ema", "model_checkpoint"],
    "hf": ["plain", "workers", "accumulate", "plateau", "best_model"],
}
# of a whole training
UPDATES = {
    "accumulate_clip": 24,
    "accumulate": 16,
    "hf": 40,
    "lightning": 60,
}
MOMENTS = ("step", "validation", "checkpoint")
FILES = 5  # of the first checkpoint, at most


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_runs_killed_at_random_moments_end_in_the_weights_of_the_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, table, equal = random.Random(20), [], 0
    start = Starter()
    for framework, cells in CELLS.items():
        for cell in cells:
            whole = make_folder(tmp_path / framework / cell)
            assert start.run(whole, "resume_cell.py", framework, cell)[0] == 0
            for number in range(2):
                stop = _stop(chance, framework, cell, MOMENTS[len(table) % 3])
                folder = make_folder(tmp_path / framework / f"{cell}-{number}")
                killed = start.run(folder, "resume_cell.py", framework, cell, STOP=stop)[0]
                torn = len(list(folder.rglob(".partial-*")))
                status = start.run(folder, "resume_cell.py", framework, cell)[0]
                run = the_run(folder)
                found = differences(run, the_run(whole))
                equal += killed == -9 and status == 0 and len(run.resumed) == 1 and not found
                resumed = run.resumed[0].split()[-1] if run.resumed else "not resumed"
                table.append((framework, cell, stop, torn, resumed, "; ".join(found) or "equal"))
    with capsys.disabled():
        print(
            "\nframework  cell             killed at                 torn  resumed at       "
            "rows, model, optimizer"
        )
        for row in table:
            print("{:10} {:16} {:25} {:4}  {:16} {}".format(*row))
        print(f"{equal} of {len(table)} ended as the uninterrupted run")
    assert equal == len(table) == 20


def _stop(chance: random.Random, framework: str, cell: str, moment: str) -> str:
    """moment:signal:number:seconds, see projects/resume_cell.py."""
    updates = UPDATES.get(cell, UPDATES[framework])
    step = chance.randrange(updates // 4, updates)
    number = FILES + step // 4 if moment == "checkpoint" else step
    if moment == "validation":  # the last one of a training begins after its last update
        number = min(number, updates - updates // 4)
    return f"{moment}:KILL:{number}:{chance.choice([0, chance.uniform(0.0005, 0.02)]):.4f}"
