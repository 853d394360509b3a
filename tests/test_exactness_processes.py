"""The exactness matrix in processes of their own: recorded by a script, verified by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.store.run_index import index_run
from tests import cells_hf, cells_lightning, replaying
from tests.replaying import Project

SCRIPTS = {
    "lightning": """
import sys, warnings
from pathlib import Path
import torch
from flor_plugins.lightning import FlorCallback
from tests import cells_lightning

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
name = sys.argv[1]
callback = FlorCallback("lightning." + name, every_n_steps=cells_lightning.CELLS[name].every)
cells_lightning.train(name, Path("out") / name, callback, seed=5)[2]()
""",
    "hf": """
import sys, warnings
from pathlib import Path
import torch
from flor_plugins.hf import FlorCallback
from tests import cells_hf

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
name = sys.argv[1]
every = 3 if "accumulate" in name or "short" in name else 7
callback = FlorCallback("hf." + name, every_n_steps=every)
cells_hf.train(name, Path("out") / name, callback)[1]()
""",
}
# The others take half an hour: they are marked slow.
FEW = (
    "lightning.persistent_workers",
    "lightning.accumulate_stream",
    "hf.persistent_workers",
    "hf.own_callback",
)


def _cell(framework: str, name: str) -> object:
    which = f"{framework}.{name}"
    return pytest.param(framework, name, id=which, marks=() if which in FEW else pytest.mark.slow)


CELLS = [
    _cell(framework, name)
    for framework, cells in (("lightning", cells_lightning.CELLS), ("hf", cells_hf.CELLS))
    for name in cells
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = replaying.make(tmp_path_factory.mktemp("cells") / "project")
    for file in ("variants.py", "cells_lightning.py", "cells_hf.py"):
        made.write(f"tests/{file}", (Path(__file__).parent / file).read_text())
    for framework, script in SCRIPTS.items():
        made.write(f"train_{framework}.py", script)
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "cells")
    return made


@pytest.mark.exactness
@pytest.mark.parametrize(("framework", "name"), CELLS)
def test_a_run_is_verified_exact_in_a_new_process(
    framework: str, name: str, project: Project
) -> None:
    project.python(f"train_{framework}.py", name)
    (run,) = [
        run for run in flor.runs(store=project.store.root) if run.name == f"{framework}.{name}"
    ]
    found = json.loads(project.flor("verify", run.run_id, "--json").stdout)
    assert {one["verdict"]: one["detail"] for one in found} == {"exact": ""}
    places = index_run(run)
    assert len(found) == len(places.starts) - 1  # every stretch between two checkpoints
    inside = [one for one in places.starts if places.ends.get(one.epoch) != one.step]
    assert len(inside) >= 2
    assert sum(one["compared"] for one in found) >= 2 * places.last.step
