"""States are read ahead: the same States, into memory that nobody else holds, and errors
where they belong.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from codec_cases import same
from torch import nn

from flor_plugins.errors import DamagedCheckpoint, FlorError, NoCheckpoint
from flor_plugins.records import Position, ReplayPass, Run, Task, TrainingRange
from flor_plugins.replayer.worker_session import host_memory, prefetch
from flor_plugins.replayer.worker_session.prefetch import StatePrefetcher, StateRequest, order_of
from flor_plugins.store import ranks
from flor_plugins.store.checkpoints import (
    folder_of,
    load_checkpoint,
    save_checkpoint,
    tensor_hashes,
)
from flor_plugins.store.codec import encode

FIRST, SECOND, THIRD = Position(0, 0), Position(1, 10), Position(2, 20)
ORDER = [StateRequest(FIRST), StateRequest(SECOND), StateRequest(THIRD)]


def sections(scale: float) -> dict[str, Any]:
    """Tied weights, channels_last, an empty tensor, and a weight that another section names too."""
    tied, kernel = (
        torch.full((40, 30), scale),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    )
    model = {
        "wte": tied,
        "head": tied,
        "kernel": kernel,
        "empty": torch.empty(0, 2),
        "count": torch.tensor(3),
    }
    moments = {"step": torch.tensor(scale), "exp_avg": torch.ones(6) * scale}
    return {
        "model": model,
        "optimizer": [{"state": {0: moments}}],
        "module": {"best": tied, "seen": {1, 2}},
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "20260101-000000-000-abcdef"
    for scale, one in enumerate(ORDER):
        save_checkpoint(path, one.position, encode(sections(float(scale))))
    return cast(Run, SimpleNamespace(path=path, processes=1))


def ahead(
    run: Run, order: list[StateRequest] = ORDER, rank: int = 0
) -> tuple[StatePrefetcher, list[str]]:
    said: list[str] = []
    return StatePrefetcher(run, rank, order, said.append), said


def remove(run: Run, position: Position) -> None:
    shutil.rmtree(folder_of(run.path, position))


def settle(states: StatePrefetcher) -> None:
    """Begin to read ahead, and wait until it is done."""
    states.begin()
    states._wait()


@pytest.mark.parametrize("only", [None, ("model",), ("optimizer",)])
def test_states_are_those_of_the_disk_and_no_random_number_is_drawn(
    run: Run, only: tuple[str, ...] | None
) -> None:
    order = [StateRequest(one.position, only) for one in ORDER]
    states, _ = ahead(run, order)
    before = torch.get_rng_state()
    for one in order:
        assert same(states.load(one), load_checkpoint(run.path, one.position, only))
        settle(states)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_dict_of_plain_weights_is_that_of_the_disk(tmp_path: Path) -> None:
    weights = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    run = cast(Run, SimpleNamespace(path=tmp_path, processes=1))
    order = [StateRequest(FIRST, ("model",)), StateRequest(SECOND, ("model",))]
    for one in order:
        save_checkpoint(tmp_path, one.position, encode({"model": weights, "rng": 5}))
    states, _ = ahead(run, order)
    states.load(order[0])
    settle(states)
    assert states._ahead is not None and states._ahead.read is not None
    assert states._ahead.read.sections is not None  # built by the thread already
    assert same(states.load(order[1]), load_checkpoint(tmp_path, SECOND, ("model",)))


def test_the_next_state_is_in_memory_before_it_is_asked_for(run: Run) -> None:
    expected = load_checkpoint(run.path, SECOND)
    states, _ = ahead(run)
    states.load(ORDER[0])
    settle(states)
    remove(run, SECOND)
    assert same(states.load(ORDER[1]), expected)


def test_hashes_come_with_a_state_that_was_read_ahead_and_with_no_other(run: Run) -> None:
    states, _ = ahead(run)
    states.load(ORDER[0])
    assert states.hashes(FIRST) is None  # it was read when it was asked for
    settle(states)
    assert states.hashes(SECOND) is None
    states.load(ORDER[1])
    assert states.hashes(SECOND) == tensor_hashes(run.path, SECOND) and states.hashes(FIRST) is None
    states.load(ORDER[2])
    assert states.hashes(SECOND) is None


def test_weights_that_nobody_holds_make_room_for_the_next_ones(run: Run) -> None:
    states, _ = ahead(run)
    states.load(ORDER[0])
    settle(states)
    found = states.load(ORDER[1])
    place = found["model"]["wte"].data_ptr()
    del found
    settle(states)
    assert states.load(ORDER[2])["model"]["wte"].data_ptr() == place


HELD: dict[str, Callable[[torch.Tensor], Any]] = {
    "itself": lambda one: one,
    "a view": lambda one: one[3:5].t(),
    "detached": lambda one: one.detach(),
    "a parameter": lambda one: nn.Parameter(one),
    "an array": lambda one: one.numpy(),
    "bytes of it": lambda one: memoryview(one.numpy()),
    "its storage": lambda one: one.untyped_storage(),
}


def values(held: Any) -> torch.Tensor:
    if isinstance(held, torch.UntypedStorage):
        return torch.empty(0).set_(held)
    return torch.tensor(held.tolist()) if isinstance(held, memoryview) else torch.as_tensor(held)


@pytest.mark.parametrize("way", HELD)
def test_what_somebody_keeps_of_a_state_is_never_written_over(run: Run, way: str) -> None:
    again = [*ORDER, *ORDER, *ORDER]
    states, _ = ahead(run, again)
    kept = []
    for one in again:
        kept.append(HELD[way](states.load(one)["model"]["wte"]))
        settle(states)
    for one, held in zip(again, kept, strict=True):
        assert values(held).unique().tolist() == [ORDER.index(one)]


def test_an_optimizer_keeps_its_moments_when_the_next_state_is_read(run: Run) -> None:
    parameter = nn.Parameter(torch.zeros(6))
    states, _ = ahead(run)
    for scale, one in enumerate(ORDER):
        optimizer = torch.optim.AdamW([parameter])
        state = states.load(one)["optimizer"][0]
        optimizer.load_state_dict({**optimizer.state_dict(), **state})
        settle(states)
        assert optimizer.state[parameter]["exp_avg"].tolist() == [scale] * 6


@pytest.mark.parametrize("damage", ["altered", "removed"])
def test_a_damaged_state_fails_where_it_is_asked_for_and_only_there(run: Run, damage: str) -> None:
    file = folder_of(run.path, SECOND) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content) if damage == "altered" else file.unlink()
    states, _ = ahead(run)
    assert same(states.load(ORDER[0]), load_checkpoint(run.path, FIRST))
    settle(states)
    with pytest.raises(DamagedCheckpoint, match=f"{SECOND}/model.safetensors"):
        states.load(ORDER[1])
    settle(states)
    remove(run, FIRST)
    found = states.load(ORDER[2])
    assert found["model"]["wte"].unique().tolist() == [2]


def test_a_state_that_is_not_there_is_missed_when_it_is_asked_for(run: Run) -> None:
    remove(run, SECOND)
    states, _ = ahead(run)
    states.load(ORDER[0])
    settle(states)
    with pytest.raises(NoCheckpoint):
        states.load(ORDER[1])


def test_states_may_be_asked_for_in_another_order(run: Run) -> None:
    states, _ = ahead(run)
    asked = [THIRD, FIRST, FIRST, SECOND, FIRST, THIRD, SECOND]
    for position in asked:
        assert same(states.load(StateRequest(position)), load_checkpoint(run.path, position))
        settle(states)
    weights = StateRequest(SECOND, ("model",))  # stands nowhere in the order
    assert list(states.load(weights)) == ["model"]


def test_a_state_that_is_asked_for_twice_leaves_the_one_read_ahead(run: Run) -> None:
    states, _ = ahead(run)
    for _ in range(2):
        states.load(ORDER[0])
        settle(states)
    remove(run, SECOND)
    assert states.load(ORDER[1])["model"]["wte"].unique().tolist() == [1]


def test_too_large_a_state_is_not_read_ahead_which_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "available_bytes", lambda: 1000)
    states, said = ahead(run)
    for one in ORDER:
        assert same(states.load(one), load_checkpoint(run.path, one.position))
        settle(states)
    assert len(said) == 1 and "memory" in said[0]
    remove(run, THIRD)
    with pytest.raises(FlorError):
        states.load(ORDER[2])


def test_another_process_own_part_lies_over_what_was_read_ahead(run: Run) -> None:
    part: dict[str, Any] = {"model": {"count": torch.tensor(9)}, "rng": 6}
    for one in ORDER:
        save_checkpoint(ranks.folder(run.path, 1), one.position, encode(part))
    states, _ = ahead(run, rank=1)
    for one in ORDER:
        found = states.load(one)
        assert same(found, ranks.load_checkpoint(run.path, 1, one.position))
        assert found["model"]["count"] == 9
        settle(states)


def slow(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Reading ahead takes a moment. The folders that were read."""
    done: list[Path] = []
    read = prefetch.read_tensors

    def slowly(folder: Path, *args: Any) -> Any:
        time.sleep(0.2)
        done.append(folder)
        return read(folder, *args)

    monkeypatch.setattr(prefetch, "read_tensors", slowly)
    return done


