"""The beginning of a run: its folder, its code, its first run.json."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from flor_plugins.errors import FlorError
from flor_plugins.hooks import arg, log
from flor_plugins.recorder import launch_environment, resume
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.recorder.gaps import warn
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.recorder import Recorder, now
from flor_plugins.recorder.replayability import obstacles
from flor_plugins.records import Code, Framework, Launch, Run, Timing
from flor_plugins.state import processes
from flor_plugins.store import runs
from flor_plugins.store.files import make_folder
from flor_plugins.store.layout import Store, find_store, new_id, store_in

ParamsSource = Callable[[], Mapping[str, object]]  # reads the parameters of a training


def begin(
    framework: Framework,
    options: RecordOptions,
    params: ParamsSource,
    launch: Launch | None = None,
) -> Recorder | None:
    """Start a run: its folder, its code, its first run.json.

    Return None, with one warning, if that fails.

    Called by the first of several processes it does the same; the others join it (see
    recorder/distributed.py).
    """
    try:
        if processes.count() > 1:
            options = replace(options, schedule=options.schedule.without_clock())
        launch = launch or launch_environment.launch()
        start = Path(launch.folder or launch.cwd)
        if launch.kind == "script":
            start = Path(launch.target).parent
        store = find_store(start) if options.store is None else store_in(os.fspath(options.store))
        store.make()
        recorder = _recorder(
            _new_run(store, framework, options, launch, start, params()), store, options
        )
        runs.save_run(recorder.run)
    except Exception as error:  # whatever it is, the training is the user's and goes on
        warn(f"this training is not recorded: {type(error).__name__}: {error}")
        return None
    log.connect(recorder.log)
    return recorder


def _recorder(new: Run, store: Store, options: RecordOptions) -> Recorder:
    """Return the recorder of the run that is to be resumed, else of the new one."""
    try:
        resumed = resume.resumption(store, options, new)
    except (FlorError, OSError) as error:
        resumed = None
        warn(f"a new run is recorded: {error}")
    if resumed is None:
        return Recorder(new, options)
    shutil.rmtree(new.path)
    if new.code is not None:
        snapshot.forget(new.code, new.run_id)
    recorder = Recorder(resume.reopened(resumed, new.process, now()), options, resumed)
    recorder.note_obstacles(resume.obstacles(resumed.run, new))
    for damage in resumed.damaged:
        warn(damage)
    return recorder


def _new_run(
    store: Store,
    framework: Framework,
    options: RecordOptions,
    launch: Launch,
    start: Path,
    params: Mapping[str, object],
) -> Run:
    run_id = new_id()
    path = store.run(run_id)
    make_folder(path)
    code, failure = _snapshot(store, run_id, start)
    gaps = []
    if failure:
        gaps.append(f"no code snapshot, so this run can't be replayed: {failure}")
    if launch.kind == "interactive":
        gaps.append(
            "started from a prompt or a notebook: there is no script to start again for a replay"
        )
    process = runs.this_process()
    earlier = [run for run in runs.list_runs(store) if run.process == process]
    return Run(
        run_id=run_id,
        name=options.name or Path(launch.target).stem or framework,
        project=options.project or start.name,
        framework=framework,
        status="running",
        started_at=now(),
        launch=replace(launch, call=len(earlier)),
        code=code,
        process=process,
        path=path,
        tags=options.tags,
        environment={**launch_environment.environment(), "job": resume.job()},
        params={**params, **launch_environment.flatten("", arg.read())},
        timing=Timing(build_s=launch_environment.seconds_since_start()),
        gaps=tuple(gaps),
        obstacles=tuple(obstacles.of_launch(launch, code, failure)),
        processes=processes.count(),
    )


def _snapshot(store: Store, run_id: str, start: Path) -> tuple[Code | None, str]:
    """Return the code of a run, or None and why there is none."""
    try:
        return snapshot.take(store, run_id, start), ""
    except FlorError as error:
        return None, str(error)
