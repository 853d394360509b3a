"""The command that starts a recorded launch again, to go on with its run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from flor_plugins.errors import FlorError
from flor_plugins.hooks import arg
from flor_plugins.recorder.resume import VARIABLE
from flor_plugins.records import Launch, Run
from flor_plugins.store.runs import plain

_START = "flor_plugins.recorder.launching.run_script"


def command(run: Run, moved: Mapping[str, str] | None = None) -> list[str]:
    """The words of the command. moved: where files of the run's code lie now.

    Raises FlorError for a notebook.
    """
    launch = run.launch
    if launch.kind == "interactive":
        raise FlorError(
            f"run {run.name} ({run.run_id}) was started from a prompt or a notebook, which "
            f"can't be started again; "
            f"there, train with FlorCallback(resume={run.run_id!r})"
        )

    def at(path: str) -> str:
        return _moved(path, moved or {})

    if launch.kind == "recipe":
        words = ["-m", _START, "recipe", at(launch.recipe), run.name]
    elif launch.injected:
        target = at(launch.target) if launch.kind == "script" else launch.target
        words = ["-m", _START, launch.kind, run.framework, run.name, target, *launch.argv]
    elif launch.kind == "module":
        words = ["-m", launch.target, *launch.argv]
    else:
        words = [at(launch.target), *launch.argv]
    # -P: the present folder, where the code is newer, does not come first; its copy does.
    is_elsewhere = moved and words[0] == "-m"
    return [sys.executable, *(["-P"] if is_elsewhere else []), *_processes(launch), *words]


def environment(run: Run, moved: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of the relaunched process.

    They are the present ones, the recorded ones, and which run it resumes.
    """
    recorded = {name: value for name, value in run.launch.env.items() if not _of_a_process(name)}
    found = {**os.environ, **recorded, VARIABLE: run.run_id, "FLOR_DIR": str(run.path.parents[1])}
    if run.framework == "loop":  # its parameters are what flor.arg gave, random defaults among them
        found[arg.VARIABLE] = json.dumps(plain(dict(run.params)))
    if moved:
        copies = [_moved(run.launch.cwd, moved), *found.get("PYTHONPATH", "").split(os.pathsep)]
        found["PYTHONPATH"] = os.pathsep.join(_moved(copy, moved) for copy in copies if copy)
    return found


def _moved(path: str, moved: Mapping[str, str]) -> str:
    """Where a path of the run's code lies now."""
    return next(
        (new + path[len(old) :] for old, new in moved.items() if Path(path).is_relative_to(old)),
        path,
    )


def _processes(launch: Launch) -> list[str]:
    """torchrun, where it had started the processes.

    Lightning's own launcher starts them again by itself.
    """
    count = launch.env.get("WORLD_SIZE", "1")
    if count == "1" or "TORCHELASTIC_RUN_ID" not in launch.env:
        return []
    if launch.env.get("LOCAL_WORLD_SIZE", count) != count:
        raise FlorError(
            f"the run was trained by {count} processes on several machines; start it there as "
            f"before, "
            'with FlorCallback(resume="auto")'
        )
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]


def _of_a_process(name: str) -> bool:
    names = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    return name in names or name.startswith("TORCHELASTIC_")
