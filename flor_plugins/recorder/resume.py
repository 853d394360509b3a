"""Resumption of an interrupted run: which one, from where, and whether it is the same run."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, FlorError, NoCheckpoint
from flor_plugins.recorder.checkpointing.writer_lock import wait_for_writer
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.resumption import Resumption
from flor_plugins.records import (
    Launch,
    Obstacle,
    Position,
    RecordingProcess,
    Run,
)
from flor_plugins.records.sections import TIMELINE
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import find_run, list_runs, plain

DECIDING = ("python", "machine", "cpu", "packages", "devices", "determinism")  # of an environment
VARIABLE = "FLOR_RESUME"  # set by `flor-hf resume RUN` for the process that it starts
# A run of another host that has written nothing for so long is taken to be dead.
SILENT_S = 1800.0
# What a requeued job keeps (SLURM, PBS, LSF, Grid Engine): its number; of an array, the number
# of the task.
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
TASKS = (
    "SLURM_ARRAY_TASK_ID",
    "PBS_ARRAY_INDEX",
    "LSB_JOBINDEX",
    "SGE_TASK_ID",
    "JOB_COMPLETION_INDEX",
)


def resumption(store: Store, options: RecordOptions, first: Run) -> Resumption | None:
    """Return what a training resumes; None for a new run.

    FLOR_RESUME or `options.resume` names the run.

    first: the run that would be begun otherwise. Of an interrupted launch that trains several
    times, the trainings that had finished are gone through once more from their last State,
    without a step. Raises UnknownRun, NoCheckpoint, or FlorError where the run can't be resumed.
    """
    run = _wanted(store, options, first)
    if run is None:
        return None
    if run.processes != first.processes:
        raise FlorError(
            f"{_named(run)} was trained by {run.processes} processes together, and here are "
            f"{first.processes}; start as many"
        )
    return _at_last_state(run)


def _wanted(store: Store, options: RecordOptions, first: Run) -> Run | None:
    named = os.environ.get(VARIABLE)
    if named:
        run = find_run(store, named)
        if run.launch.call > first.launch.call:
            return _before(store, run, first.launch.call)
        if run.launch.call == first.launch.call:
            check(run, first.framework)
            return run
    if options.resume == "auto":
        return _interrupted(store, first, options.name)
    if options.resume is None:
        return None
    run = find_run(store, options.resume)
    check(run, first.framework)
    return run


def _at_last_state(run: Run) -> Resumption:
    _wait_for_writers(run)
    for torn in run.path.rglob(f"{PARTIAL}*"):  # its writer is dead
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    damaged: list[str] = []
    while (position := last_full(run)) is not None:
        try:
            for folder in _folders(run)[1:]:  # else that process would find out alone
                checkpoints.load_checkpoint(folder, position)
            sections = checkpoints.load_checkpoint(run.path, position)
            return Resumption(run, position, sections, damaged=tuple(damaged))
        except DamagedCheckpoint as error:  # as a machine leaves it that lost its power
            damaged.append(f"run {run.name} goes on from an earlier checkpoint: {error}")
            _put_aside(run, position)
    raise NoCheckpoint(f"{_named(run)} can't be resumed: every checkpoint in {run.path} is damaged")


def last_full(run: Run) -> Position | None:
    """Return the last position from which the run can be resumed bit for bit; None without one."""
    _wait_for_writers(run)
    positions = (
        checkpoint.position
        for checkpoint in ranks.list_checkpoints(run)
        if checkpoint.is_full and checkpoint.can_train and TIMELINE in checkpoint.sections
    )
    return max(positions, default=None)


def _wait_for_writers(run: Run) -> None:
    """Wait until what a killed training had handed over is written."""
    if is_interrupted(run):
        for folder in _folders(run):
            wait_for_writer(folder)


def _put_aside(run: Run, position: Position) -> None:
    """Move a checkpoint out of the way of the one that will be made there.

    Names that begin with a dot are not read.
    """
    for part in _folders(run):
        folder = part / checkpoints.FOLDER / str(position)
        if folder.exists():
            folder.rename(folder.with_name(f".damaged-{time.time_ns()}-{folder.name}"))


def _folders(run: Run) -> list[Path]:
    """Return the folder of each process, the first one's first."""
    return [ranks.folder(run.path, rank) for rank in range(run.processes)]


def is_interrupted(run: Run) -> bool:
    """Return whether its process has ended before its training did.

    Of another host only its silence can be heard.
    """
    if run.status in ("killed", "failed"):
        return True
    if run.status != "running" or _is_here(run):
        return False
    return _is_same_job(run) or time.time() - _written_at(run) > SILENT_S


def _is_here(run: Run) -> bool:
    return run.process.host == socket.gethostname()


def job() -> dict[str, str]:
    """Return what the scheduler of this process calls it; empty without one."""
    return {name: os.environ[name] for name in (*JOBS, *TASKS) if os.environ.get(name)}


def _is_same_job(run: Run) -> bool:
    recorded, present = run.environment.get("job", {}), job()
    return recorded == present and any(name in present for name in JOBS)


