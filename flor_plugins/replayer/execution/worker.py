"""The worker process: starts the recorded launch again and meets its trainer at fit/train.

    python -m flor_plugins.replayer.execution.worker TASK.json EVENTS_FD

Everything that happens is told as one JSON line per event on the file descriptor; what the
user's script prints goes to stdout and stderr as always.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flor_plugins import adapter as adapters
from flor_plugins.errors import FlorError, MissingDependency, ReplayError
from flor_plugins.hooks import arg, log
from flor_plugins.records import Run, Task, from_json
from flor_plugins.replayer.execution import lifeline
from flor_plugins.replayer.method_patching.patches import replace_methods
from flor_plugins.replayer.sandbox import write_guard
from flor_plugins.replayer.sandbox.isolation import isolate
from flor_plugins.replayer.sandbox.worktree import map_path
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.ranks import folder as part_of
from flor_plugins.store.ranks import load_checkpoint
from flor_plugins.store.runs import list_runs, load_run

if TYPE_CHECKING:
    from flor_plugins.replayer.worker_session.session import Event, WorkerSession


class ReplayDone(BaseException):
    """Ends the script once all positions are done; what stands after fit is not run."""


class RelaunchScript(BaseException):
    """Ends the script, which is to be started once more."""


def main(task_file: str, events_fd: int) -> int:
    """Do one task. Returns 0, or 1 when anything failed; every failure was told as an event."""
    events = os.fdopen(events_fd, "w", buffering=1)

    def tell(event: Event) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        session = _work(json.loads(Path(task_file).read_text()), tell, events_fd)
        import_module("flor_plugins.state.processes").leave()
    except FlorError as error:
        tell({"event": "failed", "at": time.time(), "message": str(error)})
        return 1
    except BaseException as error:
        found = traceback.format_exc()
        tell({"event": "failed", "at": time.time(), "message": _told(error), "traceback": found})
        return 1
    tell({"event": "done"})
    return 1 if session.failures else 0


def _work(order: Mapping[str, Any], tell: Callable[[Event], None], events_fd: int) -> WorkerSession:
    run = load_run(Path(order["run"]))
    sandbox, store, rank = Path(order["sandbox"]), Store(Path(order["store"])), order["rank"]
    task = from_json(Task, order["task"])
    for part in _run_folders(run, rank):
        part.mkdir(exist_ok=True)
    # Before torch starts threads: the kernel binds no thread that runs already.
    assert run.code is not None
    sandbox = isolate(
        Path(run.code.root), sandbox, [store.replay(order["replay_id"]), *_run_folders(run, rank)]
    )
    folder = _enter(run, sandbox)
    lifeline.end_with_listener(events_fd)  # a thread, so after what binds only threads to come
    adapter = _adapter(run)
    _set_threads(run)
    from flor_plugins.hooks.hook_files import load
    from flor_plugins.replayer.worker_session.session import WorkerSession

    session = WorkerSession(
        run, task, order["replay_id"], [load(Path(p)) for p in order["hooks"]], tell, rank=rank
    )
    log.connect(session.log)
    fits = LaunchedFits(run, adapter, session, store, rank)
    trainers = adapters.package_of(run.framework, "intercept")
    if order["is_alone"]:
        trainers.train_alone()
    trainers.intercept(fits.arrived, inject=run.launch.injected)
    arg.recorded(run.params)
    write_guard.guard_extensions()
    _until_done(run, sandbox, lambda: _launch(run, sandbox, folder, trainers), fits)
    session.finish()
    return session


def _until_done(run: Run, sandbox: Path, launch: Callable[[], None], fits: LaunchedFits) -> None:
    """Start the script; once more where a hand-written loop was left by the script before
    all was done.
    """
    while not fits.is_done:
        fits.count = 0
        try:
            launch()
        except ReplayDone:
            return
        except RelaunchScript:
            pass
        except SystemExit as error:
            if fits.met and fits.follower is None:
                return
            if not fits.met:
                raise ReplayError(
                    _never_met(run, fits.count) + f" (it exited with {error.code!r})"
                ) from error
        except Exception:
            if not fits.was_left:  # else it is what had ended the recorded training, too
                raise
        if not fits.was_left:
            raise ReplayError(_never_met(run, fits.count))
        import_module("flor_plugins.state.processes").leave()
        _forget_modules(sandbox)


def _forget_modules(sandbox: Path) -> None:
    """The script's own modules are imported anew when it is started again."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and Path(file).is_relative_to(sandbox):
            del sys.modules[name]


