from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import AT, LATER, folder, sections
from safetensors.torch import load_file

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import (
    known_tensors,
    list_checkpoints,
    load_checkpoint,
    manifest,
    save_checkpoint,
    tensor_hashes,
)
from flor_plugins.store.checkpoints import tensor_reader as fetching
from flor_plugins.store.checkpoints.tombstones import references
from flor_plugins.store.codec import Encoded, LostLeaf, encode
from flor_plugins.store.files import PARTIAL, read_json


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "20260101-000000-000-abcdef"


def test_a_checkpoint_comes_back(run: Path) -> None:
    saved = save_checkpoint(run, AT, encode(sections()))
    assert saved == list_checkpoints(run)[0]
    assert (saved.run_id, saved.position, saved.is_full, saved.lost) == (run.name, AT, True, ())
    state = load_checkpoint(run, AT)
    expected = sections()
    assert list(state) == list(expected)
    assert torch.equal(state["model"]["layer.weight"], expected["model"]["layer.weight"])
    assert state["model"]["wte"] is state["model"]["head"]
    assert state["optimizer"][0]["state"][0]["step"] == torch.tensor(3.0)
    assert state["loops"]["seen"] == {1, 2} and state["loops"]["best"] != state["loops"]["best"]


def test_a_checkpoint_that_was_listed_is_read_again_only_if_it_was_written_since(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(run, AT, encode(sections()))
    # it may still be written within the same tick of the clock
    assert manifest.stamp_of(folder(run)) is None
    monkeypatch.setattr(manifest, "SETTLED_S", 0.0)
    read: list[Path] = []
    monkeypatch.setattr(manifest, "read_json", lambda path: read.append(path) or read_json(path))
    assert list_checkpoints(run) == list_checkpoints(run) and len(read) == 1
    state = folder(run) / "state.json"
    was = state.read_bytes()
    state.chmod(0o644)
    state.write_bytes(was.replace(b'"full": true', b'"full": null'))  # as long as before
    with pytest.warns(UserWarning, match="passed over"):
        assert list_checkpoints(run) == []
    state.write_bytes(was)
    assert [one.is_full for one in list_checkpoints(run)] == [True] and len(read) == 3


def test_large_states_are_read_by_several_threads_and_small_ones_by_none(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"w{number}": torch.full((64, number + 1), float(number)) for number in range(24)}
    save_checkpoint(run, AT, encode({"model": tensors}))
    threads: set[int] = set()
    all_at_work = threading.Barrier(3, timeout=60)

    def fetch(reader: fetching.TensorReader, *one: Any) -> None:
        if (
            threading.get_ident() not in threads
            and threading.current_thread() is not threading.main_thread()
        ):
            all_at_work.wait()
        threads.add(threading.get_ident())
        original(reader, *one)

    original = fetching.TensorReader.fetch
    monkeypatch.setattr(fetching.TensorReader, "fetch", fetch)
    monkeypatch.setattr(fetching, "processors", lambda: 3)
    loaded = load_checkpoint(run, AT)["model"]
    assert all(torch.equal(loaded[key], one) for key, one in tensors.items()) and threads == {
        threading.get_ident()
    }
    monkeypatch.setattr(fetching, "PER_THREAD", 1)
    threads.clear()
    loaded = load_checkpoint(run, AT)["model"]
    assert all(torch.equal(loaded[key], one) for key, one in tensors.items()) and len(threads) == 3


def test_damage_that_another_thread_finds_is_raised_and_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "processors", lambda: 3)
    monkeypatch.setattr(fetching, "PER_THREAD", 1)
    tensors = {f"w{number}": torch.full((64, number + 1), float(number)) for number in range(24)}
    save_checkpoint(run, AT, encode({"model": tensors}))
    path = folder(run) / "model.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors was altered"):
        load_checkpoint(run, AT)
    assert not [one for one in threading.enumerate() if one.name.startswith("flor reads")]


