"""Tasks on this machine, at most `workers` at a time; a worker that was killed is replaced."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from signal import Signals

from flor_plugins.errors import FlorError
from flor_plugins.records import Plan, Run, Task
from flor_plugins.records.events import ROWS_STORED, Event, WorkerLoss
from flor_plugins.replayer.execution import remote_sync
from flor_plugins.replayer.execution.gpu_assignment import GpuAssignment, visible
from flor_plugins.replayer.execution.retries import RetriedTask, longest_first
from flor_plugins.replayer.execution.task_runner import Outcome, Tell, do_task
from flor_plugins.store.layout import Store
from flor_plugins.store.remote.mirror import Mirror, mirror_of


@dataclass(slots=True)
class _SharedSettings:
    """What all tasks of a request have in common.

    is_over: nobody is told anything more, and no worker replaced.
    """

    store: Store
    runs: Mapping[str, Run]
    plan: Plan
    tell: Tell
    devices: GpuAssignment
    is_over: threading.Event = field(default_factory=threading.Event)
    # who asks is told one thing at a time
    turn: threading.Lock = field(default_factory=threading.Lock)


def run_all(
    store: Store, runs: Mapping[str, Run], plan: Plan, tell: Tell, *, workers: int = 1
) -> list[Outcome]:
    """Do all tasks of a plan with worker processes (see `Executor`).

    What `tell` raises, and an interrupt, end the workers; it is raised when their sandboxes are
    gone.
    """
    store.replay(plan.replay_id).mkdir(parents=True, exist_ok=True)
    # a single worker sees them as the recording did
    devices = GpuAssignment(visible() if workers > 1 else ())
    request, jobs = (
        _SharedSettings(store, runs, plan, tell, devices),
        [RetriedTask(task) for task in plan.tasks],
    )
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        try:
            begun: dict[int, Future[Outcome]] = {
                id(job): pool.submit(_do, request, job) for job in longest_first(jobs)
            }
            return [begun[id(job)].result() for job in jobs]
        except BaseException:
            request.is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _do(request: _SharedSettings, job: RetriedTask) -> Outcome:
    """One task, by as many workers one after the other as it takes while they are killed."""
    run, plan = request.runs[job.task.run_id], request.plan
    try:
        mirror = mirror_of(request.store)
        if mirror is not None:
            remote_sync.arrive(mirror, plan, job.task)
        _work_on(request, job, run, mirror)
        if mirror is not None:
            remote_sync.deliver(mirror, plan, job.task)
    except FlorError as error:
        job.outcome.failure = str(error)
    return job.result(run, plan)


def _work_on(request: _SharedSettings, job: RetriedTask, run: Run, mirror: Mirror | None) -> None:
    def tell(task: Task, event: Event) -> None:
        if mirror is not None and isinstance(event, ROWS_STORED):
            # before it is told, so that what was told is there
            remote_sync.deliver(mirror, request.plan, task)
        job.told.append(event)
        _say(request, task, event)

    while True:
        with request.devices.taken(run.processes) as seen:
            job.outcome = do_task(
                request.store,
                run,
                request.plan,
                job.rest,
                tell,
                given_up=request.is_over,
                variables=seen,
            )
        killed_by, failure = job.outcome.killed_by, job.outcome.failure
        if killed_by is None or request.is_over.is_set() or not job.is_for_another(failure or ""):
            return
        _say(request, job.task, WorkerLoss(f"killed by {Signals(killed_by).name}: begun again"))


def _say(request: _SharedSettings, task: Task, event: Event) -> None:
    with request.turn:
        if request.is_over.is_set():
            raise KeyboardInterrupt
        request.tell(task, event)
