"""`gc` beside processes that rewrite the same checkpoints, go on with a run, or still write it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posting import SIZE, job

from flor_plugins.recorder.checkpointing import writer_lock
from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.writer_process import CheckpointWriter
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import compression, folder_of, list_checkpoints, load_checkpoint
from flor_plugins.store.checkpoints.tombstones import write_tombstone
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.gc import collect, plan_collection
from flor_plugins.store.gc.disk_usage import evict, evict_optimizer
from flor_plugins.store.layout import Store
from tests.retaining import at, check_all, ended, train

pytestmark = pytest.mark.xdist_group("killed")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


def test_of_a_killed_run_whose_writer_is_between_two_states_nothing_is_given_up(
    store: Store,
) -> None:
    run = train(store, 6, status="killed")
    writer_lock.announce(run.path, os.getpid())
    done = collect(plan_collection(store, 0))
    assert "still writing" in done.problem and check_all(run.path) == dict.fromkeys(
        range(7), "full"
    )
    writer_lock.leave(run.path)
    collect(plan_collection(store, 0))
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_what_is_read_again_since_the_plan_is_no_leftover(store: Store) -> None:
    """A killed process left a compressed file; while a person is asked, another one
    compresses for good.
    """
    run = train(store, 6)
    left = folder_of(run.path, at(1)) / "model.cold.safetensors"
    left.write_bytes(b"half")
    torn = folder_of(run.path, at(2)) / f"{PARTIAL}{ended().pid}-abcd"
    torn.write_bytes(b"half")
    plan = plan_collection(store)
    assert {one.path for one in plan.leftovers} == {left, torn}
    compression.compress_run(run.path)
    collect(plan)
    assert left.exists() and not torn.exists()
    assert check_all(run.path) == dict.fromkeys(range(7), "full")


def test_files_that_another_process_has_not_named_yet_are_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, verify, others = train(store, 6), compression._verify, list[threading.Thread]()

    def collect_meanwhile(*args: Any) -> None:
        if not others:
            plan = plan_collection(store)
            assert plan.leftovers  # new files beside the old ones, as a killed process leaves them
            others.append(threading.Thread(target=collect, args=(plan,)))
            others[0].start()
            others[0].join(1)  # it waits for its turn
        verify(*args)

    monkeypatch.setattr(compression, "_verify", collect_meanwhile)
    compression.compress_run(run.path)
    others[0].join(60)
    assert check_all(run.path) == dict.fromkeys(range(7), "full")


GIVEN_UP: dict[str, Callable[[Path], None]] = {
    "the optimizer": lambda run: evict_optimizer(run, Position(0, 0)),
    "all but the weights": lambda run: write_tombstone(run, Position(0, 0), ["model/w"]),
    "all": lambda run: evict(run, Position(0, 0)),
}


@pytest.mark.parametrize("what", GIVEN_UP)
def test_a_state_that_refers_to_what_was_given_up_is_not_read_and_the_next_one_is_whole(
    tmp_path: Path, what: str
) -> None:
    """A collection that looked before the run went on, and acted after."""
    buffer, writer = SharedBuffer(8 * SIZE), CheckpointWriter(tmp_path)
    buffer.array[4 * SIZE : 8 * SIZE] = 1

    def write(step: int) -> dict[str, Any]:
        order = job(step, 0) | {"number": step}
        order["tree"]["optimizer"] = {"m": order["tree"]["model"]["w"] | {"key": "optimizer/m"}}
        order["pieces"].append(["optimizer/m", "float32", [SIZE], 4 * SIZE, None])
        return writer.write(order, buffer.array.data)

    assert "failed" not in write(0)
    GIVEN_UP[what](tmp_path)
    answer = write(1)
    assert (
        ("what it needs is gone" in answer["failed"]) if what != "all" else "failed" not in answer
    )
    assert "failed" not in write(2)
    for one in list_checkpoints(tmp_path):
        state = load_checkpoint(tmp_path, one.position)
        assert bool(state["model"]["w"].any()) is False
        assert "optimizer" not in state or state["optimizer"]["m"].view(torch.uint8).eq(1).all()
    assert list_checkpoints(tmp_path)[-1].position == Position(0, 2)
    buffer.close()
