"""Checkpoints are compressed, and read as before: whoever reads them meanwhile, and wherever
it is interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from codec_cases import same
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint, StoreError
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import (
    folder_of,
    known_tensors,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    tensor_hashes,
)
from flor_plugins.store.checkpoints.compression import MOST_DELTAS, compress, compress_run
from flor_plugins.store.checkpoints.loader import read_tensors
from flor_plugins.store.checkpoints.manifest import read_manifest
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.checkpoints.tombstones import needed_tensors, references, write_tombstone
from flor_plugins.store.checkpoints.writer import DTYPES
from flor_plugins.store.codec import encode

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "20260101-000000-000-abcdef"


def at(number: int) -> Position:
    return Position(number, 10 * number)


def record(run: Path, count: int, side: int = 48) -> dict[Position, dict[str, Any]]:
    """Checkpoints of a model that moves a little: all kinds of tensors, one frozen,
    optimizer in every third.
    """
    torch.manual_seed(0)
    weight, half = torch.randn(side, side), torch.randn(side, side, dtype=torch.bfloat16)
    frozen, known = torch.randn(side, side), {}
    saved = {}
    for number in range(1, count + 1):
        weight = weight + 1e-4 * torch.randn(side, side)
        half = half + 1e-3 * torch.randn(side, side, dtype=torch.bfloat16)
        model = {
            "w": weight,
            "tied": weight,
            "half": half,
            "frozen": frozen,
            "mask": weight > 0,
            "noise": torch.randint(0, 256, (side * 80,)).byte(),
            "none": torch.ones(0, 2),
        }
        state: dict[str, Any] = {
            "model": model,
            "loops": {"epoch": number, "noise": torch.randint(0, 256, (999,)).byte()},
        }
        if number % 3 == 0:
            state["optimizer"] = {
                "m": torch.full((side, side), float("nan")),
                "step": torch.tensor(float(number)),
            }
        save_checkpoint(run, at(number), encode(state), known)
        saved[at(number)] = state
    return saved


def load_all(run: Path) -> dict[Position, dict[str, Any]]:
    return {one.position: load_checkpoint(run, one.position) for one in list_checkpoints(run)}


def agree(found: dict[Position, Any], saved: dict[Position, Any]) -> bool:
    return found.keys() == saved.keys() and all(
        same(found[position], saved[position]) for position in saved
    )


def bytes_in(run: Path) -> int:
    return sum(one.stat().st_size for one in run.rglob("*.safetensors"))


def names(run: Path, position: Position) -> set[str]:
    return {one.name for one in folder_of(run, position).iterdir()}


def test_a_compressed_run_is_smaller_and_reads_as_before(run: Path) -> None:
    saved = record(run, 20)
    hot = bytes_in(run)
    hashes = {position: tensor_hashes(run, position) for position in saved}
    freed = compress_run(run, keep=0)
    assert freed == hot - bytes_in(run) > 0.3 * hot
    assert sum(one.nbytes for one in list_checkpoints(run)) == bytes_in(run)
    assert agree(load_all(run), saved)
    assert hashes == {position: tensor_hashes(run, position) for position in saved}
    one = load_checkpoint(run, at(7))["model"]
    assert one["w"] is one["tied"]


def test_compressing_again_changes_nothing_and_the_newest_are_left(run: Path) -> None:
    record(run, 5)
    assert compress_run(run) > 0
    content = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert compress_run(run) == 0
    assert content == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert names(run, at(3)) == {
        "state.json",
        "model.cold.safetensors",
        "loops.safetensors",
        "optimizer.cold.safetensors",
    }
    assert names(run, at(4)) == {"state.json", "model.safetensors", "loops.safetensors"}


def test_tensors_are_read_into_memory_that_is_given(run: Path) -> None:
    saved = record(run, 4)
    compress_run(run, keep=0)
    state = read_manifest(folder_of(run, at(4)))
    into = {"model/w": torch.zeros(48, 48), "model/half": torch.zeros(3)}
    loaded = read_tensors(folder_of(run, at(4)), state, ["model/w", "model/half"], into)
    assert loaded["model/w"] is into["model/w"] and torch.equal(
        into["model/w"], saved[at(4)]["model"]["w"]
    )
    assert torch.equal(loaded["model/half"], saved[at(4)]["model"]["half"])


def test_a_compressed_file_is_safetensors_and_says_how_it_is_packed(run: Path) -> None:
    record(run, 2)
    compress_run(run, keep=0)
    folder = folder_of(run, at(2))
    there = load_file(folder / "model.cold.safetensors")
    assert there["w"].dtype == torch.uint8 and len(there["w"]) < 0.8 * 48 * 48 * 4
    state = json.loads((folder / "state.json").read_text())
    said = state["tensors"]["model/w"]
    assert (said["packing"], said["base"]) == (
        "delta,sort,shuffle,zstd",
        "../epoch=1,step=10/model/w",
    )
    assert (said["dtype"], said["shape"], said["nbytes"]) == ("float32", [48, 48], 48 * 48 * 4)
    assert (
        state["files"]["model.cold.safetensors"]
        == (folder / "model.cold.safetensors").stat().st_size
    )


def test_no_tensor_is_more_than_a_few_deltas_away_from_its_keyframe(run: Path) -> None:
    record(run, 34, side=16)
    compress_run(run, keep=0)
    lengths = []
    for one in list_checkpoints(run):
        manifests = ManifestCache(one.path, read_manifest(one.path))
        lengths.append(len(manifests.chain("model/w")) - 1)
    assert lengths[0] == lengths[16] == lengths[32] == 0
    assert max(lengths) == MOST_DELTAS


def test_checkpoints_that_are_deltas_to_each_other_make_no_circle(run: Path) -> None:
    saved = record(run, 3)
    for position, base in ((1, 3), (2, 1), (3, 2)):
        assert compress(run, at(position), at(base)) > 0
    assert agree(load_all(run), saved)


def test_a_base_that_does_not_fit_is_not_used(run: Path) -> None:
    save_checkpoint(run, at(1), encode({"model": {"w": torch.zeros(64, 64)}}))
    save_checkpoint(
        run, at(2), encode({"model": {"w": torch.ones(64, 32), "v": torch.ones(64, 64)}})
    )
    compress(run, at(2), at(1))
    assert {
        one["base"]
        for one in read_manifest(folder_of(run, at(2)))["tensors"].values()
        if "base" in one
    } == set()
    assert torch.equal(load_checkpoint(run, at(2))["model"]["w"], torch.ones(64, 32))


def test_a_section_may_be_named_like_a_compressed_file(run: Path) -> None:
    state = {
        "model": {"w": torch.zeros(999)},
        "model.cold": {"w": torch.ones(999)},
        "model.cold2": {"w": torch.full((999,), 2.0)},
    }
    save_checkpoint(run, at(1), encode(state))
    assert compress(run, at(1)) > 0
    assert same(load_checkpoint(run, at(1)), state)


SHAPES = st.lists(st.integers(0, 40), max_size=3)


@given(dtype=st.sampled_from(sorted(DTYPES)), shape=SHAPES, other=SHAPES, data=st.data())
def test_any_tensor_reads_as_before(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: list[int],
    other: list[int],
    data: st.DataObject,
) -> None:
    run = tmp_path_factory.mktemp("run")
    kind, nbytes = getattr(torch, dtype), DTYPES[dtype][1]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    highest = 2 if dtype == "bool" else data.draw(st.sampled_from([2, 256]))

    def tensor(size: list[int]) -> torch.Tensor:
        return (
            torch.randint(0, highest, (*size, nbytes), generator=generator)
            .byte()
            .view(kind)
            .reshape(size)
        )

    known: Any = {}
    kept, changed = (
        tensor(shape),
        [tensor(shape if data.draw(st.booleans()) else other) for _ in range(3)],
    )
    states = [
        {"model": {"kept": kept, "tied": kept, "w": one, "more": torch.arange(99.0)}}
        for one in changed
    ]
    for number, state in enumerate(states):
        save_checkpoint(run, at(number), encode(state), known)
    before = [exact(load_checkpoint(run, at(number))["model"]) for number in range(3)]
    order = data.draw(st.permutations(range(3)))
    for number in order:
        compress(run, at(number), at(data.draw(st.integers(0, 2))))
        assert [exact(load_checkpoint(run, at(number))["model"]) for number in range(3)] == before


def exact(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (one.dtype, one.shape, one.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, one in tensors.items()
    }


def test_a_new_checkpoint_refers_to_compressed_ones(run: Path) -> None:
    saved = record(run, 4)
    compress_run(run, keep=0)
    known = known_tensors(run)
    earlier = saved[at(2)]["model"]["w"]
    model = saved[at(4)]["model"] | {"w": earlier, "tied": earlier}
    save_checkpoint(run, at(5), encode({"model": model}), known)
    assert names(run, at(5)) == {"state.json"}
    assert same(load_checkpoint(run, at(5))["model"], model)
    assert references(run)[at(5)] >= {at(1), at(2), at(4)}


def data_of(path: Path) -> range:
    """The bytes of a safetensors file that belong to tensors."""
    return range(8 + int.from_bytes(path.read_bytes()[:8], "little"), path.stat().st_size)


@pytest.mark.parametrize("number", [1, 2])
def test_damage_in_a_compressed_file_or_in_its_base_is_found_and_named(
    run: Path, number: int
) -> None:
    saved = record(run, 2, side=24)
    compress_run(run, keep=0)
    path = folder_of(run, at(number)) / "model.cold.safetensors"
    whole = path.read_bytes()
    found = 0
    for i in data_of(path)[:: 1 + len(whole) // 150]:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        try:
            # it lay between two tensors, or was not needed
            assert same(load_checkpoint(run, at(2)), saved[at(2)])
        except DamagedCheckpoint as error:
            assert str(path) in str(error)
            found += 1
    assert found > 60
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedCheckpoint, match=rf"{path.parent.name}.*has {len(whole) - 1} bytes"):
        load_checkpoint(run, at(2))
    path.unlink()
    with pytest.raises(
        DamagedCheckpoint, match=rf"{path.parent.name}/model.cold.safetensors is missing"
    ):
        load_checkpoint(run, at(2))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("../epoch=1,step=10/model/w", "../epoch=2,step=20/model/w", "needs 'model/w' to make"),
        (
            "../epoch=1,step=10/model/w",
            "../epoch=1,step=10/model/gone",
            "does not have the tensor 'model/gone'",
        ),
        ("../epoch=1,step=10/model/w", "../epoch=1,step=10/model/half", "which has another shape"),
        ("../epoch=1,step=10/model/w", "../../secret/model/w", "not a checkpoint"),
        ("../epoch=1,step=10/model/w", "model/w", "not a tensor of a checkpoint"),
        ("delta,sort,shuffle,zstd", "exec", "packed with 'exec'"),
    ],
)
def test_a_base_or_packing_that_makes_no_sense_is_refused(
    run: Path, old: str, new: str, says: str
) -> None:
    from flor_plugins.store.checkpoints.manifest import own_hash

    record(run, 2)
    compress_run(run, keep=0)
    path = folder_of(run, at(2)) / "state.json"
    state = json.loads(path.read_text().replace(json.dumps(old), json.dumps(new)))
    path.write_text(json.dumps(state | {"sha256": own_hash(state)}))
    with pytest.raises(DamagedCheckpoint, match=says):
        load_checkpoint(run, at(2))


def test_a_damaged_checkpoint_is_not_compressed_and_the_others_are(run: Path) -> None:
    record(run, 3)
    path = folder_of(run, at(2)) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"not compressed.*step=20/model\.safetensors was altered"):
        compress_run(run, keep=0)
    assert names(run, at(2)) == {"state.json", "model.safetensors", "loops.safetensors"}
    assert "model.cold.safetensors" in names(run, at(3))
    path.write_bytes(whole)
    assert compress_run(run, keep=0) > 0


def test_who_read_the_old_state_finds_the_new_files(run: Path) -> None:
    saved = record(run, 6)
    old = read_manifest(folder_of(run, at(6)))
    keys = list(old["tensors"])
    assert compress_run(run, keep=0) > 0
    loaded = read_tensors(folder_of(run, at(6)), old, keys)
    assert torch.equal(loaded["model/w"], saved[at(6)]["model"]["w"])


def test_readers_meet_no_gap_while_checkpoints_are_compressed_and_given_up(run: Path) -> None:
    saved = record(run, 24, side=24)
    readable = {
        position: state for position, state in saved.items() if position.epoch not in (2, 5, 8)
    }
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for position, state in readable.items():
                try:
                    if not same(load_checkpoint(run, position), state):
                        wrong.append(position)
                except Exception as error:
                    wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for one in readers:
        one.start()
    compress_run(run, keep=1)
    for number in (2, 5, 8):
        keep = needed_tensors(run, of=readable.keys()).get(at(number))
        if keep:
            write_tombstone(run, at(number), keep)
    done.set()
    for one in readers:
        one.join()
    assert wrong == []
    assert agree(
        load_all(run), {one.position: saved[one.position] for one in list_checkpoints(run)}
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from flor_plugins.records import Position
from flor_plugins.store import files
from flor_plugins.store.checkpoints import compression, rewriting, streaming_safetensors, tombstones

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_before(owner, name, matches):
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: die() if matches(*args) else real(*args, **kwargs))

run, what, stage = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if stage == "while a file is written":
    streaming_safetensors.os.write = die
elif stage == "before the header":
    streaming_safetensors.os.pwrite = die
elif stage == "before a file has its name":
    die_before(Path, "replace", lambda path, to: to.name.endswith(".safetensors"))
elif stage == "before it is verified":
    compression._verify = die
elif stage == "before state.json":
    die_before(Path, "replace", lambda path, to: to.name in ("state.json", "shell.json"))
elif stage == "before state.json goes":
    die_before(Path, "unlink", lambda path, **_: path.name == "state.json")
else:
    die_before(Path, "unlink", lambda path, **_: path.name.endswith(".safetensors"))
if what == "compress":
    compression.compress(run, Position(2, 20), Position(1, 10))
else:
    tombstones.write_tombstone(run, Position(2, 20), sys.argv[4:])
"""


