"""The worker processes of a task: one, or as many as trained the run together.

They end together, too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

from flor_plugins.records import Run, to_json
from flor_plugins.records.events import Event, WorkerFailure, event_from_json
from flor_plugins.replayer.execution.fork_client import ForkedWorker, servers
from flor_plugins.replayer.execution.worker_order import WorkerOrder
from flor_plugins.replayer.sandbox.child_processes import IMPORT_PATH

Worker = subprocess.Popen[bytes] | ForkedWorker

GRACE_S = 30.0  # for the others to end when the first has
POLL_S = 0.2

# What tells a process that it trains with others, and who they are: torchrun's, Lightning's and
# SLURM's names.
_PLACE_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_NAME",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
)


class WorkerGroup:
    """The processes that do a task. Only the first one's events are told as they come.

    env: their environment. order: the task as the worker reads it. folder: where orders and
    outputs lie; `output.txt` is the first one's.
    given_up: once it is set, all are ended.
    """

    def __init__(
        self,
        framework: str,
        env: Mapping[str, str],
        order: WorkerOrder,
        folder: Path,
        count: int,
        *,
        given_up: threading.Event | None = None,
    ) -> None:
        self.count = count
        self._framework, self._order, self._folder = framework, order, folder
        self._env = {**env, **_group_variables(count)}
        self._given_up = given_up or threading.Event()
        self._is_over = threading.Event()
        self._processes: list[Worker] = []
        self._codes: list[int | None] = []  # None for one that had to be ended
        read, write = os.pipe()
        try:
            for rank in range(count):
                self._start(rank, write)
        except BaseException:
            os.close(read)
            self.end(at_once=True)
            raise
        finally:
            os.close(write)
        self._events = os.fdopen(read)
        threading.Thread(target=self._end_with_others, name="flor-workers", daemon=True).start()

    def events(self) -> Iterator[Event]:
        """What the first process tells, until it ends."""
        with self._events as lines:
            for line in lines:
                if line.endswith("\n"):  # else its process was killed while it wrote
                    yield event_from_json(json.loads(line))

    def end(self, *, at_once: bool = False) -> int:
        """Wait until all have ended, or make them. Returns the exit status of the first."""
        if self._processes and not at_once:
            self._processes[0].wait()
        self._is_over.set()
        self._codes = [_ended(process, 0.0 if at_once else GRACE_S) for process in self._processes]
        return self._processes[0].wait() if self._processes else 1

    def events_of(self, rank: int) -> list[Event]:
        """Return the events of a process that is not the first."""
        path = self._file("events", rank, ".jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [event_from_json(json.loads(line)) for line in lines]

    def failure(self, before: float | None) -> str | None:
        """Why one of the others failed, and none before it.

        before: when the first process said that it failed itself; None if it did not. Where its
        partner died it can only say that the connection is lost.
        """
        for rank, code in enumerate(self._codes[1:], start=1):
            failed = next(
                (event for event in self.events_of(rank) if isinstance(event, WorkerFailure)), None
            )
            what = failed.message if failed else f"it died (exit status {code})"
            if code not in (0, None) and (not failed or before is None or failed.at < before):
                return f"rank {rank}: {what}; its output is in {self._file('output', rank, '.txt')}"
        return None

    def killed_by(self) -> int | None:
        """Return the signal that ended one of them, and not by us; None where none did."""
        first, *others = self._codes
        killed = [-code for code in others if code is not None and code < 0]
        if not killed and first is not None and first < 0 and not any(others):
            killed = [-first]
        return killed[0] if killed else None

    # ---- inside

    def _start(self, rank: int, pipe: int) -> None:
        task, env = self._file("task", rank, ".json"), self._env
        task.write_text(json.dumps(to_json(replace(self._order, rank=rank)), indent=1))
        if self.count > 1:  # where LOCAL_RANK is set Lightning starts no processes
            env = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with ExitStack() as files:
            log = files.enter_context(self._file("output", rank, ".txt").open("a"))
            events_fd = pipe
            if rank:
                events = self._file("events", rank, ".jsonl").open("w")
                events_fd = files.enter_context(events).fileno()
            warm = None
            if self.count == 1:  # the environment of one of several is its own
                warm = servers().fork(self._framework, env, task, events_fd, log.fileno())
            self._processes.append(warm or _fresh(task, events_fd, log, env))

    def _file(self, name: str, rank: int, ending: str) -> Path:
        return self._folder / (f"{name}-{rank}{ending}" if rank else f"{name}{ending}")

    def _end_with_others(self) -> None:
        """A process that waits for a dead one in a collective would wait for half an hour."""
        while not self._is_over.wait(POLL_S):
            if self._given_up.is_set():
                for process in self._processes:
                    _ended(process, 0.0)
                return
            if any(other.poll() not in (0, None) for other in self._processes[1:]):
                _ended(self._processes[0], GRACE_S / 3)  # it may be about to say so itself
                return


def _group_variables(count: int) -> dict[str, str]:
    """What torch.distributed and both trainers read, where several train together."""
    if count == 1:
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _fresh(
    task: Path, events_fd: int, log: IO[str], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A worker that imports everything itself."""
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "flor_plugins.replayer.execution.worker",
            str(task),
            str(events_fd),
        ],
        pass_fds=[events_fd],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
    )


def _ended(process: Worker, patience_s: float) -> int | None:
    """Return its exit status; None if it did not end by itself in that time, and was ended."""
    try:
        return process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def environment(run: Run) -> dict[str, str]:
    """Return the environment of a run's workers: the recorded variables that matter.

    None places a process among others, and trackers are told to stay silent.
    """
    recorded = {**os.environ, **run.launch.env}
    silent = {
        "WANDB_MODE": "disabled",
        "COMET_MODE": "disabled",
        "NEPTUNE_MODE": "debug",
        "CLEARML_OFFLINE_MODE": "1",
        "SWANLAB_MODE": "disabled",
        "MLFLOW_TRACKING_URI": f"file:{tempfile.gettempdir()}/flor-mlflow",
        "PYTHONUNBUFFERED": "1",
    }
    # -P keeps the present folder off the import path: the user's newer files must not be found
    # there.
    paths = [*filter(None, recorded.get("PYTHONPATH", "").split(os.pathsep)), IMPORT_PATH]
    kept = {
        name: value
        for name, value in recorded.items()
        if name not in _PLACE_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    return {**kept, **silent, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
