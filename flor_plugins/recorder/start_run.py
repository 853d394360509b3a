"""The beginning of a run: its folder, its code, its first run.json."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError
from flor_plugins.hooks import arg, log
from flor_plugins.recorder import launch_environment, resume
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.recorder import FlorWarning, Recorder, now
from flor_plugins.recorder.replayability import obstacles
from flor_plugins.records import Code, Framework, Launch, Run, Timing
from flor_plugins.state import processes
from flor_plugins.store import runs
from flor_plugins.store.files import make_folder
from flor_plugins.store.layout import Store, find_store, new_id, store_in


def begin(
    framework: Framework,
    options: RecordOptions,
    params: Callable[[], Mapping[str, Any]],
    launch: Launch | None = None,
) -> Recorder | None:
    """Start a run: its folder, its code, its first run.json. None, with one warning, if it
    can't be.

    Called by the first of several processes it does the same; the others join it (see
    recorder/distributed.py)."""
    try:
        if processes.count() > 1:
            options = replace(options, schedule=options.schedule.without_clock())
        launched = launch or launch_environment.launch()
        start = Path(launched.folder or launched.cwd)
        if launched.kind == "script":
            start = Path(launched.target).parent
        store = find_store(start) if options.store is None else store_in(os.fspath(options.store))
        store.make()
        recorder = _recorder(store, framework, options, params, launched, start)
        runs.save_run(recorder.run)
    except Exception as error:  # whatever it is, the training is the user's and goes on
        warn(f"this training is not recorded: {type(error).__name__}: {error}")
        return None
    log.connect(recorder.log)
    return recorder


def warn(what: str) -> None:
    """Something can't be recorded; said once, and never an error."""
    try:
        warnings.warn(f"flor: {what}", FlorWarning, stacklevel=4)
    except FlorWarning as raised:  # `python -W error`
        print(raised, file=sys.stderr)


def _recorder(
    store: Store,
    framework: Framework,
    options: RecordOptions,
    params: Callable[[], Mapping[str, Any]],
    launched: Launch,
    start: Path,
) -> Recorder:
    """Of the run that is to be resumed, else of a new one."""
    first = _first_run(store, framework, options, params(), launched, start)
    try:
        found = resume.resumption(store, options, first)
    except (FlorError, OSError) as error:
        found = None
        warn(f"a new run is recorded: {error}")
    if found is None:
        return Recorder(first, options)
    shutil.rmtree(first.path)
    if first.code is not None:
        snapshot.forget(first.code, first.run_id)
    recorder = Recorder(resume.reopened(found, first.process, now()), options, found)
    recorder.note_obstacles(resume.obstacles(found.run, first))
    for one in found.damaged:
        warn(one)
    return recorder


def _first_run(
    store: Store,
    framework: Framework,
    options: RecordOptions,
    params: Mapping[str, Any],
    launched: Launch,
    start: Path,
) -> Run:
    run_id = new_id()
    path = store.run(run_id)
    make_folder(path)
    gaps: list[str] = []
    code: Code | None = None
    why = ""
    try:
        code = snapshot.take(store, run_id, start)
    except FlorError as error:
        why = str(error)
        gaps.append(f"no code snapshot, so this run can't be replayed: {error}")
    if launched.kind == "interactive":
        gaps.append(
            "started from a prompt or a notebook: there is no script to start again for a replay"
        )
    process = runs.this_process()
    earlier = [run for run in runs.list_runs(store) if run.process == process]
    return Run(
        run_id=run_id,
        name=options.name or Path(launched.target).stem or framework,
        project=options.project or start.name,
        framework=framework,
        status="running",
        started_at=now(),
        launch=replace(launched, call=len(earlier)),
        code=code,
        process=process,
        path=path,
        tags=tuple(options.tags),
        environment={**launch_environment.environment(), "job": resume.job()},
        params={**params, **launch_environment.flatten("", arg.read())},
        timing=Timing(build_s=launch_environment.seconds_since_start()),
        gaps=tuple(gaps),
        obstacles=tuple(obstacles.of_launch(launched, code, why)),
        processes=processes.count(),
    )
