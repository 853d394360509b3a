"""One task in a worker: states in, recomputed values out, each compared with the recording.

The adapter drives the trainer and feeds `timeline`; it never asks whether this is a replay.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from flor_plugins.errors import HookError
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.hook_files import HookFile
from flor_plugins.hooks.metric import Metric
from flor_plugins.records import Position, ReplayPass, Row, Run, Strategy, Task, TrainingRange
from flor_plugins.records.events import (
    Event,
    HookFailure,
    PassResult,
    PassStart,
    PositionResult,
    RangeResult,
    WeightResult,
)
from flor_plugins.replayer.verification.comparison import Comparison
from flor_plugins.replayer.verification.evidence import likely_causes
from flor_plugins.replayer.verification.second_replay import RepeatedRange
from flor_plugins.replayer.worker_session.prefetch import StatePrefetcher, StateRequest, order_of
from flor_plugins.replayer.worker_session.result_writer import ResultWriter
from flor_plugins.replayer.worker_session.weight_check import WeightCheck
from flor_plugins.state import processes
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.timeline import Timeline
from flor_plugins.store.run_index import index_run

Value = TypeVar("Value")
# The moments of the hooks that a pass computes.
_MOMENTS: dict[Strategy, tuple[str, ...]] = {
    "state": ("epoch",),
    "validate": ("validation",),
    "train": ("epoch", "validation", "step"),
}


@dataclass(slots=True)
class PassProgress:
    """A pass that is being done. range: that is trained at present, if one is.

    repeat: whether two replays of that range agree; has_repeated: once in a pass that is asked.
    """

    replay_pass: ReplayPass
    comparison: Comparison = field(default_factory=Comparison)
    range: TrainingRange | None = None
    repeat: RepeatedRange | None = None
    has_repeated: bool = False

    @property
    def is_second(self) -> bool:
        """Whether the range is trained a second time."""
        return self.repeat is not None and self.repeat.is_second


class WorkerSession:
    """What the replay loop and an adapter's `drive` work with. index: where the run has been.

    rank: which of the processes this is that replay together; each compares with its own part
    of the run, and only the first one's values are kept. hooks: those of the present pass;
    before the first one, all of the hook files.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        replay_id: str,
        files: Sequence[HookFile],
        tell: Callable[[Event], None],
        *,
        rank: int = 0,
    ) -> None:
        self.task, self.files, self._tell = task, files, tell
        rows = read_run(run.path)
        self.index = index_run(run, rows)
        self.timeline = Timeline(self._emit)
        self.progress: PassProgress | None = None
        self._states = StatePrefetcher(run, rank, order_of(task), say)
        self.weights = WeightCheck(self.index, rank, self._states)
        self._writer = ResultWriter(run, task, replay_id, files, rows, rank, self._fail)
        self.hooks = HookDispatcher(tuple(self._writer.metrics.values()), self._hook_failed)

    @property
    def run(self) -> Run:
        """The run that is replayed."""
        return self.index.run

    def passes(self, way: Strategy) -> Iterator[ReplayPass]:
        """Return the passes of one way."""
        return (replay_pass for replay_pass in self.task.passes if replay_pass.way == way)

    def state(self, position: Position, *, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return the State at a position. Raises NoCheckpoint or DamagedCheckpoint."""
        return self._states.load(StateRequest(position, only))

    def read_ahead(self) -> None:
        """Begin to read the next State: the present one is in the trainer, and let go of."""
        self._states.begin()

    def stand_at(self, position: Position) -> None:
        """Let the values to come belong to a position whose State was restored."""
        self.timeline.jump(position)
        if self.index.is_end(position):
            self.timeline.complete_epoch(position.epoch)

    def hooks_of(self, replay_pass: ReplayPass) -> tuple[Metric, ...]:
        """Return the requested @flor.metric hooks of a pass."""
        return tuple(
            metric
            for metric in self._writer.metrics.values()
            if metric.name in replay_pass.metrics and metric.at in _MOMENTS[replay_pass.way]
        )

    @contextmanager
    def passing(self, replay_pass: ReplayPass) -> Iterator[None]:
        """Let everything inside belong to that pass: its hooks, its seconds, its verdict."""
        started, way, epochs = time.perf_counter(), replay_pass.way, replay_pass.epochs
        progress = self.progress = PassProgress(replay_pass)
        self.hooks.metrics = self.hooks_of(replay_pass)
        self._tell(PassStart(way, epochs))
        try:
            yield
            self.timeline.close()
        except BaseException:
            self._states.close()
            raise
        finally:
            self.progress = None
        seconds = time.perf_counter() - started
        self._tell(PassResult(way, epochs, seconds, progress.comparison.verdict()))

    def ranges(self) -> Iterator[TrainingRange]:
        """Give what the present pass trains again, one after the other.

        The first that differs comes twice: do two replays agree?
        """
        progress = self.present
        whole = progress.comparison
        for trained in progress.replay_pass.stretches:
            comparison = progress.comparison = Comparison()
            repeat = RepeatedRange()
            yield from self._training(trained, repeat)
            differs_at = _agreed(comparison.earliest.position if comparison.earliest else None)
            if differs_at is not None and not progress.has_repeated:
                progress.has_repeated = True
                repeat.begin()
                self.hooks.metrics = ()
                yield from self._training(replace(trained, end=differs_at), repeat)
                self.hooks.metrics = self.hooks_of(progress.replay_pass)
            # A second replay says something of its own range only.
            causes = likely_causes(self.run, comparison, repeat if repeat.is_second else None)
            self._tell(RangeResult(trained, comparison.verdict(), tuple(causes)))
            whole.add(comparison)
        progress.comparison = whole

    def position_done(self, position: Position) -> None:
        """One more position of the present pass has its values."""
        self.timeline.close()
        progress = self.present
        if progress.replay_pass.way == "validate":
            level = "epoch" if self.index.is_end(position) else "step"
            grade = progress.comparison.verdict().grade
            self._writer.note_validation(position, level, progress.replay_pass, grade)
        self._tell(PositionResult(position, progress.replay_pass.way))

    def compare_weights(self, position: Position, weights: Mapping[str, torch.Tensor]) -> None:
        """Compare the model as it stands with the checkpoint at that position."""
        grade = self.weights.grade(position, weights, self.present.comparison)
        self._tell(WeightResult(position, grade))

    def log(self, name: str, value: object) -> None:
        """Take a value of `flor.log` in replayed code or in a hook."""
        self.timeline.add({name: value}, self.timeline.phase)

    def finish(self) -> None:
        """Seal the journal; nothing is read ahead any more."""
        self._states.close()
        self.timeline.close()
        self._writer.seal()

    @property
    def present(self) -> PassProgress:
        """The pass that is being done; there must be one."""
        assert self.progress is not None
        return self.progress

    # ---- inside

    def _training(self, trained: TrainingRange, repeat: RepeatedRange) -> Iterator[TrainingRange]:
        progress = self.present
        self.timeline.jump(trained.start)
        progress.range, progress.repeat = trained, repeat
        yield trained
        self.timeline.close()
        progress.range = progress.repeat = None

    def _emit(self, row: Row) -> None:
        progress = self.progress
        if progress is None:
            return
        encoded = self._writer.encode(row)
        if progress.repeat is not None and progress.repeat.heard(row, encoded):
            return  # the second time only says whether both agree
        grade = progress.comparison.values(row.position, self._writer.recorded(row), encoded)
        if grade == "unverified":
            grade = progress.comparison.verdict().grade
        self._writer.write(row, encoded, progress.replay_pass, grade)

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self._fail(str(error))

    def _fail(self, message: str) -> None:
        if self.weights.rank == 0:  # else the first process has called the same hook
            self._tell(HookFailure(message))


def say(text: str) -> None:
    """Tell the user something, in the worker's output."""
    print(text, file=sys.stderr)


def guarded(read: Callable[..., Value], *args: object) -> Value | None:
    """Read a value; None where that fails, with the traceback in the worker's output.

    It failed when the run was recorded, too, and was noted there; the replay goes on as the
    recording did.
    """
    try:
        return read(*args)
    except Exception:
        traceback.print_exc()
        return None


def _agreed(position: Position | None) -> Position | None:
    """What the first process says: all train the same ranges, or they wait for each other."""
    first = processes.from_first("differs", lambda: None if position is None else str(position))
    return None if first is None else Position.parse(first)
