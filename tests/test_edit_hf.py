"""The HF Trainer: what an edit or a replaced method logs in hindsight is what it logs in a
training, in each phase.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import flor_plugins as flor
from flor_plugins.errors import Diverged
from flor_plugins.records import Position
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.editing import changed
from tests.replaying import Project

BARE = '''"""Trains: python train.py NAME."""
import sys

import hf_toy
import torch
from hf_toy import FlorCallback


def main(name):
    torch.set_num_threads(1)
    hf_toy.build([FlorCallback(name)], epochs=2).train()


if __name__ == "__main__":
    main(sys.argv[1])
'''
OWN = """
class Own(hf_toy.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss
        return (loss, outputs) if return_outputs else loss


hf_toy.Trainer = Own

"""
SECOND = changed(BARE, ("\n\ndef main", OWN + "\ndef main"))
FIRST = changed(SECOND, ("outputs = ", "answer = "), ("outputs.loss", "answer.loss"),
                ("(loss, outputs)", "(loss, answer)"))  # fmt: skip
LOGGED = """        flor.log("sharpness", peak(outputs.logits.detach()))
        self.log({"size": float(outputs.logits.detach().abs().mean())})
"""
PEAK = """def peak(logits):
    return logits.softmax(-1).amax(-1).mean()


"""
EDITED = changed(
    SECOND,
    ("import torch\n", "import torch\nimport flor_plugins as flor\n"),
    ("class Own", PEAK + "class Own"),
    ("        return (loss", LOGGED + "        return (loss"),
)
PATCH = '''import flor_plugins as flor


def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """Of hf_toy's Trainer; super() is that of the class that it is put on."""
    assert super().compute_loss is not None
    outputs = model(**inputs)
    loss = outputs.loss
    flor.log("summit", outputs.logits.detach().amax())
    return (loss, outputs) if return_outputs else loss


def halved(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    flor.log("summit", outputs.logits.detach().amax())
    return (outputs.loss / 2, outputs) if return_outputs else outputs.loss / 2
'''
NAMES = ("first", "second")
METRICS = ["sharpness", "size"]
Values = dict[tuple[Any, ...], Any]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three versions are recorded: one without the class, one with other names, and the one
    that is edited then.
    """
    made = replaying.make(tmp_path_factory.mktemp("edit") / "project")
    for name, text in {"bare": BARE, "first": FIRST, "second": SECOND}.items():
        made.write("train.py", text)
        made.python("train.py", name)
    made.write("patches/loss.py", PATCH)
    made.write("train.py", EDITED)
    return made


@pytest.fixture(scope="module")
def printed(project: Project) -> str:
    done = project.flor("replay", "--metrics", ",".join(METRICS), "--yes", "--workers", "2")
    return done.stderr


def values(store: Store, name: str, metrics: list[str]) -> Values:
    """{(metric, epoch, step, phase): value} of one run."""
    (run,) = [one for one in list_runs(store) if one.name == name]
    return {
        (metric, row.position.epoch, row.position.step, row.phase): row.values[metric]
        for _, row in read_run(run.path) for metric in metrics if metric in row.values
    }  # fmt: skip


def test_what_an_edit_logs_is_what_a_training_logs(
    project: Project, printed: str, tmp_path: Path
) -> None:
    really = replaying.make(tmp_path / "really")
    patched = {one["name"]: one for one in _tasks(project)}
    for name in NAMES:
        really.write("train.py", patched[name]["edit"]["sources"]["train.py"])
        really.python("train.py", name)
        found = values(project.store, name, METRICS)
        assert found == values(really.store, name, METRICS)
        steps = {place[2] for place in found if place[0] == "sharpness" and place[3] == "train"}
        assert steps == set(range(1, 17))
        assert {place[:3] for place in found if place[3] == "validation"} >= {
            ("sharpness", 1, 8),
            ("sharpness", 2, 16),
        }
        assert {place[2] for place in found if place[0] == "size" and place[3] == "train"} >= steps


def test_a_version_without_a_place_for_it_is_skipped_and_the_others_are_filled(
    project: Project, printed: str
) -> None:
    assert {row["name"]: row["verdict"] for row in project.verdicts()} == dict.fromkeys(
        NAMES, "exact"
    )
    assert (
        "can't be carried to run bare: train.py:" in printed
        and "no place in this version" in printed
    )


def test_a_replay_says_where_it_has_looked(project: Project, printed: str) -> None:
    (run,) = [one for one in list_runs(project.store) if one.name == "second"]
    looked = {
        row.position: row.values[ASKED] for _, row in read_run(run.path) if ASKED in row.values
    }
    assert looked[Position(0, 1)] == METRICS


def test_a_method_that_is_replaced_logs_in_each_version(project: Project, printed: str) -> None:
    before = len(list(project.store.replays.iterdir()))
    target = "train:Own.compute_loss"
    patch = {target: project.root / "patches/loss.py:compute_loss"}
    flor.replay(["summit"], patch=patch, workers=2, store=project.store.root)
    assert {(row["name"], row["verdict"]) for row in project.verdicts()} == {
        (name, "exact") for name in NAMES
    }
    for name in NAMES:
        steps = [
            place[2] for place in values(project.store, name, ["summit"]) if place[3] == "train"
        ]
        assert sorted(steps) == list(range(1, 17))
    flor.replay(["summit"], patch=patch, store=project.store.root)  # nothing is missing
    assert len(list(project.store.replays.iterdir())) == before + 1
    with pytest.raises(Diverged, match="run second diverged"):
        other = {target: project.root / "patches/loss.py:halved"}
        flor.replay(["summit"], patch=other, run="second", store=project.store.root)


def _tasks(project: Project) -> list[dict[str, Any]]:
    """Those of the first replay."""
    first = min(project.store.root.glob("replays/*/plan.json"))
    return json.loads(first.read_text())["tasks"]
