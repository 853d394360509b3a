"""The recorder of a run: rows to the journal, states to checkpoints, the run to run.json.

Nothing in here may end or change the training. Every public method swallows no error
silently: the first is warned about with its path, all are counted in the run's `gaps`.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

from flor_plugins.errors import EncodingError, FlorError, HookError
from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Metric
from flor_plugins.recorder.background_writer import BackgroundWriter
from flor_plugins.recorder.checkpointing.checkpointer import Checkpointer, StateSource
from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy
from flor_plugins.recorder.gaps import GapLog
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.replayability import obstacles
from flor_plugins.recorder.resumption import Resumption
from flor_plugins.recorder.timing_profile import PartTimer, TrainingPart
from flor_plugins.records import JsonObject, Obstacle, Position, Row, Run, RunStatus
from flor_plugins.records.sections import TIMELINE, Sections
from flor_plugins.state.tensor_trees import still
from flor_plugins.store import runs
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.row_source import recording_writer
from flor_plugins.store.metrics.timeline import Timeline
from flor_plugins.store.metrics.value_codec import decode_value, encode_value

MOST_OBSTACLES = 50
P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class Recorder:
    """Records one run. `begin` builds it, or returns None where nothing can be recorded.

    `policy` says when a checkpoint is due: the adapters ask it.
    """

    def __init__(
        self, run: Run, options: RecordOptions, resumption: Resumption | None = None
    ) -> None:
        self.run = run
        self.options = options
        self.resumption = resumption
        self.timeline = Timeline(self._emit)
        self.hooks = HookDispatcher(options.metrics, self._hook_failed)
        self._gaps = GapLog(run)
        self._timer = PartTimer()
        self._writer = BackgroundWriter(self._failed)
        self._rows = _RowJournal(run, resumption, self.warn)
        self._checkpointer = Checkpointer(
            run,
            options.schedule,
            # A State that waits for the rows' pause is lost with a process that is killed meanwhile
            put=partial(self._writer.put, soon=True),
            sync=self._rows.sync,
            failed=self._failed,
        )
        # Registered after the writer's own: so it comes before, and what it hands over is still
        # written.
        atexit.register(self._hand_over)

    # ---- what the adapters call

    @property
    def policy(self) -> CheckpointPolicy:
        """When a checkpoint is due."""
        return self._checkpointer.policy

    def log(self, name: str, value: object) -> None:
        """Take what `flor.log` is given during the run."""
        self.timeline.add(still({name: value}), self.timeline.phase)

    def checkpoint(self, position: Position, state: StateSource, *, last: bool = False) -> None:
        """Save the State that `state` gives, copied beside the training and written behind it.

        last: the training ends here.
        """
        before = self.policy.skipped_count
        lost = self._checkpointer.save(
            position, lambda: self._with_timeline(position, state()), last=last
        )
        after = self.policy.skipped_count
        # Saved while it trains, too, at every power of two: a run may be killed.
        if after > before and after & (after - 1) == 0:
            self._save(self._checkpointer.with_skips(self.run))
        self.note_obstacles(obstacles.of_lost(lost))
        if lost and not any("not full" in gap for gap in self._gaps.gaps):
            self.warn(f"checkpoints are not full: {'; '.join(lost)}")

    def watch(self, optimizers: Iterable[object]) -> None:
        """Learn which optimizers train: parameters stay as they are between their updates."""
        self._checkpointer.watch(optimizers)

    def go_on(self) -> None:
        """Let values go on where they were: the State of an interrupted run is restored."""
        assert self.resumption is not None
        self.resumption.is_restored = True
        self.timeline.restore(self._rows.decode(self.resumption.sections[TIMELINE]))

    def note_obstacles(self, found: Iterable[Obstacle]) -> None:
        """Add to run.json what keeps a run from being replayed bit for bit; each obstacle once."""
        known = self.run.obstacles
        new = [obstacle for obstacle in dict.fromkeys(found) if obstacle not in known]
        if new:
            self._save(replace(self.run, obstacles=(*known, *new)[:MOST_OBSTACLES]))

    def start(self, part: TrainingPart) -> None:
        """Start the clock of a part of the timing profile."""
        self._timer.start(part)

    def stop(self, part: TrainingPart) -> None:
        """Stop it."""
        self._timer.stop(part)

    def finish(self, status: RunStatus, error: BaseException | None = None) -> None:
        """Write the rest, seal the journal and record how the training ended."""
        self.timeline.close()
        log.connect(None)
        self._hand_over()
        self._writer.put(self._rows.journal.seal)
        self._writer.flush()
        if status == "finished" and self.resumption is not None:
            for gap in self.resumption.unfinished():
                self.warn(gap)
        run = replace(
            self.run,
            status=status,
            finished_at=now(),
            error=None if error is None else f"{type(error).__name__}: {error}"[:2000],
            position=self.run.position if self._is_waiting else self.timeline.position,
            timing=self._timer.timing(self.run.timing, self.policy.spent_s),
            gaps=tuple(self._gaps.gaps),
        )
        self._save(self._checkpointer.with_skips(run))
        self._writer.close()

    def reopen(self) -> None:
        """Open another journal for what comes after the end (trainer.test, trainer.predict)."""
        self._writer = BackgroundWriter(self._failed)
        self._rows.open_next()
        log.connect(self.log)

    def close_again(self) -> None:
        """Seal what `reopen` opened."""
        log.connect(None)
        self.timeline.close()
        self._writer.put(self._rows.journal.seal)
        self._writer.close()

    def warn(self, gap: str) -> None:
        """Warn on the console once; always list it in the run."""
        self._gaps.add(gap)

    # ---- inside

    @property
    def _is_waiting(self) -> bool:
        """Has a resumed run not come to its State? Until then, what is logged is no part of it."""
        return self.resumption is not None and not self.resumption.is_restored

    def _save(self, run: Run) -> None:
        self.run = run
        self._writer.put(partial(runs.save_run, run))

    def _hand_over(self) -> None:
        """Wait until all checkpoints are written."""
        atexit.unregister(self._hand_over)
        if os.getpid() != self.run.process.pid:  # a fork of the training ends: it has no threads
            return
        self._checkpointer.finish()
        self._writer.flush()
        self._checkpointer.close()

    def _with_timeline(self, position: Position, sections: Sections) -> Sections:
        """Add to a State how far the rows of the run have come with it."""
        timeline = self._rows.encode(self.timeline.state())
        timeline |= {"rows_here": self._rows.count_at(position), "at": time.time()}
        return {**sections, TIMELINE: timeline}

    def _emit(self, row: Row) -> None:
        if not self._is_waiting:
            self._rows.count(row)
            self._writer.put(partial(self._rows.append, row))

    def _failed(self, error: Exception) -> None:
        where = getattr(error, "filename", None) or self.run.path
        self.warn(
            f"could not write {where}: {type(error).__name__}: {error}; the training goes on "
            f"without it"
        )

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self.warn(str(error))


class _RowJournal:
    """The journal of a run's rows. `append` is for the writer's thread."""

    def __init__(
        self, run: Run, resumption: Resumption | None, warn: Callable[[str], None]
    ) -> None:
        self._run_path, self._media = run.path, run.path / "media"
        self._resumption, self._warn = resumption, warn
        self._refused: set[str] = set()  # names of values that can't be stored
        self._segment = 1
        self.journal = self._open()
        self._newest = (Position(0, 0), 0)  # where the last rows were emitted, and how many there
        if resumption is not None:
            self._newest = (resumption.position, resumption.sections[TIMELINE]["rows_here"])
            resumption.take_out(self.journal, self._media)

    def open_next(self) -> None:
        """Open a further journal beside the sealed one."""
        self._segment += 1
        self.journal = self._open()

    def sync(self) -> None:
        """Make the rows safe."""
        self.journal.sync()

    def count(self, row: Row) -> None:
        """Count a row that will be appended."""
        self._newest = (row.position, self.count_at(row.position) + 1)

    def count_at(self, position: Position) -> int:
        """Return how many rows of the position have been counted; 0 if it is not the newest."""
        return self._newest[1] if self._newest[0] == position else 0

    def append(self, row: Row) -> None:
        """Append a row without the values that can't be stored."""
        try:
            self.journal.append(row)
        except EncodingError:  # nothing of it is written: the rest of it is
            row = self._storable(row)
            self.journal.append(row)
        if self._resumption is not None and self._resumption.again:
            difference = self._resumption.compare(row, self._media)
            if difference:
                self._warn(f"the resumed run is not the interrupted one: {difference}")

    def encode(self, timeline: Mapping[str, object]) -> JsonObject:
        """Encode a timeline for a State: values that only the journal can store as it does."""
        return _map_values(timeline, self._encoded)

    def decode(self, timeline: Mapping[str, object]) -> JsonObject:
        """Undo `encode`."""
        return _map_values(timeline, self._decoded)

    def _open(self) -> Journal:
        writer = recording_writer(self._segment)
        return Journal(self._run_path / "metrics" / f"{writer}.jsonl", self._media)

    def _encoded(self, values: Mapping[str, object]) -> JsonObject:
        encoded = {}
        for name, value in values.items():
            with suppress(FlorError):  # reported when its row is written
                is_plain = value is None or isinstance(value, (bool, int, float, str, torch.Tensor))
                encoded[name] = value if is_plain else encode_value(value, self._media)
        return encoded

    def _decoded(self, values: Mapping[str, object]) -> JsonObject:
        return {
            name: decode_value(value, self._media) if isinstance(value, (dict, list)) else value
            for name, value in values.items()
        }

    def _storable(self, row: Row) -> Row:
        """Return the row without values that can't be stored; each of those is noted by name."""
        kept = {}
        for name, value in row.values.items():
            try:
                encode_value(value, self._media)
                kept[name] = value
            except FlorError as error:
                if name not in self._refused:
                    self._refused.add(name)
                    self._warn(
                        f"metric {name!r} at {row.position} and later is not stored: {error}"
                    )
        return replace(row, values=kept)


def _map_values(
    timeline: Mapping[str, Any], change: Callable[[Mapping[str, object]], JsonObject]
) -> JsonObject:
    rows = [[phase, level, change(values)] for phase, level, values in timeline["open"]]
    return {**timeline, "open": rows, "coming": change(timeline["coming"])}


def harmless(
    recorder: Recorder, act: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs
) -> ResultT | None:
    """Do something of ours amid the user's training: a failure is a gap, never an error."""
    try:
        return act(*args, **kwargs)
    except Exception as error:
        recorder.warn(f"{type(error).__name__} while recording: {error}")
        return None


def now() -> str:
    """Return the present moment as run.json holds it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
