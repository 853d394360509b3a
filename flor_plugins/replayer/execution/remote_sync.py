"""What a task needs of an object store, and what it leaves there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint, SnapshotError
from flor_plugins.records import Code, Plan, Position, Run, Task
from flor_plugins.records.sections import MODEL
from flor_plugins.store import ranks
from flor_plugins.store.checkpoints import folder_of, keys_of, list_checkpoints, manifest
from flor_plugins.store.checkpoints.tensor_references import ManifestCache
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.row_source import source_of
from flor_plugins.store.remote.commits import find_commit
from flor_plugins.store.remote.mirror import Mirror, mirror_of
from flor_plugins.store.runs import list_runs, load_run


def upload(store: Store, url: str, runs: Iterable[Run]) -> list[str]:
    """Put recorded runs and their code into an object store; return the paths that are new.

    Run it again to add what is missing. Raises SnapshotError where a run's commit can't be
    found, StoreError where the object store refuses.
    """
    mirror, pushed = Mirror(url, store.root), []
    for run in runs:
        for code in _codes([run]):
            _send(mirror, code)
        pushed += mirror.push(run.path)
    return pushed


def depart(mirror: Mirror, plan: Plan, runs: Iterable[Run]) -> None:
    """Before the tasks: plan, hooks and code to where every node finds them."""
    mirror.push(mirror.store.replay(plan.replay_id))
    for code in _codes(runs):
        with suppress(SnapshotError):  # a node may have it, and if not, says so
            _send(mirror, code)


def arrive(mirror: Mirror, plan: Plan, task: Task) -> tuple[Run, Plan]:
    """On a node: fetch all that the task reads.

    Returns its run and the plan as they stand there.
    """
    store = mirror.store
    mirror.pull_records(task.run_id)
    run = load_run(store.run(task.run_id))
    if (
        run.launch.call
    ):  # the trainings before it in its process are passed over: that needs where they ended
        mirror.pull_records()
    mirror.pull_replay(plan.replay_id)
    mirror.pull_files(files_read(store, run, task))
    mirror.pull_code(task.vid)
    hooks = store.replay(plan.replay_id) / "hooks"
    return run, replace(plan, hooks=tuple(str(hooks / Path(hook).name) for hook in plan.hooks))


def deliver(mirror: Mirror, plan: Plan, task: Task) -> None:
    """Put back what the task has made so far; files that values point to go before the values."""
    run, store = mirror.store.run(task.run_id), mirror.store

    def is_made_here(path: str) -> bool:
        return "/media/" in path or source_of(Path(path).stem).replay_id == plan.replay_id

    mirror.push(run / "media", run / "metrics", only=is_made_here)
    mirror.push(store.replay(plan.replay_id) / task.run_id)


def come_home(mirror: Mirror, plan: Plan) -> None:
    """After the tasks: what they have made to where the plan was made."""
    for run_id in dict.fromkeys(task.run_id for task in plan.tasks):
        mirror.pull_records(run_id, media=True)
    mirror.pull_replay(plan.replay_id)


def put_back(store: Store, replay_id: str) -> None:
    """Put back plan, hooks, outputs and verdicts of a replay; nothing for a store in a folder."""
    mirror = mirror_of(store)
    if mirror is not None:
        mirror.push(store.replay(replay_id))


def fetch_weights(store: Store, run: Run, position: Position) -> None:
    """Have the model's weights at hand; nothing for a store that is a folder."""
    mirror = mirror_of(store)
    if mirror is not None:
        mirror.pull_files(set(_files_of(run, position, (MODEL,), 1)))


def files_read(store: Store, run: Run, task: Task) -> set[Path]:
    """The tensor files that a task reads, in all checkpoints that they are kept in."""
    paths: set[Path] = set()
    for replay_pass in task.passes:
        starts = [stretch.start for stretch in replay_pass.stretches] or list(replay_pass.positions)
        alone = replay_pass.way == "state"
        for position in starts:
            paths.update(
                _files_of(run, position, (MODEL,) if alone else None, 1 if alone else run.processes)
            )
    for before in _before(store, run):
        ends = list_checkpoints(before.path)[-1:]
        paths.update(*(_files_of(before, end.position, None, before.processes) for end in ends))
    return paths


def _codes(runs: Iterable[Run]) -> list[Code]:
    return list({run.code.vid: run.code for run in runs if run.code is not None}.values())


def _send(mirror: Mirror, code: Code) -> None:
    repo = find_commit(code, mirror.store, Path.cwd())
    try:
        mirror.push_code(repo, code.vid)
    finally:
        repo.close()


def _before(store: Store, run: Run) -> list[Run]:
    """The trainings of the same process that a replay passes over."""
    if not run.launch.call:
        return []
    return [
        earlier
        for earlier in list_runs(store)
        if earlier.process == run.process and earlier.launch.call < run.launch.call
    ]


def _files_of(
    run: Run, position: Position, only: tuple[str, ...] | None, processes: int
) -> Iterator[Path]:
    for rank in range(processes):
        folder = folder_of(ranks.folder(run.path, rank), position)
        with suppress(DamagedCheckpoint):  # whoever reads it says what is wrong
            state = manifest.read_manifest(folder, position)
            holders = ManifestCache(folder, state)
            wanted = [part for name, part in state["tree"].items() if only is None or name in only]
            for key in set().union(*map(keys_of, wanted)):
                yield from (link.path for link in holders.chain(key))
