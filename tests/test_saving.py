"""Whatever a training does between its checkpoints: each that is written is the state as it
was when it was taken.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saving_cases import OPTIMIZERS, SHAPES, Told, Training, equal, training

from flor_plugins.recorder.checkpointing import staging_copy
from flor_plugins.recorder.checkpointing.staging import CheckpointStaging
from flor_plugins.records import Position
from flor_plugins.store import files
from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.checkpoints.manifest import read_manifest, records


def check(made: Training) -> None:
    """The property: a state is on the disk exactly as it was taken, or somebody was told
    that it is not there.
    """
    listed = {one.position for one in list_checkpoints(made.run)}
    assert listed == set(made.told.written_) and len(made.told.written_) == len(listed)
    assert (
        listed | made.told.errors.keys() == made.taken.keys()
        and not listed & made.told.errors.keys()
    )
    for position in listed:
        assert equal(load_checkpoint(made.run, position), made.taken[position]), position
    for error in made.told.errors.values():
        assert "changed before they were copied" in error


saves = st.just(("save",))
steps = st.tuples(st.just("step"), st.sampled_from(list(OPTIMIZERS)), st.booleans())
writes = st.tuples(
    st.just("write"), st.integers(0, 99), st.sampled_from(["counted", "data", "data and back"])
)
freezes = st.tuples(
    st.just("freeze"), st.sampled_from(list(OPTIMIZERS)), st.integers(0, len(SHAPES) - 1)
)
draws = st.just(("draw",))
flushes = st.just(("flush",))
EVENTS = st.lists(st.one_of(saves, saves, steps, writes, freezes, draws, flushes), max_size=40)


def do(made: Training, event: tuple[Any, ...]) -> None:
    what, *rest = event
    if what == "save":
        made.save()
    elif what == "step":
        made.step(*rest)
    elif what == "write":
        tensors = made.tensors()
        write(tensors[rest[0] % len(tensors)], rest[1])
    elif what == "freeze":
        one = made.models[rest[0]][f"w{rest[1]}"]
        one.requires_grad_(not one.requires_grad)
    elif what == "draw":
        torch.rand(1)
    else:
        made.saver.flush()


@torch.no_grad()
def write(tensor: torch.Tensor, how: str) -> None:
    if how == "counted":
        tensor.add_(1)
    else:
        tensor.data.add_(1)
    if how == "data and back":
        tensor.data.sub_(1)


@given(EVENTS, st.sampled_from([0, staging_copy.AT_ONCE]))
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_checkpoint_is_the_state_as_it_was_taken_or_is_said_not_to_be_there(
    monkeypatch: pytest.MonkeyPatch, events: list[tuple[Any, ...]], small: int
) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)  # no power is lost here
    monkeypatch.setattr(staging_copy, "AT_ONCE", small)  # else most tensors here are copied at once
    with tempfile.TemporaryDirectory() as folder:
        with training(Path(folder)) as made:
            for event in events:
                do(made, event)
        check(made)


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_ordinary_training_loses_no_checkpoint(
    name: str, in_process: bool, tmp_path: Path
) -> None:
    with training(tmp_path, in_process=in_process) as made:
        for number in range(24):
            if number % 3 == 0:
                made.save()
            made.step(name, number % 2 == 0)
            torch.rand(1)
    check(made)
    assert len(made.told.written_) == 8 and made.told.errors == {} and made.synced == 8


def test_frozen_tensors_are_references_on_the_disk_and_unfrozen_ones_are_not(
    tmp_path: Path,
) -> None:
    with training(tmp_path) as made:
        for one in made.models["fused"].values():
            one.requires_grad_(False)
        for number in range(6):
            if number == 4:
                made.models["fused"]["w3"].requires_grad_(True)
            made.save()
            made.step("fused", False)
            made.saver.flush()
    check(made)
    assert made.told.errors == {}
    held = [records(read_manifest(one.path)) for one in list_checkpoints(tmp_path)]
    assert [one["model/fused.w0"].is_own for one in held] == [
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert [one["model/fused.w3"].is_own for one in held] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert held[3]["model/fused.w3"].file == f"../{Position(0, 0)}/model.safetensors"


def test_random_states_that_stay_and_then_change_lose_no_checkpoint(tmp_path: Path) -> None:
    """They come as fresh tensors, which the allocator puts where the last ones lay."""
    with training(tmp_path) as made:
        for number in range(12):
            if number % 4 == 0:
                torch.rand(1)
            made.save()
            made.saver.close_window()
            made.saver.flush()
    check(made)
    assert made.told.errors == {} and len(made.told.written_) == 12


def test_after_a_checkpoint_that_others_refer_to_is_gone_the_next_but_one_holds_everything(
    tmp_path: Path,
) -> None:
    with training(tmp_path) as made:
        for number in range(7):
            if number == 4:
                for one in list_checkpoints(tmp_path):
                    one.path.rename(tmp_path / one.path.name)  # somebody deleted them
            made.save()
            made.saver.close_window()
            made.saver.flush()
    assert list(made.told.errors) == [Position(0, 4)]
    assert (
        "is gone. It is not written; the next one will hold all of it"
        in made.told.errors[Position(0, 4)]
    )
    assert [one.position.step for one in list_checkpoints(tmp_path)] == [5, 6]
    for step in (5, 6):
        assert equal(load_checkpoint(tmp_path, Position(0, step)), made.taken[Position(0, step)])


def test_what_goes_wrong_while_a_state_is_copied_is_told_and_the_next_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(item: Any, buffer: Any) -> None:
        raise MemoryError("no room to copy")

    with training(tmp_path) as made:
        made.save()
        made.step("sgd", False)  # what is trained was seen to stay: from now on it is copied later
        with monkeypatch.context() as patch:
            # called after each copy that is made later, and no other
            patch.setattr(staging_copy, "_copied", broken)
            made.save()
            made.step("sgd", False)
        made.save()
    assert made.told.errors == {Position(0, 1): "no room to copy"}
    assert [one.position.step for one in list_checkpoints(tmp_path)] == [0, 2]


def test_rows_that_cannot_be_made_safe_cost_the_checkpoint_that_needs_them(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no space left")

    with training(tmp_path) as made:
        made.saver._sync = fail
        made.save()
        made.saver.close_window()
        made.saver._sync = made._sync
        made.save()
    assert made.told.errors == {Position(0, 0): "no space left"}
    assert [one.position.step for one in list_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize("is_beside", [True, False])
def test_what_is_copied_beside_the_training_is_told_in_seconds_and_what_it_copies_itself_is_not(
    is_beside: bool, tmp_path: Path
) -> None:
    told: list[float] = []
    saver = CheckpointStaging(tmp_path, Told(), put=lambda job: job(), sync=lambda: None)
    saver._listener.copied = told.append  # type: ignore[method-assign]
    tensor = torch.ones(16 << 20)
    for step in range(2):  # when it was seen to stay it is copied later
        saver.save(
            Position(0, step), {"model": {"w": tensor}}, {tensor.data_ptr()} if is_beside else set()
        )
        end = time.monotonic() + 10
        while (state := saver._open) and not state.copies._done.done() and time.monotonic() < end:
            time.sleep(0.001)
        saver.close_window()
        tensor.add_(1)
    saver.close()
    assert len(told) == 2 and (told[1] > 0) == is_beside


def test_the_tensors_of_a_state_are_let_go_when_its_window_closes(tmp_path: Path) -> None:
    jobs: list[Callable[[], Any]] = []
    saver = CheckpointStaging(
        tmp_path, Told(), put=jobs.append, sync=lambda: None, in_process=False
    )
    tensor = torch.ones(1000)
    gone = weakref.ref(tensor.untyped_storage())
    saver.save(Position(0, 0), {"model": {"w": tensor}}, {tensor.data_ptr()})
    saver.close_window()
    del tensor
    gc.collect()
    assert gone() is None and len(jobs) == 1  # not handed over yet
    jobs[0]()
    saver.close()
    assert torch.equal(load_checkpoint(tmp_path, Position(0, 0))["model"]["w"], torch.ones(1000))


def test_without_room_a_state_is_not_taken_and_nothing_waits(tmp_path: Path) -> None:
    jobs: list[Callable[[], Any]] = []
    told = Told()
    saver = CheckpointStaging(tmp_path, told, put=jobs.append, sync=lambda: None, in_process=False)
    large = torch.zeros(140 << 20, dtype=torch.uint8)
    for step in range(2):
        assert saver.has_room()
        assert saver.save(Position(0, step), {"model": {"w": large}}, set()) == ()
    assert not saver.has_room()
    assert saver.save(Position(0, 2), {"model": {"w": large}}, set()) is None
    saver.close_window()
    for job in jobs:
        job()
    saver.close()
    assert [one.step for one in told.written_] == [0, 1]


def test_after_close_no_thread_is_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with training(tmp_path, in_process=True) as made:
        made.save()
        made.step("adamw", False)
        made.save()
    assert set(threading.enumerate()) == before