def killed(run: Path, what: str, stage: str, *keys: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), what, stage, *keys],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


STAGES = [
    "while a file is written",
    "before the header",
    "before a file has its name",
    "before state.json",
    "before files go",
]


@pytest.mark.parametrize("stage", [*STAGES, "before it is verified"])
def test_a_kill_leaves_the_checkpoint_whole_and_a_later_call_goes_on(run: Path, stage: str) -> None:
    saved = record(run, 3)
    killed(run, "compress", stage)
    assert agree(load_all(run), saved)
    compress_run(run, keep=0)
    assert agree(load_all(run), saved)
    assert names(run, at(2)) == {"state.json", "model.cold.safetensors", "loops.safetensors"}


@pytest.mark.parametrize("stage", [*STAGES, "before state.json goes"])
def test_a_kill_while_a_checkpoint_is_given_up_breaks_no_other(run: Path, stage: str) -> None:
    saved = record(run, 4)
    compress(run, at(4), at(3))
    compress(run, at(3), at(2))
    others = {position: state for position, state in saved.items() if position != at(2)}
    keep = needed_tensors(run, of=others)[at(2)]
    assert "model/w" in keep and "model/w" in needed_tensors(run, of=[at(4)])[at(2)]
    killed(run, "write_tombstone", stage, *keep)
    now = load_all(run)
    assert agree({position: now[position] for position in others}, others)
    assert at(2) not in now or same(now[at(2)], saved[at(2)])
    write_tombstone(run, at(2), keep)
    assert names(run, at(2)) == {"shell.json", "model.shell.safetensors"}
    assert same(load_all(run)[at(4)]["model"]["w"], saved[at(4)]["model"]["w"])


