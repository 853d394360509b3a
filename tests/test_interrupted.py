"""Ctrl-C, and who asks is killed: what was computed stays, nobody is left behind, the rest
is computed next time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import Project

pytestmark = pytest.mark.xdist_group("killed")

EPOCHS = 6
PATIENCE_S = 120.0
SLOW = """
import os, time
import flor_plugins as flor

@flor.metric(at="epoch")
def slow(ctx):
    print("CALLED")
    time.sleep(float(os.environ["SLOW_S"]))
    return float(sum(p.sum() for p in ctx.model.parameters()))
"""
# A test run in the background of a shell has SIGINT ignored, and so have its children.
HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = HEARING + "import sys; sys.argv[0] = 'flor-hf'; from flor_plugins.cli import main; main()"
ASKS = {
    "flor-hf": ["-c", COMMAND, "replay", "--hook", "ignored/slow.py", "--metrics", "slow", "--yes"],
    "python": [
        "-c",
        HEARING + "import flor_plugins as flor; flor.replay('slow', hooks=['ignored/slow.py'])",
    ],
    "ray": [
        "-c",
        COMMAND,
        "replay",
        "--hook",
        "ignored/slow.py",
        "--metrics",
        "slow",
        "--yes",
        "--engine",
        "ray",
    ],
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = replaying.make(tmp_path_factory.mktemp("recorded") / "project")
    project.write(
        "train.py", replaying.TRAIN["lightning"] + f'train(FlorCallback("toy"), epochs={EPOCHS})\n'
    )
    project.write("ignored/slow.py", SLOW)
    project.python("train.py")
    return project


class Asking:
    """A process that asks for the metric of all epochs. Process group, store and temporary
    files are its own.

    Its descendants are known by a variable that they inherit.
    """

    def __init__(self, recorded: Project, folder: Path) -> None:
        self.project, self.store = recorded, Store(folder / "store")
        shutil.copytree(recorded.store.root, self.store.root)
        self.scratch = folder / "t"
        self.scratch.mkdir()
        self.mark = f"FLOR_TEST_MARK={secrets.token_hex(8)}"

    def begin(self, who: str, seconds: float | None = None) -> subprocess.Popen[str]:
        """seconds: that a position takes; Ray needs some itself to end its workers."""
        if seconds is None:
            seconds = 4.0 if who == "ray" else 0.4
        name, _, value = self.mark.partition("=")
        env = {
            **os.environ,
            "FLOR_DIR": str(self.store.root),
            "TMPDIR": str(self.scratch),
            name: value,
        }
        return subprocess.Popen(
            [sys.executable, *ASKS[who]],
            cwd=self.project.root,
            env={**env, "SLOW_S": str(seconds)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def rows(self) -> Counter[int]:
        """How many values there are of each epoch."""
        [run] = list_runs(self.store)
        return Counter(row.position.epoch for source, row in read_run(run.path) if source.is_replay)

    def living(self) -> list[str]:
        """The command lines of its processes."""
        return [
            found for one in Path("/proc").glob("[0-9]*") if (found := _command(one, self.mark))
        ]

    def sandboxes(self) -> list[str]:
        worktrees = self.project.git("worktree", "list").splitlines()[1:]
        return [*worktrees, *map(str, self.scratch.rglob("flor-sandbox-*"))]

    def called(self) -> int:
        return sum(
            path.read_text().count("CALLED")
            for path in self.store.root.glob("replays/*/*/output.txt")
        )


def _command(process: Path, mark: str) -> str:
    try:
        if mark.encode() not in (process / "environ").read_bytes().split(b"\0"):
            return ""
        # "" for one that is dead
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("who", "is_for_all"),
    [
        ("flor-hf", True),  # a terminal sends Ctrl-C to all processes of the group
        pytest.param("python", False, marks=pytest.mark.slow),
        pytest.param("flor-hf", False, marks=pytest.mark.slow),
        pytest.param("python", True, marks=pytest.mark.slow),
        pytest.param("ray", True, marks=pytest.mark.slow),
        pytest.param("ray", False, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_loses_at_most_the_position_in_flight(
    recorded: Project, tmp_path: Path, who: str, is_for_all: bool
) -> None:
    asking = Asking(recorded, tmp_path)
    process = asking.begin(who)
    wait_for(lambda: len(asking.rows()) >= 2 or process.poll() is not None)
    before = asking.rows()
    (os.killpg if is_for_all else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    # Python ends itself by the signal after a KeyboardInterrupt that nobody caught
    assert process.returncode == (-signal.SIGINT if who == "python" else 130), said
    wait_for(lambda: not asking.living())  # a fork server hears of the end of who asked
    assert asking.sandboxes() == []
    kept = asking.rows()
    assert set(kept.values()) == {1} and set(before) <= set(kept) and len(kept) < EPOCHS
    if who != "python":
        assert (
            said.splitlines()[-1]
            == "flor: interrupted; what was computed is kept, ask again to go on"
        )
    again = asking.begin(who, 0)
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert asking.rows() == Counter(range(1, EPOCHS + 1))
    assert asking.called() <= EPOCHS + 1


@pytest.mark.parametrize("who", ["flor-hf", pytest.param("ray", marks=pytest.mark.slow)])
def test_workers_end_with_the_process_that_asked(
    recorded: Project, tmp_path: Path, who: str
) -> None:
    asking = Asking(recorded, tmp_path)
    process = asking.begin(who)
    wait_for(lambda: len(asking.rows()) >= 2 or process.poll() is not None)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: not asking.living())
    kept = asking.rows()
    assert len(kept) < EPOCHS
    again = asking.begin(who, 0)
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert asking.rows() == Counter(range(1, EPOCHS + 1))
    assert asking.called() <= EPOCHS + 1
    assert len(recorded.git("worktree", "list").splitlines()) == 1