def readers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("flor reads")]


def test_closing_ends_the_thread_and_nothing_is_read_ahead_after(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = slow(monkeypatch)
    states, _ = ahead(run)
    states.load(ORDER[0])
    states.begin()
    assert readers()
    states.close()
    assert not readers() and len(done) == 1
    states.begin()
    assert not readers()
    assert same(states.load(ORDER[2]), load_checkpoint(run.path, THIRD))


def test_order_is_that_of_the_ways_of_a_task() -> None:
    stretches = (TrainingRange(SECOND, THIRD, (2,)), TrainingRange(THIRD, Position(3, 30), (3,)))
    task = Task("", "", "", (
        ReplayPass("train", (), "", positions=(THIRD,), stretches=stretches),
        ReplayPass("validate", (), "", positions=(FIRST,)),
        ReplayPass("state", (), "", positions=(SECOND, THIRD)),
    ))  # fmt: skip
    weights = [StateRequest(SECOND, ("model",)), StateRequest(THIRD, ("model",))]
    assert order_of(task) == [
        *weights,
        StateRequest(FIRST),
        StateRequest(SECOND),
        StateRequest(THIRD),
    ]


def test_available_memory_is_that_of_the_narrowest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, own, group = (
        tmp_path / "meminfo",
        tmp_path / "cgroup",
        tmp_path / "fs" / "job" / "task",
    )
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n")
    own.write_text("1:name=systemd:/\n0::/job/task\n")
    group.mkdir(parents=True)
    for name, path in {"MEMINFO": meminfo, "OWN_CGROUP": own, "CGROUPS": tmp_path / "fs"}.items():
        monkeypatch.setattr(host_memory, name, path)
    assert host_memory.available_bytes() == 8000 * 1024
    for folder, limit in ((group, "max"), (group.parent, "5000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("4000")
        (folder / "memory.stat").write_text("anon 3000\ninactive_file 700\n")
    assert host_memory.available_bytes() == 1700
    own.unlink()
    assert host_memory.available_bytes() == 8000 * 1024
