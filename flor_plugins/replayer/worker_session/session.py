"""One task in a worker: states in, recomputed values out, each compared with the recording.

The adapter drives the trainer and feeds `timeline`; it never asks whether this is a replay.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flor_plugins.errors import HookError
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.hook_files import HookFile
from flor_plugins.hooks.metric import Context, Metric
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
from flor_plugins.records.sections import MODEL
from flor_plugins.replayer.planning.recorded_values import history_of
from flor_plugins.replayer.verification.comparison import Comparison
from flor_plugins.replayer.verification.evidence import likely_causes
from flor_plugins.replayer.verification.second_replay import RepeatedRange
from flor_plugins.replayer.worker_session.batch_cache import BatchCache
from flor_plugins.replayer.worker_session.prefetch import StatePrefetcher, StateRequest, order_of
from flor_plugins.replayer.worker_session.rows import is_asked, rows_of
from flor_plugins.state import processes
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.checkpoints.hashes import PRESENT, hash_tensor
from flor_plugins.store.metrics.journal import Journal, read_run
from flor_plugins.store.metrics.row_source import replay_writer
from flor_plugins.store.metrics.timeline import Timeline
from flor_plugins.store.metrics.value_codec import encode_value
from flor_plugins.store.run_index import index_run


class WorkerSession:
    """What an adapter's `drive` works with. places: where the run has been.

    rank: which of the processes this is that replay together; each compares with its own part
    of the run, and only the first one's values are kept. per_pass: for how many positions
    validation data is loaded at once, where hooks of the weights go through it; None: for all.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        replay_id: str,
        loaded: list[HookFile],
        tell: Callable[[Event], None],
        *,
        rank: int = 0,
        per_pass: int | None = None,
    ) -> None:
        self.run, self.task, self.loaded = run, task, loaded
        self.hooks = HookDispatcher((), self._hook_failed)
        self.timeline = Timeline(self._emit)
        self.failures = 0
        self._tell = tell
        self._pass: ReplayPass | None = None
        self._stretch: TrainingRange | None = None
        self._seen: RepeatedRange | None = None
        self._has_repeated = False
        self._comparison = Comparison()
        self._rank, self._path = rank, ranks.folder(run.path, rank)
        self._media = self._path / "media"
        path = self._path / "metrics" / f"{replay_writer(replay_id)}.jsonl"
        self._journal = None if rank else Journal(path, self._media)
        rows = read_run(run.path)
        self.places = index_run(run, rows)
        self._states = StatePrefetcher(run, rank, order_of(task), self._say)
        self._batches = BatchCache(self._say, per_pass)
        saved = checkpoints.list_checkpoints(self._path) if rank else self.places.saved.values()
        self._saved = {one.position for one in saved}
        self._hooks = {m.name: m for one in loaded for m in one.metrics}
        # As the planner does: what an earlier source of a hook gave does not count (`known_by`).
        own = {m.name: (one.digest_of(m.name), one.digest) for one in loaded for m in one.metrics}
        self._digests: dict[str, tuple[str | None, ...]] = {**own, **task.digests}
        self._history = history_of(
            replace(run, path=self._path), self._digests, None if rank else rows
        )

    # ---- what the adapter asks

    def passes(self, way: Strategy) -> Iterator[ReplayPass]:
        """The passes of one way; its hooks are in `hooks` while it is being driven."""
        yield from (one for one in self.task.passes if one.way == way)

    def state(self, position: Position, *, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        """The State at a position. Raises NoCheckpoint or DamagedCheckpoint."""
        return self._states.load(StateRequest(position, only))

    def restored(self) -> None:
        """The State at hand is in the trainer, and let go of: from here on the next one is
        read ahead.
        """
        self._states.begin()

    def values_of(self, context: Context) -> dict[str, Any]:
        """What the hooks of the weights give at a position.

        The data that they go through is loaded once.
        """
        if context.make_val_dataloader is None or not self._shares_data:
            return self.hooks.epoch(context)
        self._batches.begin()
        make = context.make_val_dataloader
        return self.hooks.epoch(
            replace(context, make_val_dataloader=lambda: self._batches.of(make()))
        )

    def hooks_of(self, one: ReplayPass) -> tuple[Metric, ...]:
        """The requested @flor.metric hooks of a pass. Training computes those of every moment."""
        moments = {
            "state": ("epoch",),
            "validate": ("validation",),
            "train": ("epoch", "validation", "step"),
        }
        return tuple(
            m for m in self._hooks.values() if m.name in one.metrics and m.at in moments[one.way]
        )

    @contextmanager
    def passing(self, one: ReplayPass) -> Iterator[None]:
        """Everything inside belongs to that pass: its hooks, its seconds, its verdict."""
        started = time.perf_counter()
        self._pass, self._comparison, self._has_repeated = one, Comparison(), False
        self.hooks.metrics = self.hooks_of(one)
        self._tell(PassStart(one.way, one.epochs))
        try:
            yield
            self.timeline.close()
        except BaseException:
            self._states.close()
            raise
        finally:
            self._pass = None
            self._batches.forget()
        self._tell(
            PassResult(
                one.way,
                one.epochs,
                time.perf_counter() - started,
                self._comparison.verdict(),
            )
        )

    def stretches(self, one: ReplayPass) -> Iterator[TrainingRange]:
        """What is to be run again, one after the other.

        The first that differs comes twice: do two replays agree?
        """
        whole = self._comparison
        for stretch in one.stretches:
            self._comparison, seen = Comparison(), RepeatedRange()
            yield from self._running(stretch, seen)
            found = self._comparison
            differs_at = self._agreed(found.earliest.position if found.earliest else None)
            if differs_at is not None and not self._has_repeated:
                self._has_repeated = True
                seen.begin()
                self.hooks.metrics = ()
                yield from self._running(replace(stretch, end=differs_at), seen)
                self.hooks.metrics = self.hooks_of(one)
            # A second replay says something of its own stretch only.
            causes = likely_causes(self.run, found, seen if seen.is_second else None)
            self._tell(RangeResult(stretch, found.verdict(), tuple(causes)))
            whole.add(found)
        self._comparison = whole

    def boundary(
        self,
        position: Position,
        *,
        epoch_ended: bool,
        weights: Callable[[], Mapping[str, Any]],
        context: Callable[[], Context],
    ) -> bool:
        """All values of `position` are in the timeline. True: the present stretch ends here."""
        assert self._pass is not None and self._stretch is not None
        if self._seen is None or not self._seen.is_second:
            if position in self._pass.positions:
                values = self.hooks.epoch(context())
                self.timeline.add(values, "validation", "epoch" if epoch_ended else "step")
            if position in self._saved:
                self.compare_weights(position, weights())
            if epoch_ended:
                self.position_done(position)
        return position >= self._stretch.end

    def position_done(self, position: Position) -> None:
        """One more position of the present pass has its values."""
        self.timeline.close()
        if self._pass is not None and self._pass.way == "validate":
            self._looked_for(position, self._pass)
        self._tell(PositionResult(position, self._pass.way if self._pass else ""))

    def compare_weights(self, position: Position, weights: Mapping[str, Any]) -> None:
        """The model as it stands against the checkpoint at that position, tensor by tensor."""
        known = (
            None if self._rank else self._states.hashes(position)
        )  # of the run, so of the first process
        recorded = (
            checkpoints.tensor_hashes(self._path, position, MODEL) if known is None else known
        )
        recomputed = {
            name: hash_tensor(t.detach().cpu().contiguous(), recorded.get(name, PRESENT))
            for name, t in weights.items()
        }
        grade = self._comparison.hashes(position, recorded, recomputed)
        self._tell(WeightResult(position, grade))

    def log(self, name: str, value: Any) -> None:
        """`flor.log` in replayed code or in a hook."""
        self.timeline.add({name: value}, self.timeline.phase)

    def finish(self) -> None:
        """Seal the journal; nothing is read ahead any more."""
        self._states.close()
        self.timeline.close()
        if self._journal is not None:
            self._journal.seal()

    # ---- inside

    @property
    def _shares_data(self) -> bool:
        """Is there more than one call of a hook in the present pass?"""
        return self._pass is not None and len(self._pass.positions) * len(self.hooks.metrics) > 1

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr)

    def _agreed(self, position: Position | None) -> Position | None:
        """What the first process says: all train the same stretches, or they wait for each
        other.
        """
        said = processes.from_first("differs", lambda: None if position is None else str(position))
        return None if said is None else Position.parse(said)

    def _running(self, stretch: TrainingRange, seen: RepeatedRange) -> Iterator[TrainingRange]:
        self.timeline.jump(stretch.start)
        self._stretch, self._seen = stretch, seen
        yield stretch
        self.timeline.close()
        self._stretch = self._seen = None

    def _emit(self, row: Row) -> None:
        one = self._pass
        if one is None:
            return
        encoded = {
            name: self._encode(name, value, row.position) for name, value in row.values.items()
        }
        encoded = {name: value for name, value in encoded.items() if value is not None}
        if self._seen is not None and self._seen.heard(row, encoded):
            return  # the second time only says whether both agree
        grade = self._comparison.values(row.position, self._history.at(row), encoded)
        if grade == "unverified":
            grade = self._comparison.verdict().grade
        if self._journal is None:
            return
        new = {name: row.values[name] for name in encoded if self._is_wanted(name, row, one)}
        self._history.note(row, new)
        is_step = (
            one.way == "train"
            and (row.phase, row.level) == ("train", "step")
            and is_asked(one, row.position)
        )
        for each in rows_of(row, new, self._unsure(one) if is_step else (), self._digest, grade):
            self._journal.append(each)

    def _unsure(self, one: ReplayPass) -> list[str]:
        return [name for name in one.metrics if name not in self._hooks]

    def _looked_for(self, position: Position, one: ReplayPass) -> None:
        level = "epoch" if self.places.is_end(position) else "step"
        row, grade = (
            Row(position, "validation", level, {}, time.time()),
            self._comparison.verdict().grade,
        )
        for each in (
            rows_of(row, {}, self._unsure(one), self._digest, grade)
            if self._journal is not None
            else ()
        ):
            self._journal.append(each)  # type: ignore[union-attr]

    def _digest(self, name: str) -> str | None:
        return next(iter(self._digests.get(name, ())), None)

    def _is_wanted(self, name: str, row: Row, one: ReplayPass) -> bool:
        if name not in one.metrics:
            return False
        if name not in self._hooks:  # it may be logged in training and in validation
            is_there = (name, (row.position, row.phase, row.level)) in self._history.rows
            is_chosen = one.way != "train" or (row.phase, row.level) != ("train", "step")
            return not is_there and (is_chosen or is_asked(one, row.position))
        if (name, row.position) in self._history.present:
            return False
        if one.way != "train":
            return True
        if self._hooks[name].at == "step":
            return one.steps is None or row.position.step in one.steps
        return row.position in one.positions

    def _encode(self, name: str, value: Any, position: Position) -> Any:
        try:
            return encode_value(value, self._media)
        except Exception as error:
            self._fail(f"metric {name!r} at {position} can't be stored: {error}")
            return None

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self._fail(str(error))

    def _fail(self, message: str) -> None:
        if self._rank:  # the first process has called the same hook
            return
        self.failures += 1
        self._tell(HookFailure(message))


def guarded(act: Callable[[], Any]) -> Any:
    """Read a value; None where that fails, with the traceback in the worker's output.

    It failed when the run was recorded, too, and was noted there; the replay goes on as the
    recording did."""
    try:
        return act()
    except Exception:
        traceback.print_exc()
        return None
