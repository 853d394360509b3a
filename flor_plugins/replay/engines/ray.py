"""Tasks on a Ray cluster: the one that RAY_ADDRESS names, one that runs on this machine, else one of our own.

Every node of a cluster needs the same environment (this package, the trainer's framework, git) and the store:
a folder that all nodes see under the same path, or an object store by its url. Data that the repository does
not hold must be there, too. Nothing of a task knows of Ray.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError
from flor_plugins.records import Grade, Plan, Position, Run, Task
from flor_plugins.replay.engines import travel
from flor_plugins.replay.engines.cluster import connected, devices, is_lost, share_of
from flor_plugins.replay.engines.rest import Told, rest_of, together
from flor_plugins.replay.tasks import Outcome, Tell, do_task
from flor_plugins.replay.verify import worse
from flor_plugins.store.journal import read_run
from flor_plugins.store.layout import VARIABLE, Store
from flor_plugins.store.mirror import Mirror, mirror_of
from flor_plugins.store.runs import load_run, this_process

ATTEMPTS = 4  # of one task; a worker is lost to a full memory or a reclaimed machine, and that may happen again
GRACE_S = 10.0  # for tasks to end by themselves when the request is given up
LISTEN_S = 0.5  # Ray's interrupt is seen between two looks
ROWS_LANDED = ("position", "stretch", "passed")  # events after which the rows before them are in the journal


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task finds the store, on any node. url: of the object store, where root is only its mirror."""

    root: Path
    url: str | None
    cwd: str
    threads: str | None


@dataclass(slots=True)
class _Job:
    """One task on its way. rest: what is still to be done of it. stream: what its worker says.

    told: by the present worker. before: by those that were lost.
    """

    task: Task
    rest: Task
    outcome: Outcome
    told: list[Told] = field(default_factory=list)
    before: list[Told] = field(default_factory=list)
    attempt: int = 0
    stream: Any = None


def run_all(store: Store, runs: dict[str, Run], plan: Plan, tell: Tell, *, workers: int | None = 1) -> list[Outcome]:
    """Do all tasks of a plan; one that fails does not stop the others. In the order of the plan.

    workers: tasks at a time, each with a CPU, or a GPU where the cluster has any; None: as many as the cluster
    has of those. A task whose worker or node is lost is begun again, without what it had told already. Raises
    MissingDependency without Ray, ReplayError where the cluster can't be reached.
    """
    mirror = mirror_of(store)
    if mirror is not None:
        travel.depart(mirror, plan, [runs[task.run_id] for task in plan.tasks])
    place = Place(store.root, mirror.url if mirror else None, os.getcwd(), os.environ.get("OMP_NUM_THREADS"))
    jobs = [_Job(task, task, Outcome(task)) for task in plan.tasks]
    with connected(workers) as ray:
        _Dispatch(ray, place, replace(plan, tasks=()), runs, tell).all(jobs, workers or devices(ray))
    if mirror is not None:
        travel.come_home(mirror, plan)
    return [_outcome(job, runs[job.task.run_id], plan) for job in jobs]


