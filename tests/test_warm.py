"""Warm workers: a fork is as good as a fresh process, in the very environment of its run,
and none is left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flor_plugins as flor
from flor_plugins.replayer.execution import fork_client
from flor_plugins.replayer.execution.fork_client import ForkServers, servers
from flor_plugins.replayer.execution.worker_group import environment
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.runs import list_runs
from tests import replaying
from tests.replaying import TRAIN, Project

HOOKS = """
import torch
import flor_plugins as flor

@flor.metric(at="epoch")
def drawn(ctx):
    sums = [float(x.sum()) for x, _ in ctx.val_dataloader]
    return [torch.rand(1).item(), *sums, torch.rand(1).item()]

@flor.metric(at="step")
def norm(ctx):
    yield
    return torch.stack([p.norm() for p in ctx.model.parameters()]).norm()

@flor.metric(at="epoch")
def version(ctx):
    import helper
    return [helper.VALUE, hash("flor")]
"""
ASK = """
import sys, time
import flor_plugins as flor
from flor_plugins.replayer.execution.fork_client import servers

def progress(task, event):
    if event["event"] == "position":
        print(*(one.pid for one in servers()._servers.values()), flush=True)
        if "wait" in sys.argv:
            time.sleep(600)

if __name__ == "__main__":
    flor.replay([sys.argv[1]], hooks=["hooks.py"], run="a", store=".flor", progress=progress)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Runs a and b of two versions of the code, with one PYTHONHASHSEED, and c of the second
    with another one.
    """
    made = replaying.make(tmp_path_factory.mktemp("warm") / "project")
    made.write(
        "train.py",
        "import helper, sys\n"
        + TRAIN["lightning"]
        + "train(FlorCallback(sys.argv[1]), epochs=2)\n",
    )
    made.write("ignored/hooks.py", HOOKS)
    made.write("ignored/ask.py", ASK.replace('"hooks.py"', '"ignored/hooks.py"'))
    for name, value, number in (("a", 1, 1), ("b", 2, 1), ("c", 2, 2)):
        made.write("helper.py", f"VALUE = {value}\n")
        made.python("train.py", name, PYTHONHASHSEED=str(number))
    made.write("helper.py", "raise RuntimeError('a newer version')\n")
    return made


@pytest.fixture(autouse=True, scope="module")
def _no_server_stays() -> Iterator[None]:
    yield
    servers().close()


def ask(project: Project, metric: str, run: str | list[str] = "a", **how: Any) -> Any:
    hooks = [project.root / "ignored/hooks.py"]
    return flor.replay([metric], hooks=hooks, run=run, store=project.store.root, **how)


def values(project: Project, metric: str) -> list[tuple[str, Any, Any, Any]]:
    """What replays have stored, and how exact they were; then it is gone."""
    found = []
    for run in list_runs(project.store):
        for source, row in read_run(run.path, (metric,)):
            if source.is_replay and metric in row.values:
                found.append((run.name, row.position, row.values[metric], row.verdict))
        for journal in (run.path / "metrics").glob("replay-*"):
            journal.unlink()
    return sorted(found, key=lambda one: one[:2])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    """Within a minute: the system needs a moment to end a process."""
    for _ in range(600):
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("metric", ["drawn", "norm"])
def test_a_forked_worker_computes_what_a_fresh_process_does(
    project: Project, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[Any] = []
    fork = ForkServers.fork

    def noting(self: ForkServers, *args: Any) -> Any:
        forked.append(fork(self, *args))
        return forked[-1]

    monkeypatch.setattr(ForkServers, "fork", noting)
    ask(project, metric)
    by_fork = values(project, metric)
    assert [one.returncode for one in forked] == [0]
    monkeypatch.setattr(fork_client, "_can_fork", lambda env: False)
    ask(project, metric)
    assert forked[1:] == [None]
    assert by_fork == values(project, metric)
    assert by_fork and {one[3] for one in by_fork} == {"exact"}


def test_each_run_is_replayed_in_its_own_environment_and_by_its_own_code(project: Project) -> None:
    ask(project, "version", ["a", "b", "c"])
    hashes = {
        seed: int(project.python("-c", "print(hash('flor'))", PYTHONHASHSEED=seed).stdout)
        for seed in ("1", "2")
    }
    found = {name: value for name, _, value, _ in values(project, "version")}
    assert found == {"a": [1, hashes["1"]], "b": [2, hashes["1"]], "c": [2, hashes["2"]]}


def test_runs_of_one_environment_share_a_server_and_a_second_replay_finds_it(
    project: Project,
) -> None:
    known = servers()
    started = [known.begin(run.framework, environment(run)) for run in list_runs(project.store)]
    assert [started.index(one) for one in started] == [0, 0, 2]
    pids = [one.pid for one in started if one]
    ask(project, "version", ["a", "b", "c"])
    values(project, "version")
    again = [known.begin(run.framework, environment(run)) for run in list_runs(project.store)]
    assert [one.pid for one in again if one] == pids


def test_a_run_with_folders_of_its_own_on_the_import_path_gets_a_fresh_process(
    project: Project,
) -> None:
    [run, *_] = list_runs(project.store)
    env = environment(run)
    env["PYTHONPATH"] = os.pathsep.join([str(project.root), env["PYTHONPATH"]])
    assert servers().begin(run.framework, env) is None


def test_a_replay_whose_server_is_killed_completes_with_each_value_once(project: Project) -> None:
    killed: list[int] = []
    kinds: list[str] = []

    def progress(task: Any, event: dict[str, Any]) -> None:
        kinds.append(event["event"])
        if event["event"] == "position" and not killed:
            killed.extend(one.pid for one in servers()._servers.values() if one.is_busy)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    ask(project, "drawn", progress=progress)
    found = values(project, "drawn")
    assert killed
    assert Counter(one[:2] for one in found) == {one[:2]: 1 for one in found} and len(found) == 2
    assert {one[3] for one in found} == {"exact"}


def test_what_reads_journals_is_imported_without_a_thread_and_the_environment_stays() -> None:
    script = """
