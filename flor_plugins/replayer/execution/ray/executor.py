"""Tasks on a Ray cluster.

It is the one that RAY_ADDRESS names, one that runs on this machine, else one of our own. Every
node of a cluster needs the same environment (this package, the trainer's framework, git) and
the store: a folder that all nodes see under the same path, or an object store by its url. Data
that the repository does not hold must be there, too. Nothing of a task knows of Ray.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import FlorError
from flor_plugins.records import Plan, Run, Task
from flor_plugins.records.events import ROWS_STORED, Event, WorkerLoss, WorkerPlacement
from flor_plugins.replayer.execution import remote_sync
from flor_plugins.replayer.execution.ray.cluster import connected, devices, is_lost, share_of
from flor_plugins.replayer.execution.retries import RetriedTask, longest_first
from flor_plugins.replayer.execution.task_runner import Outcome, Tell, do_task
from flor_plugins.store.layout import VARIABLE, Store
from flor_plugins.store.remote.mirror import Mirror, mirror_of
from flor_plugins.store.runs import load_run, this_process

GRACE_S = 10.0  # for tasks to end by themselves when the request is given up
LISTEN_S = 0.5  # Ray's interrupt is seen between two looks


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Where a task finds the store, on any node.

    url: of the object store, where root is only its mirror.
    """

    root: Path
    url: str | None
    cwd: str
    threads: str | None


@dataclass(slots=True)
class _RemoteJob:
    """A job at a worker of the cluster. stream: what that says."""

    job: RetriedTask
    stream: Any = None


def run_all(
    store: Store, runs: Mapping[str, Run], plan: Plan, tell: Tell, *, workers: int | None = 1
) -> list[Outcome]:
    """Do all tasks of a plan; one that fails does not stop the others. In the order of the plan.

    workers: tasks at a time, each with a CPU, or a GPU where the cluster has any; None: as many
    as the cluster has of those. A task whose worker or node is lost is begun again, without
    what it had told already. Raises MissingDependency without Ray, ReplayError where the
    cluster can't be reached.
    """
    mirror = mirror_of(store)
    if mirror is not None:
        remote_sync.depart(mirror, plan, [runs[task.run_id] for task in plan.tasks])
    place = StoreLocation(
        store.root, mirror.url if mirror else None, os.getcwd(), os.environ.get("OMP_NUM_THREADS")
    )
    jobs = [RetriedTask(task) for task in plan.tasks]
    with connected(workers) as ray:
        _Dispatcher(ray, place, replace(plan, tasks=()), runs, tell).all(
            jobs, workers or devices(ray)
        )
    if mirror is not None:
        remote_sync.come_home(mirror, plan)
    return [job.result(runs[job.task.run_id], plan) for job in jobs]