def test_one_who_is_told_to_stop_leaves_nothing_half_done_and_goes_on_later(run: Path) -> None:
    saved = record(run, 6)
    left = 0

    def pace() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for left in (1, 2, 5, 9, 17, 30):  # noqa: B007 (counted down above)
        with pytest.raises(KeyboardInterrupt):
            compress_run(run, keep=0, pace=pace)
        assert agree(load_all(run), saved)
        assert not any(name.startswith(".") for position in saved for name in names(run, position))
    assert "model.cold.safetensors" not in names(run, at(6))
    compress_run(run, keep=0, pace=pace)
    assert all("model.cold.safetensors" in names(run, position) for position in saved)
    assert agree(load_all(run), saved)


def test_a_full_disk_leaves_the_checkpoint_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = record(run, 2)
    before = names(run, at(2))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flor_plugins.store.checkpoints.streaming_safetensors._write_all", full)
    with pytest.raises(StoreError, match="No space left on device"):
        compress_run(run, keep=0)
    assert names(run, at(2)) == before and agree(load_all(run), saved)


def test_what_can_not_be_read_back_does_not_replace_what_was_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flor_plugins.store.checkpoints import compression

    saved = record(run, 2)
    monkeypatch.setattr(compression, "pack", lambda memory, width, method, base: [bytes(64)])
    with pytest.warns(UserWarning, match="not compressed"):
        assert compress_run(run, keep=0) == 0
    assert names(run, at(1)) == {"state.json", "model.safetensors", "loops.safetensors"}
    assert agree(load_all(run), saved)


