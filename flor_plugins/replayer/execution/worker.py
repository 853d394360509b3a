"""The worker process: starts the recorded launch again and meets its trainer at fit/train.

    python -m flor_plugins.replayer.execution.worker TASK.json EVENTS_FD

Everything that happens is told as one JSON line per event on the file descriptor; what the
user's script prints goes to stdout and stderr as always.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from flor_plugins import adapter
from flor_plugins.errors import FlorError
from flor_plugins.hooks import arg, log
from flor_plugins.records import from_json
from flor_plugins.records.events import (
    Event,
    HookFailure,
    WorkerEnd,
    WorkerFailure,
    event_to_json,
)
from flor_plugins.replayer.execution import lifeline
from flor_plugins.replayer.execution.launched_fit import LaunchedFits, driver_of
from flor_plugins.replayer.execution.relaunched_script import RelaunchedScript
from flor_plugins.replayer.execution.worker_order import WorkerOrder
from flor_plugins.replayer.sandbox import write_guard
from flor_plugins.replayer.sandbox.isolation import isolate
from flor_plugins.store import ranks
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import load_run


def main(task_file: str, events_fd: int) -> int:
    """Do one task. Returns 0, or 1 when anything failed; every failure was told as an event."""
    events = os.fdopen(events_fd, "w", buffering=1)
    has_failed = False

    def tell(event: Event) -> None:
        nonlocal has_failed
        has_failed = has_failed or isinstance(event, (HookFailure, WorkerFailure))
        events.write(json.dumps(event_to_json(event)) + "\n")

    try:
        order = from_json(WorkerOrder, json.loads(Path(task_file).read_text()))
        _work(order, tell, events_fd)
    except FlorError as error:
        tell(WorkerFailure(time.time(), str(error)))
    except BaseException as error:
        tell(WorkerFailure(time.time(), _summary(error), traceback.format_exc()))
    else:
        tell(WorkerEnd())
    return int(has_failed)


def _work(order: WorkerOrder, tell: Callable[[Event], None], events_fd: int) -> None:
    run, store = load_run(Path(order.run)), Store(Path(order.store))
    # Of the run only the replay's own rows may be written; its checkpoints are the past.
    written = [ranks.folder(run.path, order.rank) / name for name in ("metrics", "media")]
    for folder in written:
        folder.mkdir(exist_ok=True)
    # Before torch starts threads: the kernel binds no thread that runs already.
    assert run.code is not None
    root = Path(run.code.root)
    sandbox = isolate(root, Path(order.sandbox), [store.replay(order.replay_id), *written])
    script = RelaunchedScript(run, root, sandbox)
    script.enter()
    lifeline.end_with_listener(events_fd)  # a thread, so after what binds only threads to come
    driver = driver_of(run)
    script.set_threads()
    from flor_plugins.hooks.hook_files import load
    from flor_plugins.replayer.worker_session.session import WorkerSession
    from flor_plugins.state import processes

    hooks = [load(Path(hook)) for hook in order.hooks]
    session = WorkerSession(run, order.task, order.replay_id, hooks, tell, rank=order.rank)
    log.connect(session.log)
    fits = LaunchedFits(driver, session, store, order.rank)
    trainings = adapter.adapter_of(run.framework)
    if order.is_alone:
        trainings.train_alone()
    trainings.intercept(fits.arrived, inject=run.launch.injected)
    arg.recorded(run.params)
    write_guard.guard_extensions()
    fits.replay(script)
    session.finish()
    processes.leave()


def _summary(error: BaseException) -> str:
    """One line: what was raised, and where in the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if "site-packages" not in frame.filename and "flor_plugins" not in frame.filename
    ]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
