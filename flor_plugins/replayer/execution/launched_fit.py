"""The trainings that a script comes to when it is started again.

The recorded one is replayed, those before it are passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flor_plugins import adapter
from flor_plugins.adapter import LoopFollower, Proceed, ReplayDriver
from flor_plugins.errors import MissingDependency, ReplayError
from flor_plugins.records import Run
from flor_plugins.replayer.execution.relaunched_script import RelaunchedScript
from flor_plugins.replayer.method_patching.patches import replace_methods
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.ranks import load_checkpoint
from flor_plugins.store.runs import list_runs

if TYPE_CHECKING:
    from flor_plugins.replayer.worker_session.session import WorkerSession


class ReplayDone(BaseException):
    """Ends the script once all positions are done; what stands after fit is not run."""


class RelaunchScript(BaseException):
    """Ends the script, which is to be started once more."""


class LaunchedFits:
    """Counts the recorded fits of the script; the one that is asked for is replayed.

    follower: who replays a hand-written loop, once the script has come to it.
    """

    def __init__(
        self, driver: ReplayDriver[object, object], session: WorkerSession, store: Store, rank: int
    ) -> None:
        self.run, self.driver, self.session = session.run, driver, session
        self.store, self.rank = store, rank
        self.count = 0
        self.was_met = False
        self.follower: LoopFollower[object] | None = None

    def replay(self, script: RelaunchedScript) -> None:
        """Start the script; once more where it left a hand-written loop before all was done."""
        while self.follower is None or not self.follower.is_done:
            self.count = 0
            try:
                script.start()
            except ReplayDone:
                return
            except RelaunchScript:
                pass
            except SystemExit as error:
                if self.was_met and self.follower is None:
                    return
                if not self.was_met:
                    raise ReplayError(
                        f"{self._never_met()} (it exited with {error.code!r})"
                    ) from error
            except Exception:
                if not self._was_left:  # else it is what had ended the recorded training, too
                    raise
            if not self._was_left:
                raise ReplayError(self._never_met())
            script.forget()

    def arrived(self, trainer: object, go: Proceed) -> object:
        """Meet a recorded fit of the script."""
        number, self.count = self.count, self.count + 1
        if number == self.run.launch.call:
            return self._replay(trainer, go)
        for run in list_runs(self.store):
            if run.process == self.run.process and run.launch.call == number:
                checkpoints = list_checkpoints(run.path)
                if not checkpoints:
                    break
                end, rank = checkpoints[-1].position, self.rank if run.processes > 1 else 0
                sections = load_checkpoint(run.path, rank, end)
                return self.driver.pass_over(trainer, go, sections, end)
        return go()

    def _replay(self, trainer: object, go: Proceed) -> LoopFollower[object]:
        self.was_met = True
        replace_methods(self.session.task.methods, self.run.launch)
        if self.follower is not None:
            self.follower.begin_again(trainer)
            return self.follower
        self.follower = self.driver.drive(trainer, go, self.session)
        if self.follower is None:
            raise ReplayDone
        return self.follower  # of a hand-written loop: only the script can run its body

    @property
    def _was_left(self) -> bool:
        """The script has left a hand-written loop: by its `break`, or the recording's error."""
        return self.follower is not None and (self.follower.is_done or self.follower.wants_again)

    def _never_met(self) -> str:
        launch = self.run.launch
        return (
            f"run {self.run.name}: {launch.target} ended after {self.count} recorded trainings, "
            f"before the one to replay (number {launch.call + 1}); is a condition in the script "
            f"different now?"
        )


def driver_of(run: Run) -> ReplayDriver[object, object]:
    """Return what replays a run. Raises MissingDependency."""
    try:
        return adapter.replay_driver_of(run.framework)
    except (ModuleNotFoundError, MissingDependency) as error:
        raise MissingDependency(
            f"run {run.name} was recorded with {run.framework}, which can't be imported now "
            f"({error}): pip install 'flor-plugins[{run.framework}]'"
        ) from error