def test_a_shell_is_no_checkpoint_and_what_refers_to_it_is_read(run: Path) -> None:
    saved = record(run, 20)
    compress_run(run, keep=0)
    left = [at(number) for number in (4, 12, 20)]
    before = bytes_in(run)
    for position in saved.keys() - set(left):
        keep = needed_tensors(run, of=left).get(position, set())
        if keep:
            write_tombstone(run, position, keep)
            write_tombstone(run, position, keep)
    assert not {"model/none", "model/frozen"} - needed_tensors(run, of=left)[at(1)]
    assert bytes_in(run) < before
    assert "shell.json" in names(run, at(1))
    listed = [one.position for one in list_checkpoints(run)]
    assert at(1) not in listed and set(left) <= set(listed)
    with pytest.raises(NoCheckpoint, match=r"has no checkpoint at epoch=1,step=10"):
        load_checkpoint(run, at(1))
    assert at(1) in references(run)[at(12)]
    assert agree(
        {position: load_checkpoint(run, position) for position in left},
        {one: saved[one] for one in left},
    )


def test_a_shell_keeps_what_it_is_asked_for_and_refuses_what_it_does_not_have(run: Path) -> None:
    saved = record(run, 2)
    with pytest.raises(StoreError, match=r"step=10.*optimizer/x"):
        write_tombstone(run, at(1), ["model/frozen", "optimizer/x"])
    with pytest.raises(StoreError, match="none"):
        write_tombstone(run, at(1), [])
    needed = needed_tensors(run)[at(1)]
    assert {"model/frozen", "model/none"} <= needed and not {"model/w", "model/noise"} & needed
    write_tombstone(run, at(1), {*needed, "model/w"})
    write_tombstone(run, at(1), needed)
    there = load_file(folder_of(run, at(1)) / "model.shell2.safetensors")
    assert {f"model/{name}" for name in there} == needed and torch.equal(
        there["frozen"], saved[at(1)]["model"]["frozen"]
    )
    assert same(load_checkpoint(run, at(2)), saved[at(2)])
    write_tombstone(run, at(1), ["model/none"])
    with pytest.raises(DamagedCheckpoint, match=r"step=10 .*does not have the tensor 'frozen'"):
        load_checkpoint(run, at(2))