import os, sys
from flor_plugins.replayer.execution import fork_server
before = dict(os.environ)
fork_server._preload_journals()
print(dict(os.environ) == before, "pandas" in sys.modules, fork_server._unfit())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "None"]


def test_a_worker_ends_without_what_imports_left_to_be_done_and_with_what_its_script_did() -> None:
    script = """
import weakref
from flor_plugins.replayer.execution import fork_server
class Thing: pass
imported, own = Thing(), Thing()
weakref.finalize(imported, print, "imported")
fork_server._keep_at_exit()
weakref.finalize(own, print, "own")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["own"]


def test_a_server_that_can_not_import_is_left_for_fresh_processes(tmp_path: Path) -> None:
    known = ForkServers()
    env = {**os.environ, "PYTHONPATH": str(Path(flor.__file__).parents[1])}
    assert known.fork("no_framework", env, tmp_path / "task.json", 1, 2) is None
    first = known.begin("no_framework", env)
    assert first is not None and "no_framework" in str(first.obstacle)
    assert known.begin("no_framework", env) is first  # it is not started again and again
    known.close()


def test_servers_beyond_the_most_that_are_kept_are_ended() -> None:
    known = ForkServers()
    env = {**os.environ, "PYTHONPATH": str(Path(flor.__file__).parents[1])}
    made = [
        known.begin("no_framework", {**env, "NUMBER": str(number)})
        for number in range(fork_client.MOST + 2)
    ]
    pids = [one.pid for one in made if one]
    assert len(known._servers) == fork_client.MOST
    known.close()
    assert gone(pids)


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_no_process_outlives_the_one_that_asked(project: Project, ends: str) -> None:
    known = {
        name: value for name, value in os.environ.items() if name not in ("FLOR_DIR", "PYTHONPATH")
    }
    command = [sys.executable, "ignored/ask.py", "norm", *(["wait"] if ends == "killed" else [])]
    with subprocess.Popen(
        command, cwd=project.root, env=known, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        pids = list(map(int, asking.stdout.readline().split()))
        below = [
            int(pid)
            for one in pids
            for pid in Path(f"/proc/{one}/task/{one}/children").read_text().split()
        ]
        if ends == "killed":
            asking.kill()
        asking.stdout.read()
    values(project, "norm")
    assert pids
    assert gone([*pids, *below])