class _Dispatcher:
    """Sends tasks to workers, at most some at a time, and hears what they say."""

    def __init__(
        self, ray: Any, place: StoreLocation, plan: Plan, runs: Mapping[str, Run], tell: Tell
    ) -> None:
        self._ray, self._place, self._plan, self._runs, self._tell = ray, place, plan, runs, tell

    def all(self, jobs: Sequence[RetriedTask], workers: int) -> None:
        waiting = longest_first(jobs)[::-1]
        running: list[_RemoteJob] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(_RemoteJob(waiting.pop()))
                    self._begin(running[-1])
                ready = self._ray.wait([sent.stream for sent in running])[0][0]
                sent = next(sent for sent in running if sent.stream is ready)
                if self._hear(sent):
                    running.remove(sent)
        except BaseException:
            self._give_up(running)
            raise

    def _begin(self, sent: _RemoteJob) -> None:
        job = sent.job
        # Ray's own retries begin a task from its start; ours leave out what is stored.
        options = {"num_returns": "streaming", "max_retries": 0, "name": f"flor {job.task.name}"}
        share = share_of(self._ray, self._runs[job.task.run_id].processes)
        sent.stream = (
            self._ray.remote(work)
            .options(**options, **share)
            .remote(self._place, self._plan, job.rest)
        )

    def _hear(self, sent: _RemoteJob) -> bool:
        """Take the next thing that a worker says; True if it was the last."""
        job = sent.job
        try:
            answer = self._ray.get(next(sent.stream))
        except StopIteration:
            job.outcome.failure = (
                f"run {job.task.name}: its Ray worker ended without a result. Replay it again."
            )
            return True
        except self._ray.exceptions.RayError as error:
            return self._failed(sent, error)
        if isinstance(answer, Outcome):
            job.outcome = answer
            # The process that Ray started for the task lives, the one that replayed in it was
            # killed.
            return answer.killed_by is None or self._is_over(sent, "worker", answer.failure or "")
        job.told.append(answer)
        self._tell(job.task, answer)
        return False

    def _failed(self, sent: _RemoteJob, error: Exception) -> bool:
        cause = getattr(error, "cause", None)
        reason = str(cause) if isinstance(cause, FlorError) else f"{type(error).__name__}: {error}"
        sent.job.outcome.failure = f"run {sent.job.task.name} failed on Ray: {reason}"
        lost = is_lost(self._ray, error)
        return lost is None or self._is_over(sent, lost, reason)

    def _is_over(self, sent: _RemoteJob, lost: str, reason: str) -> bool:
        """The worker or the node of a task is gone. False if another worker was begun."""
        # What a dead machine had not yet handed to the shared folder is gone.
        if not sent.job.is_for_another(reason, are_rows_lost=lost == "node"):
            return True
        self._tell(sent.job.task, WorkerLoss(f"{reason}: begun again"))
        self._begin(sent)
        return False

    def _give_up(self, running: Sequence[_RemoteJob]) -> None:
        """Have workers end: gently, so that they remove their sandboxes, then at once."""
        for force in (False, True):
            for sent in running:
                with suppress(Exception):  # it may have ended meanwhile
                    self._ray.cancel(sent.stream, force=force)
            with suppress(Exception):
                ends = [sent.stream.completed() for sent in running]
                if not self._ray.wait(ends, num_returns=len(ends), timeout=GRACE_S)[1]:
                    return


def work(place: StoreLocation, plan: Plan, task: Task) -> Iterator[Event | Outcome]:
    """On a node: do a task and yield its events as they happen, its Outcome last."""
    process = this_process()
    yield WorkerPlacement({"host": process.host, "pid": process.pid})
    _stand_at(place)
    store = Store(place.root)
    mirror = None if place.url is None else Mirror(place.url)
    if mirror is None:
        run = load_run(store.run(task.run_id))
    else:
        store = mirror.store
        run, plan = remote_sync.arrive(mirror, plan, task)
        os.environ[VARIABLE] = str(store.root)  # the replayed script looks for a folder
    for answer in _doing(store, run, plan, task):
        if mirror is not None and isinstance(answer, (Outcome, *ROWS_STORED)):
            # before it is told, so that what was told is there
            remote_sync.deliver(mirror, plan, task)
        yield answer


def _doing(store: Store, run: Run, plan: Plan, task: Task) -> Iterator[Event | Outcome]:
    """Events and Outcome of `do_task`, which calls back, as an iterator."""
    heard: queue.SimpleQueue[Event | Outcome | BaseException] = queue.SimpleQueue()
    is_over = threading.Event()

    def tell(_: Task, event: Event) -> None:
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
                answer = heard.get(timeout=LISTEN_S)
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
                if isinstance(answer, Outcome):
                    return
    finally:
        is_over.set()
        thread.join(GRACE_S)


def _stand_at(place: StoreLocation) -> None:
    """Stand where the request was made, if this node has that folder.

    A repository is looked for around it.
    """
    with suppress(OSError):
        os.chdir(place.cwd)
    # Ray sets it to the number of CPUs of the task: other threads sum in another order than the
    # recording did.
    os.environ.pop("OMP_NUM_THREADS", None)
    if place.threads is not None:
        os.environ["OMP_NUM_THREADS"] = place.threads