def _is_same_task(run: Run) -> bool:
    """Is it the same task of an array of jobs? They have one command line."""
    recorded, present = run.environment.get("job", {}), job()
    return all(recorded.get(name) == present.get(name) for name in TASKS)


def check(run: Run, framework: str) -> None:
    """Check that a run can be resumed. Raises FlorError or NoCheckpoint, which say why not.

    Who names a run of another host is believed that it was interrupted.
    """
    if run.framework != framework:
        raise FlorError(
            f"run {run.name} was recorded with {run.framework} and can't be resumed with "
            f"{framework}"
        )
    if run.status == "finished":
        raise FlorError(f"{_named(run)} is finished; there is nothing to resume")
    if run.status == "running" and _is_here(run):
        raise FlorError(
            f"{_named(run)} is running on {run.process.host} (process {run.process.pid}); "
            "end that process first"
        )
    if last_full(run) is None:
        raise NoCheckpoint(
            f"{_named(run)} can't be resumed: there is no full checkpoint in {run.path}"
        )


def _interrupted(store: Store, first: Run, name: str | None) -> Run | None:
    """Return the newest run of this very launch, if the launch was interrupted.

    Raises FlorError if its code was another.
    """
    runs = list_runs(store)
    identity = _identity(first.launch)
    same = [
        run
        for run in runs
        if run.run_id != first.run_id
        and run.framework == first.framework
        and _identity(run.launch) == identity
        and name in (None, run.name)
        and _is_same_task(run)
    ]
    newest = same[-1] if same else None
    if newest is None or last_full(newest) is None:
        return None
    launched = [run for run in runs if run.process == newest.process]
    later = [run for run in launched if run.launch.call > newest.launch.call]
    if not any(map(is_interrupted, (newest, *later))):
        _refuse_if_silent(newest)
        return None
    _check_code(newest, first)
    return newest


def _refuse_if_silent(run: Run) -> None:
    """Raise FlorError for a run of another host: whether it runs on, nobody here knows."""
    if run.status == "running" and not _is_here(run):
        raise FlorError(
            f"the last run of this command, {run.name} ({run.run_id}), is not known to have "
            f"ended: {run.process.host} wrote to it {time.time() - _written_at(run):.0f} s ago, "
            f"and only after {SILENT_S:.0f} s it counts as interrupted. To go on with it now: "
            f"flor-hf resume {run.run_id}"
        )


def _before(store: Store, run: Run, call: int) -> Run | None:
    """Return an earlier training of the process that recorded `run`."""
    for earlier in list_runs(store):
        is_wanted = earlier.process == run.process and earlier.launch.call == call
        if is_wanted and last_full(earlier) is not None:
            return earlier
    return None


def _identity(launch: Launch) -> Launch:
    """Return the launch without what differs from one start of it to the next."""
    params = plain(dict(launch.params))
    return replace(
        launch, params=params, argv=tuple(launch.argv), env={}, folder="", injected=False
    )


def _check_code(run: Run, first: Run) -> None:
    if run.code is None or first.code is None:
        raise FlorError(
            f"the interrupted {_named(run)} can't go on by itself: its code is not known"
        )
    changed = snapshot.changes(run.code, first.code)
    if changed:
        raise FlorError(
            f"the code of the interrupted {_named(run)} has changed since: "
            f"{', '.join(changed[:5])}. To go on with it all the same: "
            f"FlorCallback(resume={run.run_id!r}); under its own code: flor-hf resume {run.run_id}"
        )


def _named(run: Run) -> str:
    return f"run {run.name} ({run.run_id})"


def reopened(resumed: Resumption, process: RecordingProcess, at: str) -> Run:
    """Return the run.json of a run that is resumed in `process`."""
    run = resumed.run
    return replace(
        run,
        status="running",
        process=process,
        finished_at=None,
        error=None,
        resumed=(*run.resumed, f"{at} at {resumed.position}"),
    )


def obstacles(interrupted: Run, present: Run) -> list[Obstacle]:
    """Return what decides about bits and differs between the interrupted and the present run."""
    before, after = plain(dict(interrupted.environment)), plain(dict(present.environment))
    differences = [
        f"{name} {_difference(before.get(name), after.get(name))}"
        for name in DECIDING
        if before.get(name) != after.get(name)
    ]
    if not differences:
        return []
    reason = f"it was interrupted and went on elsewhere: {'; '.join(differences)}"
    return [
        Obstacle("close", reason, "resume where the run began: same machine, packages and settings")
    ]


def _difference(before: object, after: object) -> str:
    """Return both values; of two mappings only what differs."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"{before} then, {after} now"
    names = before.keys() | after.keys()
    changed = sorted(name for name in names if before.get(name) != after.get(name))
    pairs = (f"{name} {before.get(name)} then, {after.get(name)} now" for name in changed[:5])
    return ", ".join(pairs)


def _written_at(run: Run) -> float:
    files = [*run.path.glob("metrics/*"), *run.path.glob("checkpoints/*"), run.path / "run.json"]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
