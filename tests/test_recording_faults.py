"""What goes wrong beside a training, or in it: the training stays the user's, the run says
what is missing.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flor_plugins as flor
from flor_plugins.recorder.background_writer import BackgroundWriter
from flor_plugins.recorder.gaps import MOST_GAPS, FlorWarning
from flor_plugins.records import Position
from flor_plugins.state import rng
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.metrics.journal import read_run
from tests.conftest import at, environment, launched, load_script, table_of

FRAMEWORKS = ("lightning", "hf")
SCRIPT = {"lightning": "lit_toy", "hf": "hf_toy"}

Weights = dict[str, torch.Tensor]
EachBatch = Callable[[int], None]


class Toy:
    """The toy training of one framework; `each_batch(n)` is called inside the n-th training
    step.
    """

    def __init__(self, framework: str, project: Path) -> None:
        self.framework, self.project = framework, project
        self.module = load_script(project, SCRIPT[framework])

    def callback(self, **options: Any) -> Any:
        return launched(self.module.FlorCallback(**options), self.project, SCRIPT[self.framework])

    def train(
        self,
        callback: Any = None,
        each_batch: EachBatch = lambda n: None,
        *,
        epochs: int = 1,
        seed: int = 5,
    ) -> Weights:
        rng.seed(seed)
        counter = iter(range(1, 1000))
        train = self._lightning if self.framework == "lightning" else self._hf
        return train(
            [callback] if callback else [], lambda: each_batch(next(counter)), epochs, seed
        )

    def _lightning(
        self, callbacks: list[Any], note: Callable[[], None], epochs: int, seed: int
    ) -> Weights:
        class Net(self.module.Net):  # type: ignore[name-defined]
            def training_step(self, batch: Any, index: int) -> Any:
                note()
                return super().training_step(batch, index)

        net = Net()
        self.module.trainer(callbacks, epochs).fit(net, *self.module.data())
        return net.state_dict()

    def _hf(
        self, callbacks: list[Any], note: Callable[[], None], epochs: int, seed: int
    ) -> Weights:
        trainer = self.module.build(callbacks, epochs=epochs, seed=seed)
        compute = trainer.compute_loss

        def compute_loss(model: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:
                note()
            return compute(model, *args, **kwargs)

        trainer.compute_loss = compute_loss
        trainer.train()
        return trainer.model.state_dict()


@pytest.fixture(scope="module", params=FRAMEWORKS)
def toy(request: pytest.FixtureRequest, shared_project: Path) -> Toy:
    return Toy(request.param, shared_project)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_exception_in_a_step_ends_the_run_as_failed_and_reaches_the_user(
    toy: Toy, tmp_path: Path
) -> None:
    def stumble(batch: int) -> None:
        if batch == 11:
            raise ZeroDivisionError("the user's own mistake")

    with pytest.raises(ZeroDivisionError, match="the user's own mistake"):
        toy.train(toy.callback(store=tmp_path), stumble, epochs=2)
    (run,) = flor.runs(store=tmp_path)
    assert (run.status, run.error) == ("failed", "ZeroDivisionError: the user's own mistake")
    assert run.position == Position(1, 10)
    table = table_of(run)
    assert all("loss" in at(table, step // 8, step) for step in range(1, 11))
    assert [one.position for one in list_checkpoints(run.path)] == [Position(0, 0), Position(1, 8)]


def test_a_value_that_cant_be_stored_is_named_once_and_the_rest_is_kept(
    toy: Toy, tmp_path: Path
) -> None:
    def log(batch: int) -> None:
        flor.log("live", object())
        flor.log("cohen's kappa", batch / 10)
        flor.log('"; drop table runs; --', str(batch))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toy.train(toy.callback(store=tmp_path), log)
    (warning,) = [one for one in caught if issubclass(one.category, FlorWarning)]
    assert "'live'" in str(warning.message)
    (run,) = flor.runs(store=tmp_path)
    (gap,) = run.gaps
    assert "'live'" in gap and "epoch=0,step=1" in gap
    table = table_of(run)
    for step in range(1, 9):
        values = at(table, step // 8, step)
        assert values["cohen's kappa"] == step / 10
        assert values['"; drop table runs; --'] == str(step)
        assert "loss" in values and "live" not in values


def test_a_hook_that_always_fails_does_not_fill_the_run(toy: Toy, tmp_path: Path) -> None:
    @flor.metric(at="step")
    def impossible(ctx: Any) -> float:
        raise RuntimeError("never works")

    callback = toy.callback(store=tmp_path, metrics=[impossible])
    with pytest.warns(FlorWarning, match="never works") as caught:
        weights = toy.train(callback, epochs=2)
    assert len([one for one in caught if issubclass(one.category, FlorWarning)]) == 1
    (run,) = flor.runs(store=tmp_path)
    assert 1 <= len(run.gaps) <= MOST_GAPS + 1
    assert all("never works" in gap for gap in run.gaps)
    assert run.status == "finished" and same(weights, toy.train(epochs=2))


def test_a_store_that_cant_be_made_costs_one_warning_and_nothing_else(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a regular file")
    monkeypatch.setenv("FLOR_DIR", str(tmp_path / "file" / "store"))
    with pytest.warns(FlorWarning, match="not recorded") as caught:
        weights = toy.train(toy.callback())
    assert len([one for one in caught if issubclass(one.category, FlorWarning)]) == 1
    assert same(weights, toy.train())


def test_two_trainings_in_a_process_are_two_runs_numbered_by_call(toy: Toy, tmp_path: Path) -> None:
    callback = toy.callback(store=tmp_path)  # the same one: what it holds of the first must be gone
    for seed in (5, 6):
        toy.train(callback, seed=seed)
    runs = flor.runs(store=tmp_path)
    assert [(run.launch.call, run.status, run.gaps) for run in runs] == [
        (0, "finished", ()),
        (1, "finished", ()),
    ]
    first, second = (load_checkpoint(run.path, Position(1, 8))["rng"] for run in runs)
    assert table_of(runs[0]).keys() == table_of(runs[1]).keys()
    for moment in first.keys() & second.keys() & {"setup", "validation"}:
        assert not equal_generators(first[moment], second[moment]), (
            f"{moment} is that of the first training"
        )


def equal_generators(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["python"] == other["python"] and torch.equal(one["torch"], other["torch"])


def test_a_store_that_fails_later_does_not_meet_what_the_callback_held_of_an_earlier_run(
    toy: Toy, tmp_path: Path
) -> None:
    callback = toy.callback(store=tmp_path / "store")
    toy.train(callback)
    (tmp_path / "file").write_text("a regular file")
    callback.options = toy.callback(store=tmp_path / "file" / "store").options
    with pytest.warns(FlorWarning, match="not recorded"):
        toy.train(callback)
    assert len(flor.runs(store=tmp_path / "store")) == 1


ENDLESS = {
    "lightning": """
