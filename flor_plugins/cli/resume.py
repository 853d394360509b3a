"""`resume`: go on with an interrupted run, as the same run, under its own code."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flor_plugins.errors import FlorError
from flor_plugins.records import Run
from flor_plugins.store.layout import find_store
from flor_plugins.store.runs import find_run, load_run


def resume(name: str) -> int:
    """Exit status 0 when the run has finished, 1 when it has not, 130 when it was interrupted."""
    from flor_plugins.recorder import resume as resuming
    from flor_plugins.recorder.code_snapshot import snapshot
    from flor_plugins.recorder.launching import relaunch
    from flor_plugins.replayer.sandbox.worktree import sandbox
    from flor_plugins.store.remote.commits import find_commit

    store = find_store()
    run = find_run(store, name)
    resuming.check(run, run.framework)
    relaunch.command(run)  # refused before anything is said
    if run.code is None:
        raise FlorError(
            f"run {run.name} ({run.run_id}) can't be resumed: its code was not recorded"
        )
    print(f"resuming {run.name} ({run.run_id}) at {resuming.last_full(run)}", flush=True)
    changed = snapshot.changes_since(store, run.code)
    if not changed:
        code = _start(run, {})
    else:
        with tempfile.TemporaryDirectory(
            prefix="flor-resume-", ignore_cleanup_errors=True
        ) as scratch:
            repo = find_commit(run.code, store, Path.cwd())
            with sandbox(repo, run.code, Path(scratch) / Path(run.code.root).name) as place:
                print(
                    f"changed since: {', '.join(changed[:5])}; a copy of {run.code.vid[:12]} "
                    f"is run",
                    flush=True,
                )
                code = _start(run, {run.code.root: str(place)})
    done = load_run(run.path)
    print(f"{done.name} is {done.status} at {done.position}")
    if code in (130, -signal.SIGINT):
        return 130
    return 0 if code == 0 and done.status == "finished" else 1


def _start(run: Run, moved: Mapping[str, str]) -> int:
    from flor_plugins.recorder.launching import relaunch

    words, env = relaunch.command(run, moved), relaunch.environment(run, moved)
    with subprocess.Popen(words, cwd=run.launch.cwd, env=env) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the training got it, too, and says how it ended
                continue
