"""A writer that outlives its training, and who waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from posting import Post, wait_until, writer_of

from flor_plugins.errors import StoreError
from flor_plugins.recorder.checkpointing import writer_lock
from flor_plugins.records import RecordingProcess
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.files import PARTIAL, read_json, write_json

ROOT = Path(__file__).parents[1]

TRAINING = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from posting import Post, writer_of
post = Post(Path({run!r}))
{before}
for step in range(6):
    post.send(step, 1 << 21)
    {each}
print(writer_of(post.folder), flush=True)
{after}
"""


def start(
    folder: Path, *, before: str = "", each: str = "", after: str, **options: Any
) -> subprocess.Popen[str]:
    run = folder / "run"
    run.mkdir()
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(TRAINING).format(
        root=str(ROOT), tests=tests, run=str(run), before=before, each=each, after=after
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options
    )


def pid_said(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_training_that_is_killed_leaves_a_writer_that_finishes_and_goes(tmp_path: Path) -> None:
    with start(tmp_path, after="os.kill(os.getpid(), signal.SIGKILL)") as training:
        pid = pid_said(training)
        assert training.wait() == -signal.SIGKILL
    writer_lock.wait_for_writer(tmp_path / "run")
    assert not (tmp_path / "run" / writer_lock.FILE).exists()
    steps = [one.position.step for one in list_checkpoints(tmp_path / "run")]
    assert steps and steps == [*range(len(steps))]  # what was handed over, in order
    assert not list(tmp_path.rglob(f"{PARTIAL}*"))
    wait_until(lambda: is_dead(pid), "the writer is still there")


def is_dead(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def test_a_process_that_the_training_forked_does_not_keep_the_writer_alive(tmp_path: Path) -> None:
    """It has the other end of the socket too: the writer hears of no end."""
    after = """
if (child := os.fork()) == 0:
    os.close(1); time.sleep(60); os._exit(0)
Path("child").write_text(str(child))
os.kill(os.getpid(), signal.SIGKILL)
"""
    with start(tmp_path, after=after, cwd=tmp_path) as training:
        pid = pid_said(training)
        training.wait()
    try:
        wait_until(lambda: is_dead(pid), "the writer waits for a training that is no more")
        assert not (tmp_path / "run" / writer_lock.FILE).exists()
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_training_does_not_end_its_writer(
    number: int, tmp_path: Path
) -> None:
    # the training ignores it, as one does that saves what it has
    before = f"signal.signal({int(number)}, signal.SIG_IGN)"
    after = "post.client.flush(); print(writer_of(post.folder)); post.send(6); post.close()"
    each = (
        f"step == 2 and (post.client.flush(), os.killpg(0, {int(number)}), "
        f"os.kill(writer_of(post.folder), "
    )
    each += f"{int(number)}))"
    with start(tmp_path, before=before, each=each, after=after, start_new_session=True) as training:
        output, _ = training.communicate(timeout=60)
    assert training.returncode == 0
    first, last = output.split()
    assert first == last  # it was not started again
    assert [one.position.step for one in list_checkpoints(tmp_path / "run")] == [*range(7)]


def test_a_writer_has_the_lowest_priority_among_processes_and_among_sessions(
    tmp_path: Path,
) -> None:
    post = Post(tmp_path)
    post.send(0)
    post.client.flush()
    pid = writer_of(tmp_path)
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.getsid(pid) == pid  # a terminal's Ctrl-C and hangup go to the training alone
    if Path("/proc/self/autogroup").exists():
        # Linux shares the processors between sessions before it looks at anybody's niceness
        assert Path(f"/proc/{pid}/autogroup").read_text().split()[-1] == "19"
    post.close()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="only Linux has autogroups")
def test_a_writer_that_is_waited_for_in_the_end_has_its_share_of_the_processors(
    tmp_path: Path,
) -> None:
    post = Post(tmp_path)
    post.send(0)
    post.client.flush()
    pid, seen = writer_of(tmp_path), set()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # else it may be done before anybody looks
    post.send(1)
    closing = threading.Thread(target=post.close)
    closing.start()

    def is_raised() -> bool:
        seen.add(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
        return "0" in seen

    try:
        wait_until(is_raised, "nobody raised it")
    finally:
        os.kill(pid, signal.SIGCONT)
        closing.join()
    assert post.arrived() == [0, 1] and is_dead(pid)


def test_the_package_is_found_where_the_training_found_it(tmp_path: Path) -> None:
    """`python -c` and `python -m` look for modules in the present folder, and so does a
    relative PYTHONPATH.
    """
    (tmp_path / "run").mkdir()
    code = (
        "from pathlib import Path; from posting import Post, writer_of; "
        f"post = Post(Path({str(tmp_path / 'run')!r})); pid = writer_of(post.folder); "
        f"post.send(0); "
        "post.client.flush(); assert pid == writer_of(post.folder), 'a second one was "
        "started'; post.close()"
    )
    env = {**os.environ, "PYTHONPATH": "tests", "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [one.position.step for one in list_checkpoints(tmp_path / "run")] == [0]


# ---- presence


def test_nobody_waits_for_a_writer_that_is_gone_or_elsewhere(tmp_path: Path) -> None:
    writer_lock.wait_for_writer(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    writer_lock.announce(tmp_path, ended.pid)
    ended.wait()
    writer_lock.wait_for_writer(tmp_path)
    for one in (
        {"host": "another", "pid": os.getpid(), "started": ""},
        ["no", "process"],
        {"pid": 1},
    ):
        write_json(tmp_path / writer_lock.FILE, one)
        writer_lock.wait_for_writer(tmp_path)
    (tmp_path / writer_lock.FILE).write_text("{ torn")
    writer_lock.wait_for_writer(tmp_path)


def test_a_writer_that_takes_too_long_is_named(tmp_path: Path) -> None:
    writer_lock.announce(tmp_path, os.getpid())
    with pytest.raises(
        StoreError, match=f"still being written by process {os.getpid()}.*kill -9 {os.getpid()}"
    ):
        writer_lock.wait_for_writer(tmp_path, timeout_s=0.05)
    writer_lock.leave(tmp_path)
    writer_lock.leave(tmp_path)
    writer_lock.wait_for_writer(tmp_path)


def test_a_process_id_that_was_given_again_is_not_taken_for_the_writer(tmp_path: Path) -> None:
    writer_lock.announce(tmp_path, os.getpid())
    was = RecordingProcess(**read_json(tmp_path / writer_lock.FILE))
    write_json(
        tmp_path / writer_lock.FILE,
        {"host": was.host, "pid": was.pid, "started": was.started + "0"},
    )
    writer_lock.wait_for_writer(tmp_path)