def test_checkpoints_of_format_1_are_compressed_and_given_up(tmp_path: Path) -> None:
    run = (
        Path(shutil.copytree(GOLDEN / "format-1", tmp_path / "old")) / "20260101-000000-000-abcdef"
    )
    saved = load_all(run)
    first, second = saved
    compress_run(run, keep=0)
    assert json.loads((folder_of(run, first) / "state.json").read_text())["format"] == 2
    assert agree(load_all(run), saved)
    write_tombstone(run, first, needed_tensors(run)[first])
    assert agree(load_all(run), {second: saved[second]})


def test_two_who_compress_the_same_run_wait_for_each_other(run: Path) -> None:
    saved = record(run, 8)
    code = (
        "import sys; from pathlib import Path; from "
        "flor_plugins.store.checkpoints.compression import compress_run\n"
    )
    command = [sys.executable, "-c", code + "compress_run(Path(sys.argv[1]), keep=0)", str(run)]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert agree(load_all(run), saved)
    assert all("model.cold.safetensors" in names(run, position) for position in saved)


def test_compressing_needs_no_torch(run: Path) -> None:
    record(run, 2)
    code = (
        f"import sys; sys.path[:0] = "
        f"{[str(ROOT), *[path for path in sys.path if 'site-packages' in path]]!r}\n"
        "from pathlib import Path\n"
        "from flor_plugins.store.checkpoints import compression\n"
        f"assert compression.compress_run(Path({str(run)!r}), keep=0) > 0\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