class LaunchedFits:
    """Counts the recorded fits of the script; the one that is asked for is driven."""

    def __init__(
        self, run: Run, adapter: ModuleType, session: WorkerSession, store: Store, rank: int
    ) -> None:
        self.run, self.adapter, self.session, self.store, self.rank = (
            run,
            adapter,
            session,
            store,
            rank,
        )
        self.count = 0
        self.met = False
        self.follower: Any = None  # of a hand-written loop

    @property
    def is_done(self) -> bool:
        """Is a hand-written loop replayed?"""
        return self.follower is not None and self.follower.is_done

    @property
    def was_left(self) -> bool:
        """Has the script left such a loop by itself: with its `break`, or with the error of
        the recording?
        """
        return self.follower is not None and (self.follower.is_done or self.follower.wants_again)

    def arrived(self, trainer: Any, go: Callable[[], Any]) -> Any:
        number, self.count = self.count, self.count + 1
        if number == self.run.launch.call:
            self.met = True
            replace_methods(self.session.task.methods, self.run.launch)
            if self.follower is not None:
                self.follower.begin_again(*trainer)
                return self.follower
            self.follower = self.adapter.drive(trainer, go, self.session)
            if self.follower is None:
                raise ReplayDone
            self.follower.ends_with(
                ReplayDone, RelaunchScript
            )  # a hand-written loop: only the script can run its body
            return self.follower
        earlier = [
            run
            for run in list_runs(self.store)
            if run.process == self.run.process and run.launch.call == number
        ]
        if not earlier or not list_checkpoints(earlier[0].path):
            return go()
        end = list_checkpoints(earlier[0].path)[-1].position
        rank = self.rank if earlier[0].processes > 1 else 0
        return self.adapter.pass_over(trainer, go, load_checkpoint(earlier[0].path, rank, end), end)


def _adapter(run: Run) -> ModuleType:
    try:
        return adapters.package_of(run.framework, "replay_driver")
    except (ModuleNotFoundError, MissingDependency) as error:
        raise MissingDependency(
            f"run {run.name} was recorded with {run.framework}, which can't be imported now "
            f"({error}): "
            f"pip install 'flor-plugins[{run.framework}]'"
        ) from error


def _run_folders(run: Run, rank: int) -> list[Path]:
    # Of the run only the replay's own rows may be written; its checkpoints are the past.
    return [part_of(run.path, rank) / name for name in ("metrics", "media")]


def _enter(run: Run, sandbox: Path) -> Path:
    """Stand where the recorded process stood: working directory, arguments, import path."""
    assert run.code is not None
    root = Path(run.code.root)
    os.chdir(map_path(run.launch.cwd, root, sandbox))
    sys.argv = [run.launch.target, *(map_path(arg, root, sandbox) for arg in run.launch.argv)]
    sys.path[:] = [map_path(entry, root, sandbox) if entry else entry for entry in sys.path]
    _map_editable(root, sandbox)
    folder = map_path(run.launch.folder or str(Path(run.launch.target).parent), root, sandbox)
    return Path(folder)


def _map_editable(root: Path, sandbox: Path) -> None:
    """Packages that setuptools installed in place are found through a MAPPING of their finder."""
    for name, module in list(sys.modules.items()):
        mapping = getattr(module, "MAPPING", None) if name.startswith("__editable__") else None
        if isinstance(mapping, dict):
            mapping.update(
                {package: map_path(place, root, sandbox) for package, place in mapping.items()}
            )


def _set_threads(run: Run) -> None:
    """Another number of threads sums in another order."""
    import torch

    flags = run.environment.get("determinism", run.environment)
    threads = flags.get("num_threads") if isinstance(flags, Mapping) else None
    if isinstance(threads, int):
        torch.set_num_threads(threads)


def _launch(run: Run, sandbox: Path, folder: Path, trainers: ModuleType) -> None:
    launch = run.launch
    assert run.code is not None
    if launch.kind == "recipe":
        from flor_plugins.recipe import build_trainer

        built = build_trainer(folder, launch.target, dict(launch.params))
        if run.framework == "loop":
            return  # it has trained by itself
        callback = adapters.package_of(run.framework).FlorCallback(name=run.name)
        trainers.train(built, callback)
    elif launch.kind == "module":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(launch.target, run_name="__main__", alter_sys=True)
    else:
        script = map_path(launch.target, Path(run.code.root), sandbox)
        sys.argv[0] = script
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")


def _never_met(run: Run, count: int) -> str:
    return (
        f"run {run.name}: {run.launch.target} ended after {count} recorded trainings, before "
        f"the one to "
        f"replay (number {run.launch.call + 1}); is a condition in the script different now?"
    )


def _told(error: BaseException) -> str:
    """One line: what was raised, and where in the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if "site-packages" not in f.filename and "flor_plugins" not in f.filename
    ]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
