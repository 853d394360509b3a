"""A store that is named by a url: other machines read it and replay it, and what they
compute is there for all.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch

import flor_plugins as flor
from flor_plugins.errors import StoreError
from flor_plugins.store.layout import find_store, store_in
from tests import replaying
from tests.replaying import HOOKS, Project

REPLAY = ("replay", "--hook", HOOKS["lightning"], "--metrics", "val_accuracy,wrong", "--yes")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two trainings in one process, uploaded; then the folder in which they ran is no longer
    where it was.
    """
    top = tmp_path_factory.mktemp("lightning")
    project = replaying.make(top / "project")
    script = (
        replaying.TRAIN["lightning"]
        + 'for name in ("a", "b"):\n    train(FlorCallback(name), epochs=2)\n'
    )
    project.write("train.py", script)
    project.python("train.py")
    url = f"file://{top}/bucket/flor"
    said = project.flor("upload", url).stdout
    project.root.rename(top / "away")
    return SimpleNamespace(url=url, said=said, top=top, store=top / "away" / ".flor")


def machine(home: SimpleNamespace, name: str) -> Project:
    """Another machine: a folder with the hooks and nothing else, and a cache of its own."""
    root = home.top / name
    root.mkdir()
    found = Project(root, {"FLOR_DIR": home.url, "XDG_CACHE_HOME": str(root / "cache")})
    found.write(HOOKS["lightning"], (replaying.TOYS / HOOKS["lightning"]).read_text())
    return found


@pytest.fixture(scope="module")
def replayed(home: SimpleNamespace) -> Project:
    """The machine that has replayed both runs by the command line."""
    node = machine(home, "node")
    node.flor(*REPLAY, "--workers", "2")
    return node


def test_an_upload_says_how_it_goes_on(home: SimpleNamespace) -> None:
    assert home.said.endswith(f"read and replay them with FLOR_DIR={home.url}\n")
    assert int(home.said.split()[0]) > 10
    put = flor.upload(home.url, "a", store=home.store)
    assert not [path for path in put if path.endswith(".safetensors")]


def test_values_that_one_machine_computed_are_there_for_the_others(
    home: SimpleNamespace, replayed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.top / "reader"))
    frame = flor.dataframe("val_accuracy", "wrong", source=True, store=home.url)
    assert len(frame) == 4 and frame["val_accuracy"].notna().all() and frame["wrong"].notna().all()
    assert set(frame["wrong.verdict"]) == {"exact"}
    assert len(flor.sql("select * from replays", store=home.url)) > 0
    # only records were fetched to read them
    assert not list((home.top / "reader").rglob("*.safetensors"))


def test_asked_again_by_another_machine_nothing_is_computed(
    home: SimpleNamespace, replayed: Project
) -> None:
    again = machine(home, "again")
    before = fsspec.filesystem("file").find(home.url)
    assert "nothing is missing" in again.flor(*REPLAY).stdout
    assert fsspec.filesystem("file").find(home.url) == before


def test_reading_verbs_take_the_url(home: SimpleNamespace, replayed: Project) -> None:
    runs = json.loads(replayed.flor("runs", "--json").stdout)
    assert [one["name"] for one in runs] == ["a", "b"]
    assert len(json.loads(replayed.flor("checkpoints", "a", "--json").stdout)) == 3


def test_weights_are_fetched_when_they_are_asked_for(
    home: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.top / "weights"))
    found, held = (
        flor.checkpoint("b@epoch=2", store=home.url),
        flor.checkpoint("b@epoch=2", store=home.store),
    )
    assert found.keys() == held.keys() and all(
        torch.equal(found[name], held[name]) for name in held
    )


@pytest.mark.slow
def test_verify_takes_the_url_and_trains_again(home: SimpleNamespace) -> None:
    node = machine(home, "verifier")
    found = json.loads(node.flor("verify", "b", "--json").stdout)
    assert {one["verdict"] for one in found} == {"exact"}


@pytest.mark.parametrize("verb", [("gc", "--dry-run"), ("pin", "a"), ("resume", "a")])
def test_what_needs_a_folder_says_so(
    home: SimpleNamespace, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    done = Project(tmp_path, {"FLOR_DIR": home.url}).flor(*verb, ok=False)
    assert done.returncode == 1 and "this needs a folder" in done.stderr


def test_a_training_is_not_recorded_into_a_url_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"needs a folder.*flor-hf upload s3://bucket/flor"):
        store_in("s3://bucket/flor")
    monkeypatch.setenv("FLOR_DIR", "s3://bucket/flor")
    with pytest.raises(StoreError, match="flor-hf upload"):
        find_store()
    project = replaying.make(tmp_path / "project")
    project.write("train.py", replaying.TRAIN["lightning"] + 'train(FlorCallback("a"), epochs=1)\n')
    done = project.python("train.py", FLOR_DIR="s3://bucket/flor")
    assert "AFTER FIT" in done.stdout and "is not recorded: StoreError" in done.stderr
    assert not (project.root / "s3:").exists()
