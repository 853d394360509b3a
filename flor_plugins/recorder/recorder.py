"""What happens beside a training run: rows to the journal, states to checkpoints, the run to
run.json.

Nothing in here may end or change the training. Every public method swallows no error
silently: the first is warned about with its path, all are counted in the run's `gaps`.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import torch

from flor_plugins.errors import EncodingError, FlorError, HookError
from flor_plugins.hooks import log
from flor_plugins.hooks.dispatch import HookDispatcher
from flor_plugins.hooks.metric import Metric
from flor_plugins.recorder.background_writer import BackgroundWriter
from flor_plugins.recorder.checkpointing.checkpointer import Checkpointer
from flor_plugins.recorder.checkpointing.policy import CheckpointPolicy
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.replayability import obstacles
from flor_plugins.recorder.resume import Resumption
from flor_plugins.records import Obstacle, Position, Row, Run, RunStatus, Timing
from flor_plugins.records.sections import TIMELINE
from flor_plugins.state.still import still
from flor_plugins.store import runs
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.row_source import recording_writer
from flor_plugins.store.metrics.timeline import Timeline
from flor_plugins.store.metrics.value_codec import decode_value, encode_value

MOST_GAPS = (
    100  # of a run: something that fails at every step must not make run.json grow without end
)
MOST_OBSTACLES = 50


class FlorWarning(UserWarning):
    """Something could not be recorded; the training goes on."""


class Recorder:
    """Records one run. Built by `begin`, which returns None where nothing can be recorded.

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
        self._writer = BackgroundWriter(self._failed)
        self._gaps: list[str] = list(run.gaps)
        self._refused: set[str] = set()
        self._warned = False
        self._segment = 1
        self._media = run.path / "media"
        self._journal = self._open_journal()
        self._is_waiting = (
            resumption is not None
        )  # until then, what this process logs is no part of the run
        self._here = (Position(0, 0), 0)  # where the last rows were emitted, and how many there
        if resumption is not None:
            self._here = (resumption.position, resumption.sections[TIMELINE]["rows_here"])
            resumption.take_out(self._journal, self._media)
        # A State that waits for the rows' pause is lost with a process that is killed meanwhile.
        put = partial(self._writer.put, soon=True)
        self._keeper = Checkpointer(
            run, options, put=put, sync=lambda: self._journal.sync(), failed=self._failed
        )
        # Registered after the writer's own: so it comes before, and what it hands over is still
        # written.
        atexit.register(self._hand_over)
        self._clock: dict[str, float] = {}
        self._spent: dict[str, list[float]] = {}

    # ---- what the adapters call

    def log(self, name: str, value: Any) -> None:
        """`flor.log` during the run."""
        self.timeline.add(still({name: value}), self.timeline.phase)

    def checkpoint(
        self, position: Position, state: Callable[[], Mapping[str, Any]], *, last: bool = False
    ) -> None:
        """Keep the State that `state` gives, copied beside the training and written behind it.

        Its sections are as `codec.encode` takes them. last: the training ends here.
        """
        before = self.policy.skipped_count
        lost = self._keeper.keep(position, lambda: self._with_rows(position, state()), last=last)
        after = self.policy.skipped_count
        if (
            after > before and after & (after - 1) == 0
        ):  # said while it trains, too: a run may be killed
            run = self.run = replace(self.run, **self._keeper.skipped())
            self._writer.put(lambda: runs.save_run(run))
        self.note_obstacles(obstacles.of_lost(lost))
        if lost and not any("not full" in gap for gap in self._gaps):
            self.warn(f"checkpoints are not full: {'; '.join(lost)}")

    def watch(self, optimizers: Iterable[Any]) -> None:
        """The optimizers of this training: between two of their updates its parameters stay
        as they are.
        """
        self._keeper.watch(optimizers)

    def go_on(self) -> None:
        """The State of an interrupted run is restored: values go on where they were."""
        assert self.resumption is not None
        self._is_waiting = False
        state = self.resumption.sections[TIMELINE]

        def said(values: Mapping[str, Any]) -> dict[str, Any]:
            return {
                n: decode_value(v, self._media) if isinstance(v, (dict, list)) else v
                for n, v in values.items()
            }

        rows = [[phase, level, said(values)] for phase, level, values in state["open"]]
        self.timeline.restore({**state, "open": rows, "coming": said(state["coming"])})

    def note_obstacles(self, found: Iterable[Obstacle]) -> None:
        """What keeps this run from being replayed bit for bit, into run.json; each of them once."""
        new = [one for one in dict.fromkeys(found) if one not in self.run.obstacles]
        if new:
            run = self.run = replace(
                self.run, obstacles=(*self.run.obstacles, *new)[:MOST_OBSTACLES]
            )
            self._writer.put(lambda: runs.save_run(run))

    def start(self, part: Literal["epoch", "validation"]) -> None:
        """The clock of a part of the timing profile starts."""
        self._clock[part] = time.perf_counter()

    def stop(self, part: Literal["epoch", "validation"]) -> None:
        """... and stops."""
        if part in self._clock:
            self._spent.setdefault(part, []).append(time.perf_counter() - self._clock.pop(part))

    def finish(self, status: RunStatus, error: BaseException | None = None) -> None:
        """The training ended: write the rest, seal the journal, say how it ended."""
        self.timeline.close()
        log.connect(None)
        self._hand_over()
        self._writer.put(self._journal.seal)
        self._writer.flush()
        if status == "finished" and self._is_waiting:
            self.warn(
                "the interrupted run was to go on, and this training never came to where it stood"
            )
        elif status == "finished" and self.resumption is not None and self.resumption.again:
            missing = min(step for step, *_ in self.resumption.again)
            self.warn(
                f"recorded before the interruption and not again: values of step {missing} and "
                f"later ones"
            )
        self.run = replace(
            self.run,
            status=status,
            finished_at=now(),
            error=None if error is None else f"{type(error).__name__}: {error}"[:2000],
            position=self.run.position if self._is_waiting else self.timeline.position,
            timing=self._timing(),
            gaps=tuple(self._gaps),
            **self._keeper.skipped(),
        )
        self._writer.put(lambda: runs.save_run(self.run))
        self._writer.close()

    def reopen(self) -> None:
        """Values that come after the end (trainer.test, trainer.predict) get a journal of
        their own.
        """
        self._segment += 1
        self._writer = BackgroundWriter(self._failed)
        self._journal = self._open_journal()
        log.connect(self.log)

    def close_again(self) -> None:
        """Seal what `reopen` opened."""
        log.connect(None)
        self.timeline.close()
        self._writer.put(self._journal.seal)
        self._writer.close()

    def warn(self, what: str) -> None:
        """Warn once on the console; always note it in the run: each gap once, and no endless
        list of them.
        """
        if what not in self._gaps and len(self._gaps) < MOST_GAPS:
            self._gaps.append(what)
            if len(self._gaps) == MOST_GAPS:
                self._gaps.append("what else is missing is not listed")
        if not self._warned:
            self._warned = True
            try:
                warnings.warn(
                    f"flor: {what} (run {self.run.name}, {self.run.path})",
                    FlorWarning,
                    stacklevel=3,
                )
            except FlorWarning as raised:
                # `python -W error`: still no reason to end the training.
                print(raised, file=sys.stderr)

    # ---- inside

    @property
    def policy(self) -> CheckpointPolicy:
        """When a checkpoint is due."""
        return self._keeper.policy

    def _hand_over(self) -> None:
        """Wait until all checkpoints are written."""
        atexit.unregister(self._hand_over)
        if (
            os.getpid() != self.run.process.pid
        ):  # a fork of the training that comes to its end: it has no threads
            return
        self._keeper.finish()
        self._writer.flush()
        self._keeper.close()

    def _with_rows(self, position: Position, sections: Mapping[str, Any]) -> Mapping[str, Any]:
        """A State and how far the rows of the run have come with it."""
        return {**sections, TIMELINE: {**self._open_rows(position), "at": time.time()}}

    def _open_journal(self) -> Journal:
        writer = recording_writer(self._segment)
        return Journal(self.run.path / "metrics" / f"{writer}.jsonl", self.run.path / "media")

    def _emit(self, row: Row) -> None:
        if self._is_waiting:
            return
        self._here = (row.position, self._here[1] + 1 if self._here[0] == row.position else 1)
        self._writer.put(lambda: self._append(row))

    def _append(self, row: Row) -> None:
        try:
            self._journal.append(row)
        except EncodingError:  # nothing of it is written: the rest of it is
            row = self._storable(row)
            self._journal.append(row)
        if self.resumption is not None and self.resumption.again:
            differs = self.resumption.compare(row, self._media)
            if differs:
                self.warn(f"the resumed run is not the interrupted one: {differs}")

    def _open_rows(self, position: Position) -> dict[str, Any]:
        """The timeline for a State. Values that only the journal knows how to say are said its way.

        rows_here: how many rows of the State's own position are in the journal already.
        """
        state = self.timeline.state()
        rows = [[phase, level, self._sayable(values)] for phase, level, values in state["open"]]
        here = self._here[1] if self._here[0] == position else 0
        return {**state, "open": rows, "coming": self._sayable(state["coming"]), "rows_here": here}

    def _sayable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        said = {}
        for name, value in values.items():
            with suppress(FlorError):  # noted when its row is written
                is_plain = value is None or isinstance(value, (bool, int, float, str, torch.Tensor))
                said[name] = value if is_plain else encode_value(value, self._media)
        return said

    def _storable(self, row: Row) -> Row:
        """The row without values that can't be stored; each of those is noted by name."""
        kept: dict[str, Any] = {}
        for name, value in row.values.items():
            try:
                encode_value(value, self._media)
                kept[name] = value
            except FlorError as error:
                if name not in self._refused:
                    self._refused.add(name)
                    self.warn(f"metric {name!r} at {row.position} and later is not stored: {error}")
        return replace(row, values=kept)

    def _failed(self, error: Exception) -> None:
        where = getattr(error, "filename", None) or self.run.path
        self.warn(
            f"could not write {where}: {type(error).__name__}: {error}; the training goes on "
            f"without it"
        )

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self.warn(str(error))

    def _timing(self) -> Timing:
        mean = {part: sum(s) / len(s) for part, s in self._spent.items() if s}
        was = self.run.timing  # of the time before an interruption
        return Timing(
            was.build_s,
            mean.get("epoch", was.epoch_s),
            mean.get("validation", was.validation_s),
            round((was.recording_s or 0.0) + self.policy.spent_s, 3),
        )


def harmless(recorder: Recorder, act: Callable[[], Any]) -> Any:
    """Do something of ours in the middle of the user's training: a failure is a gap, never
    an error.
    """
    try:
        return act()
    except Exception as error:
        recorder.warn(f"{type(error).__name__} while recording: {error}")
        return None


def now() -> str:
    """The present moment, as run.json holds it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
