"""Going on with an interrupted run: which one, from where, and was it the same run?"""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import DamagedCheckpoint, FlorError, NoCheckpoint
from flor_plugins.recorder.checkpointing.writer_lock import wait_for_writer
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.records import (
    Launch,
    Level,
    Obstacle,
    Phase,
    Position,
    RecordingProcess,
    Row,
    Run,
)
from flor_plugins.records.sections import TIMELINE
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.files import PARTIAL
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.reserved_names import is_measured
from flor_plugins.store.metrics.value_codec import encode_value
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


@dataclass(slots=True)
class Resumption:
    """An interrupted run and the State from which it goes on.

    again: rows that were recorded after that State, by step; the resumed run makes them again,
    and they are compared. (By step: what an exception cut short stands at a position whose
    epoch was not known to be over.) damaged: what was wrong with later checkpoints."""

    run: Run
    position: Position
    sections: dict[str, Any]
    again: dict[tuple[int, Phase, Level], dict[str, Any]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    def compare(self, row: Row, media: Path) -> str | None:
        """What is not as it was recorded before the interruption; None where all is."""
        was = self.again.pop((row.position.step, row.phase, row.level), {})
        for name in sorted(was.keys() & row.values.keys()):
            now = encode_value(row.values[name], media)
            if now != was[name] and not is_measured(name):
                return (
                    f"{name} at {row.position} was {was[name]!r} before the interruption "
                    f"and is {now!r} after it"
                )
        return None

    def take_out(self, journal: Journal, media: Path) -> None:
        """Remove what was recorded after the State from the journal, so that each value stands
        there once.

        Also what came after the training (trainer.test, trainer.predict): its end will come again.
        """
        here = self.sections[TIMELINE]["rows_here"]

        def is_after(row: Row) -> bool:
            nonlocal here
            if (
                row.position == self.position
            ):  # those that were open when the State was taken are made again
                here -= 1
                return here < 0
            return row.position > self.position

        for row in journal.take_out(is_after):
            values = {name: encode_value(value, media) for name, value in row.values.items()}
            self.again.setdefault((row.position.step, row.phase, row.level), {}).update(values)
        for later in journal.path.parent.glob(f"{journal.path.stem}-*"):
            later.unlink()


def resumption(store: Store, options: RecordOptions, first: Run) -> Resumption | None:
    """What a training goes on with: the run that FLOR_RESUME or `options.resume` names; None
    for a new run.

    first: the run that would be begun otherwise. Of an interrupted launch that trains several
    times, the trainings that had finished are gone through once more from their last State,
    without a step. Raises UnknownRun, NoCheckpoint, or FlorError where the run can't be gone on
    with."""
    named = os.environ.get(VARIABLE)
    wanted = find_run(store, named) if named else None
    if wanted is not None and wanted.launch.call > first.launch.call:
        run = _before(store, wanted, first.launch.call)
    elif wanted is not None and wanted.launch.call == first.launch.call:
        check(run := wanted, first.framework)
    elif options.resume == "auto":
        run = _interrupted(store, first, options.name)
    elif options.resume is not None:
        check(run := find_run(store, options.resume), first.framework)
    else:
        run = None
    if run is not None and run.processes != first.processes:
        raise FlorError(
            f"run {run.name} ({run.run_id}) was trained by {run.processes} processes together, "
            f"and here are "
            f"{first.processes}; start as many"
        )
    return None if run is None else _at_last_state(run)


def _at_last_state(run: Run) -> Resumption:
    _wait_for_writers(run)
    for torn in run.path.rglob(f"{PARTIAL}*"):  # its writer is dead
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    damaged: list[str] = []
    while (position := last_full(run)) is not None:
        try:
            for rank in range(1, run.processes):  # else that process would find out alone
                checkpoints.load_checkpoint(ranks.folder(run.path, rank), position)
            return Resumption(
                run,
                position,
                checkpoints.load_checkpoint(run.path, position),
                damaged=tuple(damaged),
            )
        except DamagedCheckpoint as error:  # as a machine leaves it that lost its power
            damaged.append(f"run {run.name} goes on from an earlier checkpoint: {error}")
            _put_aside(run, position)
    raise NoCheckpoint(
        f"run {run.name} ({run.run_id}) can't be resumed: every checkpoint in {run.path} is damaged"
    )


def last_full(run: Run) -> Position | None:
    """The last position from which the run can go on bit for bit; None without one."""
    _wait_for_writers(run)
    found = ranks.list_checkpoints(run)
    whole = (
        one.position for one in found if one.is_full and one.can_train and TIMELINE in one.sections
    )
    return max(whole, default=None)


def _wait_for_writers(run: Run) -> None:
    """What a killed training had handed over is still written."""
    if is_interrupted(run):
        for rank in range(run.processes):
            wait_for_writer(ranks.folder(run.path, rank))


def _put_aside(run: Run, position: Position) -> None:
    """Out of the way of the checkpoint that will be made there; names that begin with a dot
    are not read.
    """
    for part in (run.path, *(ranks.folder(run.path, rank) for rank in range(1, run.processes))):
        folder = part / checkpoints.FOLDER / str(position)
        if folder.exists():
            folder.rename(folder.with_name(f".damaged-{time.time_ns()}-{folder.name}"))


def is_interrupted(run: Run) -> bool:
    """Has its process ended before its training did? Of another host only its silence can be
    heard.
    """
    if run.status in ("killed", "failed"):
        return True
    if run.status != "running" or run.process.host == socket.gethostname():
        return False
    return _is_same_job(run) or time.time() - _touched(run) > SILENT_S


def job() -> dict[str, str]:
    """What the scheduler of this process calls it; empty without one."""
    return {name: os.environ[name] for name in (*JOBS, *TASKS) if os.environ.get(name)}


def _is_same_job(run: Run) -> bool:
    was, now = run.environment.get("job", {}), job()
    return was == now and any(name in now for name in JOBS)


def _is_same_task(run: Run) -> bool:
    """Jobs of an array have one command line."""
    was, now = run.environment.get("job", {}), job()
    return all(was.get(name) == now.get(name) for name in TASKS)


def check(run: Run, framework: str) -> None:
    """Can this run be resumed? Raises FlorError or NoCheckpoint, which say why not.

    Who names a run of another host is believed that it was interrupted.
    """
    if run.framework != framework:
        raise FlorError(
            f"run {run.name} was recorded with {run.framework} and can't be resumed with "
            f"{framework}"
        )
    if run.status == "finished":
        raise FlorError(f"run {run.name} ({run.run_id}) is finished; there is nothing to resume")
    if run.status == "running" and run.process.host == socket.gethostname():
        raise FlorError(
            f"run {run.name} ({run.run_id}) is running on {run.process.host} (process "
            f"{run.process.pid}); "
            "end that process first"
        )
    if last_full(run) is None:
        raise NoCheckpoint(
            f"run {run.name} ({run.run_id}) can't be resumed: there is no full checkpoint in "
            f"{run.path}"
        )


def _interrupted(store: Store, first: Run, name: str | None) -> Run | None:
    """The newest run of this very launch, if the launch was interrupted.

    Raises FlorError if its code was another.
    """
    runs = list_runs(store)
    same = [
        run
        for run in runs
        if run.run_id != first.run_id
        and run.framework == first.framework
        and _identity(run.launch) == _identity(first.launch)
        and name in (None, run.name)
        and _is_same_task(run)
    ]
    newest = same[-1] if same else None
    if newest is None or last_full(newest) is None:
        return None
    later = [
        run
        for run in runs
        if run.process == newest.process and run.launch.call > newest.launch.call
    ]
    if not any(is_interrupted(run) for run in (newest, *later)):
        _say_if_silent(newest)
        return None
    _check_code(newest, first)
    return newest


def _say_if_silent(run: Run) -> None:
    """Raises FlorError for a run of another host: whether it runs on, nobody here knows."""
    if run.status == "running" and run.process.host != socket.gethostname():
        raise FlorError(
            f"the last run of this command, {run.name} ({run.run_id}), is not known to have "
            f"ended: {run.process.host} "
            f"wrote to it {time.time() - _touched(run):.0f} s ago, and only after "
            f"{SILENT_S:.0f} s it counts as "
            f"interrupted. To go on with it now: flor-hf resume {run.run_id}"
        )


def _before(store: Store, run: Run, call: int) -> Run | None:
    """An earlier training of the process that recorded `run`."""
    same = [
        one for one in list_runs(store) if one.process == run.process and one.launch.call == call
    ]
    return next((one for one in same if last_full(one) is not None), None)


def _identity(launch: Launch) -> tuple[Any, ...]:
    params = plain(dict(launch.params))
    return (
        launch.kind,
        launch.target,
        tuple(launch.argv),
        launch.cwd,
        launch.call,
        params,
        launch.recipe,
    )


def _check_code(run: Run, first: Run) -> None:
    then, now = run.code, first.code
    if then is None or now is None:
        raise FlorError(
            f"the interrupted run {run.name} ({run.run_id}) can't go on by itself: its code is "
            f"not known"
        )
    changed = snapshot.changes(then, now)
    if changed:
        raise FlorError(
            f"the code of the interrupted run {run.name} ({run.run_id}) has changed since: "
            f"{', '.join(changed[:5])}. "
            f"To go on with it all the same: FlorCallback(resume={run.run_id!r}); under its "
            f"own code: "
            f"flor-hf resume {run.run_id}"
        )


def reopened(found: Resumption, process: RecordingProcess, at: str) -> Run:
    """The run.json of a run that goes on in `process`."""
    resumed = (*found.run.resumed, f"{at} at {found.position}")
    return replace(
        found.run, status="running", process=process, finished_at=None, error=None, resumed=resumed
    )


def obstacles(was: Run, now: Run) -> list[Obstacle]:
    """What decides about bits and is not in the process that goes on as in the one that was
    interrupted.
    """
    before, after = plain(dict(was.environment)), plain(dict(now.environment))
    names = [name for name in DECIDING if before.get(name) != after.get(name)]
    differ = [f"{name} {_short(before.get(name), after.get(name))}" for name in names]
    if not differ:
        return []
    reason = f"it was interrupted and went on elsewhere: {'; '.join(differ)}"
    return [
        Obstacle("close", reason, "resume where the run began: same machine, packages and settings")
    ]


def _short(before: Any, after: Any) -> str:
    """Of two mappings only what differs."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"{before} then, {after} now"
    names = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return ", ".join(f"{name} {before.get(name)} then, {after.get(name)} now" for name in names[:5])


def _touched(run: Run) -> float:
    files = [*run.path.glob("metrics/*"), *run.path.glob("checkpoints/*"), run.path / "run.json"]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