def test_other_programs_read_the_tensors_under_their_own_names(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    there = {one.name for one in folder(run).iterdir()}
    assert there == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert set(load_file(folder(run) / "model.safetensors")) == {"wte", "layer.weight", "empty"}
    state = json.loads((folder(run) / "state.json").read_text())
    assert state["tensors"]["model/layer.weight"]["shape"] == [6]
    assert state["files"]["model.safetensors"] == (folder(run) / "model.safetensors").stat().st_size


def test_files_may_be_read_by_whoever_may_read_the_users_files(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    ordinary = run / "ordinary"
    ordinary.touch()
    modes = {stat.S_IMODE(one.stat().st_mode) for one in folder(run).iterdir()}
    assert modes == {stat.S_IMODE(ordinary.stat().st_mode)}


def test_only_the_wanted_sections_are_read(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    (folder(run) / "optimizer.safetensors").unlink()
    assert set(load_checkpoint(run, AT, only={"model", "loops"})) == {"model", "loops"}
    assert load_checkpoint(run, AT, only=()) == {}
    with pytest.raises(StoreError, match=r"scaler.*model, optimizer, loops"):
        load_checkpoint(run, AT, only={"scaler"})


def test_a_tensor_tied_across_sections_is_found_in_the_other_file(run: Path) -> None:
    weight = torch.ones(3)
    save_checkpoint(run, AT, encode({"ema": {"w": weight}, "model": {"w": weight}}))
    assert torch.equal(load_checkpoint(run, AT, only={"ema"})["ema"]["w"], weight)


def test_what_was_lost_is_said_and_the_checkpoint_is_not_full(run: Path) -> None:
    saved = save_checkpoint(run, AT, encode(sections() | {"extra": {"fn": lambda: 1}}))
    assert not saved.is_full and saved.lost[0].startswith("extra/fn: ")
    assert isinstance(load_checkpoint(run, AT)["extra"]["fn"], LostLeaf)


def test_unchanged_tensors_are_references_to_the_earlier_checkpoint(run: Path) -> None:
    known: dict[Any, Any] = {}
    first = save_checkpoint(run, AT, encode(sections()), known)
    second = save_checkpoint(run, LATER, encode(sections(2.0)), known)
    third = save_checkpoint(run, Position(3, 30), encode(sections(2.0)), known)
    assert set(load_file(second.path / "model.safetensors")) == {"layer.weight"}
    assert first.nbytes > second.nbytes > third.nbytes == 0
    tensors = json.loads((third.path / "state.json").read_text())["tensors"]
    assert tensors["model/wte"]["file"] == f"../{AT}/model.safetensors"
    assert tensors["model/layer.weight"]["file"] == f"../{LATER}/model.safetensors"
    for one, scale in ((AT, 1.0), (LATER, 2.0), (Position(3, 30), 2.0)):
        assert torch.equal(
            load_checkpoint(run, one)["model"]["layer.weight"], torch.arange(6.0) * scale
        )
    assert references(run) == {AT: set(), LATER: {AT}, Position(3, 30): {AT, LATER}}


def test_a_second_process_finds_what_is_on_disk(run: Path) -> None:
    known: dict[Any, Any] = {}
    save_checkpoint(run, AT, encode(sections()), known)
    save_checkpoint(run, LATER, encode(sections(2.0)), known)
    assert known_tensors(run) == known
    assert (
        save_checkpoint(run, Position(3, 30), encode(sections(2.0)), known_tensors(run)).nbytes == 0
    )


def test_a_reference_to_a_deleted_checkpoint_is_never_made(run: Path) -> None:
    known: dict[Any, Any] = {}
    save_checkpoint(run, AT, encode(sections()), known)
    folder(run).rename(run / "gone")
    save_checkpoint(run, LATER, encode(sections()), known)
    assert references(run) == {LATER: set()}
    assert torch.equal(load_checkpoint(run, LATER)["model"]["wte"], sections()["model"]["wte"])


def test_a_tensor_of_equal_bytes_and_another_dtype_is_not_taken_for_the_same(run: Path) -> None:
    known: dict[Any, Any] = {}
    save_checkpoint(run, AT, encode({"model": {"w": torch.zeros(4)}}), known)
    save_checkpoint(run, LATER, encode({"model": {"w": torch.zeros(4, dtype=torch.int32)}}), known)
    assert load_checkpoint(run, LATER)["model"]["w"].dtype is torch.int32


def test_loaded_tensors_outlive_their_files(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    state = load_checkpoint(run, AT)
    for one in folder(run).iterdir():
        os.truncate(one, 0)
    assert torch.equal(state["model"]["layer.weight"], torch.arange(6.0))
    state["model"]["layer.weight"].add_(1)


def test_a_position_without_a_checkpoint_names_those_that_exist(run: Path) -> None:
    with pytest.raises(NoCheckpoint, match="it has none"):
        load_checkpoint(run, AT)
    save_checkpoint(run, LATER, encode({}))
    save_checkpoint(run, AT, encode({}))
    with pytest.raises(
        NoCheckpoint, match=r"no checkpoint at epoch=3,step=30; it has epoch=1.*; epoch=2"
    ):
        load_checkpoint(run, Position(3, 30))
    assert [one.position for one in list_checkpoints(run)] == [AT, LATER]


def test_a_checkpoint_is_never_overwritten(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    with pytest.raises(StoreError, match="exists already"):
        save_checkpoint(run, AT, encode(sections(2.0)))
    assert torch.equal(load_checkpoint(run, AT)["model"]["layer.weight"], torch.arange(6.0))


def test_hashes_tell_whether_two_models_are_equal(run: Path) -> None:
    save_checkpoint(run, AT, encode(sections()))
    save_checkpoint(run, LATER, encode(sections(2.0)))
    one, two = tensor_hashes(run, AT), tensor_hashes(run, LATER)
    assert set(one) == {"wte", "layer.weight", "empty"}
    assert {name for name in one if one[name] != two[name]} == {"layer.weight"}
    assert set(tensor_hashes(run, AT, "optimizer")) == {"0.state.0.step", "0.state.0.exp_avg"}


def test_a_failed_save_leaves_nothing_and_keeps_known_true(run: Path) -> None:
    known: dict[Any, Any] = {}
    bad = Encoded({"model": {}}, {"model/w": torch.ones(2), "x/y": torch.ones(2)}, ())
    bad.tree["model"] = {"w": float("nan")}  # no JSON: state.json can't be written
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(run, AT, bad, known)
    assert known == {} and list((run / "checkpoints").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="could not be written"):
        save_checkpoint(tmp_path / "run", AT, encode({}))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from flor_plugins.records import Position
from flor_plugins.store import checkpoints
from flor_plugins.store.checkpoints import writer
from flor_plugins.store.codec import encode

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

state = encode({"model": {"w": torch.ones(3)}})
checkpoints.save_checkpoint(Path(sys.argv[1]), Position(1, 10), state)
if sys.argv[2] == "before state.json":
    writer.write_json = die
else:
    os.rename = Path.rename = die
state = encode({"model": {"w": torch.zeros(3)}})
checkpoints.save_checkpoint(Path(sys.argv[1]), Position(2, 20), state)
"""


@pytest.mark.parametrize("when", ["before state.json", "before the rename"])
def test_a_killed_save_leaves_no_checkpoint_and_the_next_one_succeeds(run: Path, when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), when], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [one for one in (run / "checkpoints").iterdir() if one.name.startswith(PARTIAL)]
    assert len(left) == 1 and (left[0] / "model.safetensors").is_file()
    assert [one.position for one in list_checkpoints(run)] == [AT]
    with pytest.raises(NoCheckpoint, match=f"it has {AT}"):
        load_checkpoint(run, LATER)
    save_checkpoint(run, LATER, encode(sections()))
    assert [one.position for one in list_checkpoints(run)] == [AT, LATER]


def test_what_a_writer_remembers_does_not_grow_with_the_run_and_what_never_changes_stays(
    run: Path,
) -> None:
    known: dict[Any, Any] = {}
    sizes = []
    for epoch in range(1, 30):
        state = {"model": {"frozen": torch.ones(3), "trained": torch.full((3,), float(epoch))}}
        save_checkpoint(run, Position(epoch, epoch), encode(state), known)
        sizes.append(len(known))
    assert max(sizes) == sizes[-1] == 16
    assert references(run)[Position(29, 29)] == {Position(1, 1)}


def test_a_tensor_that_stops_changing_is_stored_once_more_and_then_referred_to(run: Path) -> None:
    known: dict[Any, Any] = {}
    values = [1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0]
    for epoch, value in enumerate(values, 1):
        state = {"model": {"w": torch.full((3,), value)}, "rng": torch.full((2,), epoch)}
        save_checkpoint(run, Position(epoch, epoch), encode(state), known)
        assert load_checkpoint(run, Position(epoch, epoch))["model"]["w"].tolist() == [value] * 3
    # Of one that changed each time it is seen only while it is written that it did not.
    third, sixth = [Position(3, 3)], [Position(6, 6)]
    assert [sorted(one) for one in references(run).values()] == [
        [],
        [],
        [],
        [],
        third,
        [],
        [],
        sixth,
    ]