class _Dispatch:
    """Sends tasks to workers, at most some at a time, and hears what they say."""

    def __init__(self, ray: Any, place: Place, plan: Plan, runs: dict[str, Run], tell: Tell) -> None:
        self._ray, self._place, self._plan, self._runs, self._tell = ray, place, plan, runs, tell

    def all(self, jobs: Sequence[_Job], workers: int) -> None:
        waiting = sorted(jobs, key=_seconds)  # the longest is taken first, from the end
        running: list[_Job] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(waiting.pop())
                    self._begin(running[-1])
                ready = self._ray.wait([job.stream for job in running])[0][0]
                job = next(job for job in running if job.stream is ready)
                if self._hear(job):
                    running.remove(job)
        except BaseException:
            self._give_up(running)
            raise

    def _begin(self, job: _Job) -> None:
        job.attempt += 1
        # Ray's own retries begin a task from its start; ours leave out what is stored.
        options = {"num_returns": "streaming", "max_retries": 0, "name": f"flor {job.task.name}"}
        share = share_of(self._ray, self._runs[job.task.run_id].processes)
        job.stream = self._ray.remote(work).options(**options, **share).remote(self._place, self._plan, job.rest)

    def _hear(self, job: _Job) -> bool:
        """Take the next thing that a worker says; True if it was the last."""
        try:
            said = self._ray.get(next(job.stream))
        except StopIteration:
            job.outcome.failure = f"run {job.task.name}: its Ray worker ended without a result. Replay it again."
            return True
        except self._ray.exceptions.RayError as error:
            return self._failed(job, error)
        if isinstance(said, Outcome):
            job.outcome = said
            # The process that Ray started for the task lives, the one that replayed in it was killed.
            return said.killed_by is None or self._ended_or_begun(job, "worker", said.failure or "")
        job.told.append(said)
        self._tell(job.task, said)
        return False

    def _failed(self, job: _Job, error: Exception) -> bool:
        cause = getattr(error, "cause", None)
        said = str(cause) if isinstance(cause, FlorError) else f"{type(error).__name__}: {error}"
        job.outcome.failure = f"run {job.task.name} failed on Ray (begun {job.attempt} times): {said}"
        lost = is_lost(self._ray, error)
        return lost is None or self._ended_or_begun(job, lost, said)

    def _ended_or_begun(self, job: _Job, lost: str, said: str) -> bool:
        """Begin again what is left of a task whose worker or node is gone; True if that was tried often enough."""
        if job.attempt >= ATTEMPTS:
            return True
        # What a dead machine had not yet handed to the shared folder is gone: then all of the task is done again.
        # Rows that are there after all are not stored twice.
        job.before = [] if lost == "node" else [*job.before, *job.told]
        job.told = []
        job.rest = rest_of(job.task, job.before)
        self._tell(job.task, {"event": "lost", "message": f"{said}: begun again", "attempt": job.attempt})
        job.outcome = Outcome(job.rest)
        if not job.rest.passes:
            return True
        self._begin(job)
        return False

    def _give_up(self, running: Sequence[_Job]) -> None:
        """Have workers end: gently, so that they remove their sandboxes, then at once."""
        for force in (False, True):
            for job in running:
                with suppress(Exception):  # it may have ended meanwhile
                    self._ray.cancel(job.stream, force=force)
            with suppress(Exception):
                ends = [job.stream.completed() for job in running]
                if not self._ray.wait(ends, num_returns=len(ends), timeout=GRACE_S)[1]:
                    return


def work(place: Place, plan: Plan, task: Task) -> Iterator[Any]:
    """On a node: do a task and yield its events as they happen, its Outcome last."""
    yield {"event": "placed", "process": {"host": (own := this_process()).host, "pid": own.pid}}
    _stand_at(place)
    store = Store(place.root)
    mirror = None if place.url is None else Mirror(place.url)
    if mirror is None:
        run = load_run(store.run(task.run_id))
    else:
        store = mirror.store
        run, plan = travel.arrive(mirror, plan, task)
        os.environ[VARIABLE] = str(store.root)  # the replayed script looks for a folder
    for said in _doing(store, run, plan, task):
        if mirror is not None and (isinstance(said, Outcome) or said["event"] in ROWS_LANDED):
            travel.deliver(mirror, plan, task)  # before it is told, so that what was told is there
        yield said


def _doing(store: Store, run: Run, plan: Plan, task: Task) -> Iterator[Any]:
    """Events and Outcome of `do_task`, which calls back, as an iterator."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    is_over = threading.Event()

    def tell(_: Task, event: Told) -> None:
        heard.put(event)

    def act() -> None:
        try:
            heard.put(do_task(store, run, plan, task, tell, given_up=is_over))
        except BaseException as error:
            heard.put(error)

    thread = threading.Thread(target=act, name="flor-task", daemon=True)
    thread.start()
    try:
        while True:
            with suppress(queue.Empty):
                said = heard.get(timeout=LISTEN_S)
                if isinstance(said, BaseException):
                    raise said
                yield said
                if isinstance(said, Outcome):
                    return
    finally:
        is_over.set()
        thread.join(GRACE_S)


def _stand_at(place: Place) -> None:
    """Where the request was made, if this node has that folder: a repository is looked for around it."""
    with suppress(OSError):
        os.chdir(place.cwd)
    # Ray sets it to the number of CPUs of the task: other threads sum in another order than the recording did.
    os.environ.pop("OMP_NUM_THREADS", None)
    if place.threads is not None:
        os.environ["OMP_NUM_THREADS"] = place.threads


def _outcome(job: _Job, run: Run, plan: Plan) -> Outcome:
    """What all workers of a task came to."""
    if not job.before:
        return replace(job.outcome, task=job.task)
    stored: dict[Position, Grade] = {}
    for writer, row in read_run(run.path, plan.metrics):
        if writer.startswith(f"replay-{plan.replay_id}-") and row.verdict is not None:
            stored[row.position] = worse(row.verdict, stored.get(row.position, row.verdict))
    return together(job.task, job.before, job.outcome, stored)


def _seconds(job: _Job) -> float:
    """Estimated; what is unknown may be long."""
    found = [one.seconds for one in job.task.passes]
    return float("inf") if None in found else sum(s for s in found if s is not None)
