"""`flor-hf import`: trainings that were not recorded become runs, of which weights can be asked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from codec_cases import same
from safetensors.torch import load_file

import flor_plugins as flor
from flor_plugins.errors import FlorError, RecipeError, ReplayError, StoreError
from flor_plugins.recorder.importers import import_run, launches
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.importing import ENDS, by_hand, train
from tests.replaying import Project, rows_of


@pytest.fixture(scope="module", params=["lightning", "hf"])
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return train(tmp_path_factory, "lightning")


@pytest.fixture(scope="module")
def trained_hf(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return train(tmp_path_factory, "hf")


@pytest.fixture(scope="module")
def trained(framework: str, request: pytest.FixtureRequest) -> Project:
    return request.getfixturevalue("lit" if framework == "lightning" else "trained_hf")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_state_metric_of_an_imported_run_is_that_of_the_saved_weights(
    trained: Project, framework: str
) -> None:
    before = _seen(trained.root / "out")
    printed = trained.flor("import", "out/ends", "--name", "old", "--", "python", "plain.py").stdout
    assert "imported old" in printed
    metric = replaying.METRICS[framework][0]
    trained.flor(
        "replay", "--hook", replaying.HOOKS[framework], "--run", "old", "--metrics", metric, "--yes"
    )
    frame = flor.dataframe(metric, store=trained.store.root)
    assert rows_of(frame, "old", metric) == by_hand(trained, framework)
    assert [one["verdict"] for one in trained.verdicts()] == ["exact"]
    assert _seen(trained.root / "out") == before


def _seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file."""
    files = [one for one in folder.rglob("*") if one.is_file()]
    return {str(one): (one.stat().st_size, one.stat().st_mtime_ns) for one in files}


def test_an_imported_run_has_the_weights_at_their_positions(
    trained: Project, framework: str, store: Store
) -> None:
    run = import_run(trained.root / "out/ends", name="old", store=store).run
    found = list_checkpoints(run.path)
    assert [one.position for one in found] == ENDS
    assert all(not one.is_full and "everything but the weights" in one.lost[-1] for one in found)
    assert run.position == ENDS[-1]
    for one in found:
        if framework == "lightning":
            (file,) = (trained.root / "out/ends").glob(f"*step={one.position.step}.ckpt")
            saved = torch.load(file, weights_only=True)["state_dict"]
        else:
            saved = load_file(
                trained.root / f"out/ends/checkpoint-{one.position.step}/model.safetensors"
            )
        loaded = load_checkpoint(run.path, one.position)
        assert loaded.keys() == {"model"}
        assert same(dict(loaded["model"]), dict(saved))


def test_the_grade_of_an_imported_run_is_weights_and_without_a_command_none(
    trained: Project, store: Store
) -> None:
    run = import_run(trained.root / "out/ends", store=store).run
    assert run.replay_grade == "none"
    assert any("-- python" in gap for gap in run.gaps)
    with pytest.raises(ReplayError):
        hooks = trained.root / replaying.HOOKS[run.framework]
        flor.replay(replaying.METRICS[run.framework][0], hooks=[hooks], store=store.root)


def test_the_same_files_are_imported_once(
    trained: Project, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.root)
    first = import_run(Path("out/ends"), store=store)
    again = import_run(Path("out/ends"), store=store)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.run.run_id == first.run.run_id
    launch = launches.of_command(["python", "plain.py"])
    named = import_run(trained.root / "out/ends", name="old", launch=launch, store=store)
    (run,) = list_runs(store)
    assert (named.is_new, run.name, run.replay_grade) == (False, "old", "weights")
    assert run.code is not None and run.launch.target == str(trained.root / "plain.py")
    os.utime(next(one for one in hf_or_ckpt(trained.root / "out/ends")))
    assert import_run(trained.root / "out/ends", store=store).is_new


def hf_or_ckpt(folder: Path) -> list[Path]:
    return [*folder.glob("epoch*.ckpt"), *folder.glob("checkpoint-8/model.safetensors")]


def test_refusals_say_what_was_looked_for(lit: Project, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not there"):
        import_run(tmp_path / "absent", store=store)
    with pytest.raises(StoreError, match=r"no \.ckpt file.*out/ends"):
        import_run(lit.root, store=store)
    both = Path(shutil.copytree(lit.root / "out/ends", tmp_path / "both"))
    (both / "checkpoint-1").mkdir()
    with pytest.raises(StoreError, match="name one"):
        import_run(both, store=store)


def test_a_launch_is_a_python_command_or_a_version_of_a_recipe(
    trained_hf: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_hf.root)
    script = launches.of_command(["python3", "plain.py", "--lr", "0.1"])
    assert (script.kind, script.argv, script.injected) == ("script", ("--lr", "0.1"), True)
    module = launches.of_command(["python", "-m", "hf_toy", "--epochs", "1"])
    assert (module.kind, module.target, module.argv) == ("module", "hf_toy", ("--epochs", "1"))
    for words in (["bash", "train.sh"], ["python"], ["python", "-m"], ["python", "absent.py"]):
        with pytest.raises(FlorError):
            launches.of_command(words)
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(
        "version: 1\nname: toy\ntrainer: hf_toy:build\nparams: {epochs: 3}\n"
        "versions:\n  - {name: a}\n  - {name: b, epochs: 2}\n"
    )
    made = launches.of_recipe(recipe, "b")
    assert (made.kind, made.target, dict(made.params)) == ("recipe", "hf_toy:build", {"epochs": 2})
    with pytest.raises(RecipeError, match=r"--version a \| b"):
        launches.of_recipe(recipe)


def test_a_recipe_builds_the_trainer_of_an_imported_run(
    trained_hf: Project, tmp_path: Path
) -> None:
    trained_hf.write(
        "toy.yaml", "version: 1\nname: toy\ntrainer: hf_toy:build\nparams: {callbacks: []}\n"
    )
    env = {"FLOR_DIR": str(tmp_path / "store")}
    trained_hf.flor("import", "out/ends", "--name", "old", "--recipe", "toy.yaml", **env)
    trained_hf.flor(
        "replay",
        "--hook",
        "hf_hooks.py",
        "--run",
        "old",
        "--metrics",
        "token_accuracy",
        "--yes",
        **env,
    )
    frame = flor.dataframe("token_accuracy", store=tmp_path / "store")
    assert rows_of(frame, "old", "token_accuracy") == by_hand(trained_hf, "hf")


def test_a_version_without_a_recipe_is_refused(trained_hf: Project) -> None:
    done = trained_hf.flor("import", "out/ends", "--version", "a", ok=False)
    assert done.returncode == 1 and "--recipe" in done.stderr
