"""The process that writes: whatever becomes of it, states arrive whole, and no training is
held up or ended.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from posting import SIZE, Post, job, kill_writer, open_files, wait_until, writer_of

from flor_plugins.recorder.checkpointing import writer_lock
from flor_plugins.recorder.checkpointing.shared_buffers import SharedBuffer
from flor_plugins.recorder.checkpointing.writer_client import RESTARTS, WriteOrder
from flor_plugins.recorder.checkpointing.writer_process import CheckpointWriter, WriterMessage
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import save_checkpoint
from flor_plugins.store.codec import encode
from flor_plugins.store.files import PARTIAL


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Post]]:
    made: list[Post] = []

    def post(**options: Any) -> Post:
        made.append(Post(tmp_path / "run", **options))
        return made[-1]

    (tmp_path / "run").mkdir()
    yield post
    for one in made:
        one.close()


def test_states_arrive_whole_and_each_is_answered_once(make: Callable[..., Post]) -> None:
    post = make()
    for step in range(8):
        post.send(step)
    post.close()
    assert post.arrived() == [*range(8)]
    assert [one["position"] for one in post.answers] == [
        f"epoch=0,step={step}" for step in range(8)
    ]
    assert all(one["files"]["model.safetensors"] > 4 * SIZE and set(one["hashes"]) == {"model/w"}
               for one in post.answers)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_that_is_killed_at_any_moment_loses_no_state(
    seed: int, make: Callable[..., Post]
) -> None:
    post, chance = make(), random.Random(seed)
    for step in range(RESTARTS + 3):
        post.send(step, SIZE * 4)
        if step % 2 == 0:
            time.sleep(chance.uniform(0, 0.1))  # from before it has started to after it has written
            kill_writer(post.folder)
    post.close()
    assert post.arrived() == [*range(RESTARTS + 3)]
    assert sorted(one["position"] for one in post.answers) == [
        f"epoch=0,step={s}" for s in range(RESTARTS + 3)
    ]
    assert not [one for one in post.answers if "failed" in one]


def test_a_writer_that_dies_again_and_again_is_followed_by_a_thread(
    make: Callable[..., Post],
) -> None:
    post, pids = make(), set()
    for step in range(RESTARTS):
        pids.add(writer_of(post.folder))
        kill_writer(post.folder)
        post.send(step)
        post.client.flush()
    assert len(pids) == RESTARTS and writer_of(post.folder) is None
    assert [one.name for one in threading.enumerate() if one.name.startswith("flor-")] == [
        "flor-checkpoint-writer"
    ]
    post.send(RESTARTS)
    post.close()
    assert post.arrived() == [*range(RESTARTS + 1)]


def test_a_writer_that_died_between_two_states_is_started_for_the_next_one(
    make: Callable[..., Post],
) -> None:
    post = make()
    post.send(0)
    post.client.flush()
    kill_writer(post.folder)
    post.send(1)
    post.close()
    assert post.arrived() == [0, 1]


def test_where_no_process_can_be_started_a_thread_writes(
    make: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    handles = open_files()
    post = make()
    assert open_files() <= handles
    post.send(3)
    post.close()
    assert post.arrived() == [3] and writer_of(post.folder) is None


def test_where_a_process_cannot_even_begin_a_thread_writes(
    make: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    post = make()
    for step in range(2 * RESTARTS):
        post.send(step)
        post.client.flush()
    post.close()
    assert post.arrived() == [*range(2 * RESTARTS)]


def test_a_run_that_cannot_be_written_to_is_answered_so_and_not_a_reason_to_die(
    make: Callable[..., Post],
) -> None:
    post = make()
    pid = writer_of(post.folder)
    (post.folder / writer_lock.FILE).unlink()
    post.folder.rmdir()
    post.folder.write_text("no folder")
    post.send(0)
    post.client.flush()
    assert pid is not None and Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
    post.send(1)
    post.close()
    assert ["could not be written" in one["failed"] for one in post.answers] == [True, True]


def test_a_state_that_makes_no_sense_costs_only_itself(make: Callable[..., Post]) -> None:
    post = make()
    post.send(0)
    buffer = post.buffers[0]
    poison = job(1, buffer.handle)
    poison["pieces"][0][1] = "float7"
    post.client.send(WriteOrder(poison, buffer, post.answers.append))
    pid = writer_of(post.folder)
    post.send(2)
    post.client.flush()
    assert writer_of(post.folder) == pid
    assert post.arrived() == [0, 2] and "float7" in post.answers[1]["failed"]


def test_a_state_that_is_no_json_is_refused_before_it_is_sent(make: Callable[..., Post]) -> None:
    post = make()
    post.send(0)
    bad = job(1, post.buffers[0].handle) | {"tree": {"model": float("nan")}}
    with pytest.raises(ValueError, match="JSON"):
        post.client.send(WriteOrder(bad, post.buffers[0], post.answers.append))
    post.close()
    assert post.arrived() == [0] and len(post.answers) == 1


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_stumbles_over_an_answer_does_not_keep_the_others_from_theirs(
    in_process: bool, make: Callable[..., Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    post, said = make(in_process=in_process), []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(args.exc_type))

    def stumble(answer: WriterMessage) -> None:
        raise ValueError("a mistake")

    buffer = SharedBuffer(4 * SIZE)
    post.buffers.append(buffer)
    post.client.send(WriteOrder(job(0, buffer.handle), buffer, stumble))
    post.send(1)
    post.close()
    assert said == [ValueError] and [one["position"] for one in post.answers] == ["epoch=0,step=1"]


def test_two_states_of_one_position_are_both_answered(make: Callable[..., Post]) -> None:
    post = make()
    for _ in range(2):
        post.send(5)
    post.close()
    assert len(post.answers) == 2 and post.arrived() == [5]


def test_what_a_killed_writer_left_half_is_no_checkpoint_and_is_not_in_the_way(
    tmp_path: Path,
) -> None:
    torn = tmp_path / "checkpoints" / f"{PARTIAL}1"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    buffer = SharedBuffer(4 * SIZE)
    answer = CheckpointWriter(tmp_path).write(job(0, 0) | {"number": 7}, buffer.array.data)
    assert answer["number"] == 7 and "failed" not in answer
    buffer.close()


@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_a_damaged_checkpoint_keeps_no_writer_from_starting(tmp_path: Path, warned: Any) -> None:
    one = save_checkpoint(tmp_path, Position(0, 1), encode({"model": {"w": torch.zeros(SIZE)}}))
    (one.path / "state.json").write_text("{")
    buffer = SharedBuffer(4 * SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        writer = CheckpointWriter(tmp_path)
    # there is one of that name
    assert "failed" in writer.write(job(1, 0) | {"number": 0}, buffer.array.data)
    assert (
        writer.write(job(2, 0) | {"number": 1}, buffer.array.data)["files"]["model.safetensors"]
        > 4 * SIZE
    )
    buffer.close()


def test_after_close_no_process_no_handle_and_no_thread_is_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    gc.collect()  # of what other tests left
    threads, handles = set(threading.enumerate()), open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for is_killed in (False, True, False):
            post = Post(tmp_path / "run")
            pid = writer_of(post.folder)
            post.send(1)
            if is_killed:
                kill_writer(post.folder)
            post.close()
            assert writer_of(post.folder) is None
            assert not Path(f"/proc/{pid}").exists()
            del post
            gc.collect()
    wait_until(lambda: set(threading.enumerate()) == threads, "a thread is left")
    assert open_files() <= handles


def test_sending_never_waits_for_a_writer_that_does_not_read(make: Callable[..., Post]) -> None:
    """It is stopped: nothing moves until it is killed, and then all goes to the next one."""
    post = make()
    pid = writer_of(post.folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    sent = threading.Thread(target=lambda: [post.send(step, 1 << 12) for step in range(200)])
    sent.start()
    sent.join(60)
    assert not sent.is_alive() and post.answers == []
    os.kill(pid, signal.SIGKILL)
    post.close()
    assert post.arrived() == [*range(200)] and len(post.answers) == 200


def test_the_writer_loads_neither_torch_nor_numpy(make: Callable[..., Post]) -> None:
    post = make()
    post.send(0)
    post.client.flush()
    mapped = Path(f"/proc/{writer_of(post.folder)}/maps").read_text()
    assert "xxhash" in mapped and "libtorch" not in mapped and "numpy" not in mapped
    assert os.getpriority(os.PRIO_PROCESS, writer_of(post.folder) or 0) == 19