import torch, lit_toy as toy
class Net(toy.Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)
if __name__ == "__main__":
    toy.trainer([toy.FlorCallback("endless")], 100_000).fit(Net(), *toy.data())
""",
    "hf": """
import hf_toy as toy
if __name__ == "__main__":
    toy.build([toy.FlorCallback("endless")], epochs=100_000).train()
""",
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_after_kill_9_the_run_is_killed_and_all_that_was_written_is_read(
    framework: str, project: Path
) -> None:
    (project / "endless.py").write_text(ENDLESS[framework])
    command = [sys.executable, "endless.py"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=project, env=environment(), **quiet) as process:  # type: ignore[call-overload]
        try:
            wait_for(project / ".flor", process)
        finally:
            process.send_signal(signal.SIGKILL)
    (run,) = flor.runs(store=project / ".flor")
    assert run.status == "killed"
    (journal,) = (run.path / "metrics").iterdir()
    header, *lines = journal.read_bytes().split(b"\n")[:-1]
    assert json.loads(header)["format"] == 1
    rows = [row for _, row in read_run(run.path)]
    assert len(rows) == len(lines) > 20
    steps = [row.position.step for row in rows if (row.phase, row.level) == ("train", "step")]
    assert steps == list(range(1, len(steps) + 1))
    checkpoints = list_checkpoints(run.path)
    assert len(checkpoints) >= 2
    for one in checkpoints:
        assert one.is_full and load_checkpoint(run.path, one.position)["model"]


def wait_for(store: Path, process: subprocess.Popen[Any]) -> None:
    """Until some journal lines and two checkpoints are there."""
    while process.poll() is None:
        lines = sum(path.read_bytes().count(b"\n") for path in store.glob("runs/*/metrics/*.jsonl"))
        if lines > 25 and len(list(store.glob("runs/*/checkpoints/epoch=*/state.json"))) >= 2:
            return
        time.sleep(0.02)
    raise AssertionError(f"the training ended by itself with {process.returncode}")


FULL_DISK = """
import json, resource, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import flor_plugins as flor
from flor_plugins.recorder.gaps import FlorWarning
from tests.test_recording_faults import Toy, same

def pad(batch):
    flor.log("pad", "x" * 1500)

if __name__ == "__main__":
    toy = Toy(sys.argv[1], Path.cwd())
    undisturbed = toy.train(None, pad, epochs=2)
    found = {}
    for limit in (20_000, 800):
        store = Path(f"store{limit}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                weights = toy.train(toy.module.FlorCallback(store=store), pad, epochs=2)
            finally:
                no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
        ours = [str(one.message) for one in caught if issubclass(one.category, FlorWarning)]
        found[limit] = {"same": same(undisturbed, weights), "warnings": ours}
    Path("found.json").write_text(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of file sizes")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_disk_that_fills_up_costs_one_warning_and_what_is_missing_is_noted(
    framework: str, project: Path
) -> None:
    (project / "full.py").write_text(FULL_DISK)
    # A new interpreter: its output goes to pipes, for which there is no limit.
    command = [sys.executable, "full.py", framework, str(Path(__file__).parent.parent)]
    done = subprocess.run(
        command, cwd=project, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((project / "found.json").read_text())
    for limit in ("20000", "800"):
        assert found[limit]["same"], limit
        assert len(found[limit]["warnings"]) == 1, found[limit]["warnings"]
    (run,) = flor.runs(store=project / "store20000")
    assert run.status == "finished"
    gaps = "\n".join(run.gaps)
    assert "checkpoint" in gaps and "a row could not be written" in gaps
    table = table_of(run)
    # the first rows are there, the last are not
    assert "loss" in at(table, 0, 1) and not at(table, 2, 16)
    assert not list((project / "store20000").rglob(".partial-*"))


def test_a_writer_goes_on_when_its_warnings_are_errors() -> None:
    def failed(error: Exception) -> None:
        raise FlorWarning(str(error))

    def fail() -> None:
        raise OSError("disk full")

    done: list[int] = []
    writer = BackgroundWriter(failed)
    for number in range(3):
        writer.put(fail)
        writer.put(lambda number=number: done.append(number))
    writer.flush()
    writer.close()
    assert done == [0, 1, 2]
