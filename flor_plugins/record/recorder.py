"""What happens beside a training run: rows to the journal, states to checkpoints, the run to run.json.

Nothing in here may end or change the training. Every public method swallows no error
silently: the first is warned about with its path, all are counted in the run's `gaps`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch

from flor_plugins.errors import FlorError, HookError
from flor_plugins.hooks import live
from flor_plugins.hooks.calls import Hooks
from flor_plugins.hooks.metric import Metric
from flor_plugins.record.options import Options
from flor_plugins.record.writer import Writer
from flor_plugins.records import Position, Row, Run, RunStatus, Timing
from flor_plugins.store import checkpoints, codec, runs
from flor_plugins.store.journal import Journal
from flor_plugins.store.timeline import Timeline
from flor_plugins.store.values import encode_value

MOST_GAPS = 100  # of a run: something that fails at every step must not make run.json grow without end


class FlorWarning(UserWarning):
    """Something could not be recorded; the training goes on."""


class Recorder:
    """Records one run. Built by `begin`, which returns None where nothing can be recorded."""

    def __init__(self, run: Run, options: Options) -> None:
        self.run = run
        self.options = options
        self.timeline = Timeline(self._emit)
        self.hooks = Hooks(options.metrics, self._hook_failed)
        self._writer = Writer(self._failed)
        self._gaps: list[str] = list(run.gaps)
        self._refused: set[str] = set()
        self._warned = False
        self._known: checkpoints.Known = {}
        self._saved: set[Position] = set()
        self._segment = 1
        self._journal = self._open_journal()
        self._media = run.path / "media"
        self._clock: dict[str, float] = {}
        self._spent: dict[str, list[float]] = {}

    # ---- what the adapters call

    def log(self, name: str, value: Any) -> None:
        """`flor.log` during the run."""
        self.timeline.add(still({name: value}), self.timeline.phase)

    def wants_checkpoint(self, position: Position) -> bool:
        """Is a checkpoint due at this epoch boundary?"""
        return position not in self._saved and position.epoch % self.options.every_n_epochs == 0

    def checkpoint(self, position: Position, sections: Mapping[str, Any]) -> None:
        """Copy a state now, write it later. sections: as `codec.encode` takes them."""
        encoded = codec.encode(sections)
        self._saved.add(position)
        if encoded.lost and not any("not full" in gap for gap in self._gaps):
            self.warn(f"checkpoints are not full: {'; '.join(encoded.lost)}")
        self._writer.put(
            lambda: checkpoints.save_checkpoint(self.run.path, position, encoded, self._known), heavy=True
        )

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
        live.connect(None)
        self._writer.put(self._journal.seal)
        self._writer.flush()
        self.run = replace(
            self.run,
            status=status,
            finished_at=now(),
            error=None if error is None else f"{type(error).__name__}: {error}"[:2000],
            position=self.timeline.position,
            timing=self._timing(),
            gaps=tuple(self._gaps),
        )
        self._writer.put(lambda: runs.save_run(self.run))
        self._writer.close()

    def reopen(self) -> None:
        """Values that come after the end (trainer.test, trainer.predict) get a journal of their own."""
        self._segment += 1
        self._writer = Writer(self._failed)
        self._journal = self._open_journal()
        live.connect(self.log)

    def close_again(self) -> None:
        """Seal what `reopen` opened."""
        live.connect(None)
        self.timeline.close()
        self._writer.put(self._journal.seal)
        self._writer.close()

    def warn(self, what: str) -> None:
        """Warn once on the console; always note it in the run: each gap once, and no endless list of them."""
        if what not in self._gaps and len(self._gaps) < MOST_GAPS:
            self._gaps.append(what)
            if len(self._gaps) == MOST_GAPS:
                self._gaps.append("what else is missing is not listed")
        if not self._warned:
            self._warned = True
            try:
                warnings.warn(f"flor: {what} (run {self.run.name}, {self.run.path})", FlorWarning, stacklevel=3)
            except FlorWarning as raised:
                # `python -W error`: still no reason to end the training.
                print(raised, file=sys.stderr)

    # ---- inside

    def _open_journal(self) -> Journal:
        suffix = "" if self._segment == 1 else f"-{self._segment}"
        return Journal(self.run.path / "metrics" / f"record-r0{suffix}.jsonl", self.run.path / "media")

    def _emit(self, row: Row) -> None:
        self._writer.put(lambda: self._journal.append(self._storable(row)))

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
            f"could not write {where}: {type(error).__name__}: {error}; the training goes on without it"
        )

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self.warn(str(error))

    def _timing(self) -> Timing:
        mean = {part: sum(s) / len(s) for part, s in self._spent.items() if s}
        return Timing(self.run.timing.build_s, mean.get("epoch"), mean.get("validation"))


def still(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the training can't change any more: tensors are copied where they are, without a sync."""
    return {name: _still(value) for name, value in values.items()}


def _still(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return [_still(one) for one in value]
    if type(value) is dict:
        return {key: _still(one) for key, one in value.items()}
    return value


def harmless(recorder: Recorder, act: Callable[[], Any]) -> Any:
    """Do something of ours in the middle of the user's training: a failure is a gap, never an error."""
    try:
        return act()
    except Exception as error:
        recorder.warn(f"{type(error).__name__} while recording: {error}")
        return None


def now() -> str:
    """The present moment, as run.json holds it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
