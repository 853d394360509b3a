"""One task in a worker: states in, recomputed values out, each compared with the recording.

The adapter drives the trainer and feeds `timeline`; it never asks whether this is a replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from flor_plugins.errors import HookError, ReplayError
from flor_plugins.hooks.calls import Hooks
from flor_plugins.hooks.load import Loaded
from flor_plugins.hooks.metric import Metric
from flor_plugins.records import Level, Pass, Phase, Position, Row, Run, Task, Way
from flor_plugins.replay.verify import Comparison
from flor_plugins.store import checkpoints
from flor_plugins.store.checkpoint_files import sha256
from flor_plugins.store.journal import Journal, read_run
from flor_plugins.store.timeline import Timeline
from flor_plugins.store.values import encode_value

Event = dict[str, Any]
Key = tuple[Position, Phase, Level]


class Session:
    """What an adapter's `drive` works with."""

    def __init__(
        self, run: Run, task: Task, replay_id: str, loaded: list[Loaded], tell: Callable[[Event], None]
    ) -> None:
        self.run, self.task, self.loaded = run, task, loaded
        self.hooks = Hooks((), self._hook_failed)
        self.timeline = Timeline(self._emit)
        self.failures = 0
        self._tell = tell
        self._pass: Pass | None = None
        self._comparison = Comparison()
        self._media = run.path / "media"
        path = run.path / "metrics" / f"replay-{replay_id}-w0.jsonl"
        self._journal = Journal(path, self._media)
        self._recorded, self._present = _history(run)
        self._digests = {m.name: one.digest for one in loaded for m in one.metrics}

    # ---- what the adapter asks

    def passes(self, way: Way) -> Iterator[Pass]:
        """The passes of one way; its hooks are in `hooks` while it is being driven."""
        yield from (one for one in self.task.passes if one.way == way)

    def state(self, epoch: int, *, only: tuple[str, ...] | None = None) -> tuple[Position, dict[str, Any]]:
        """The State after `epoch` completed epochs. Raises NoCheckpoint or DamagedCheckpoint."""
        position = checkpoint_at(self.run, epoch)
        return position, checkpoints.load_checkpoint(self.run.path, position, only)

    def has_state(self, epoch: int) -> bool:
        """Was the State after `epoch` epochs kept? If not, a run reaches it by going on."""
        return any(c.position.epoch == epoch for c in checkpoints.list_checkpoints(self.run.path))

    def hooks_of(self, one: Pass) -> tuple[Metric, ...]:
        """The requested @flor.metric hooks of a pass."""
        moments = {"state": "epoch", "validate": "validation", "train": "step"}
        return tuple(
            m
            for loaded in self.loaded
            for m in loaded.metrics
            if m.name in one.metrics and m.at == moments[one.way]
        )

    @contextmanager
    def passing(self, one: Pass) -> Iterator[None]:
        """Everything inside belongs to that pass: its hooks, its seconds, its verdict."""
        started = time.perf_counter()
        self._pass, self._comparison = one, Comparison()
        self.hooks.metrics = self.hooks_of(one)
        self._tell({"event": "pass", "way": one.way, "epochs": list(one.epochs)})
        try:
            yield
            self.timeline.close()
        finally:
            self._pass = None
        verdict = asdict(self._comparison.verdict())
        seconds = time.perf_counter() - started
        self._tell(
            {"event": "passed", "way": one.way, "epochs": list(one.epochs), "seconds": seconds, **verdict}
        )

    def epoch_done(self, epoch: int) -> None:
        """One more epoch of the present pass has its values."""
        self.timeline.close()
        self._tell({"event": "epoch", "epoch": epoch, "way": self._pass.way if self._pass else ""})

    def compare_weights(self, epoch: int, weights: Mapping[str, Any]) -> None:
        """The model as it stands against the checkpoint after `epoch` epochs, tensor by tensor, if it was kept."""
        if not self.has_state(epoch):
            return
        position = checkpoint_at(self.run, epoch)
        recorded = checkpoints.tensor_hashes(self.run.path, position, "model")
        recomputed = {name: sha256(t.detach().cpu().contiguous()) for name, t in weights.items()}
        grade = self._comparison.hashes(position, recorded, recomputed)
        self._tell({"event": "weights", "epoch": position.epoch, "verdict": grade})

    def log(self, name: str, value: Any) -> None:
        """`flor.log` in replayed code or in a hook."""
        self.timeline.add({name: value}, self.timeline.phase)

    def finish(self) -> None:
        """Seal the journal."""
        self.timeline.close()
        self._journal.seal()

    # ---- inside

    def _emit(self, row: Row) -> None:
        one = self._pass
        if one is None:
            return
        encoded = {name: self._encode(name, value, row.position) for name, value in row.values.items()}
        encoded = {name: value for name, value in encoded.items() if value is not None}
        grade = self._comparison.values(row.position, self._recorded_at(row), encoded)
        if grade == "unverified":
            grade = self._comparison.verdict().grade
        new = {name: row.values[name] for name in encoded if self._is_wanted(name, row.position, one)}
        for digest in {self._digests.get(name) for name in new}:
            values = {name: value for name, value in new.items() if self._digests.get(name) == digest}
            self._journal.append(replace(row, values=values, verdict=grade, hook=digest))
        self._present.update((name, row.position) for name in new)

    def _recorded_at(self, row: Row) -> Mapping[str, Any]:
        """What the recording has there. An evaluation every n steps is the epoch's, too, where it ends one."""
        found = self._recorded.get((row.position, row.phase, row.level))
        if found is None and row.phase == "validation":
            found = self._recorded.get((row.position, row.phase, "step"))
        return found or {}

    def _is_wanted(self, name: str, position: Position, one: Pass) -> bool:
        if name not in one.metrics or (name, position) in self._present:
            return False
        return one.steps is None or name not in self._digests or position.step in one.steps

    def _encode(self, name: str, value: Any, position: Position) -> Any:
        try:
            return encode_value(value, self._media)
        except Exception as error:
            self._fail(f"metric {name!r} at {position} can't be stored: {error}")
            return None

    def _hook_failed(self, metric: Metric, position: Position, error: HookError) -> None:
        self._fail(str(error))

    def _fail(self, message: str) -> None:
        self.failures += 1
        self._tell({"event": "hook_failed", "message": message})


def checkpoint_at(run: Run, epoch: int) -> Position:
    """The position of the checkpoint after `epoch` epochs. Raises ReplayError naming those that exist."""
    known = [c.position for c in checkpoints.list_checkpoints(run.path)]
    for position in known:
        if position.epoch == epoch:
            return position
    epochs = ", ".join(str(p.epoch) for p in known) or "none"
    raise ReplayError(
        f"run {run.name} ({run.run_id}) has no checkpoint at epoch {epoch}; it has {epochs}. "
        "Ask for one of those, or record with every_n_epochs=1."
    )


def _history(run: Run) -> tuple[dict[Key, dict[str, Any]], set[tuple[str, Position]]]:
    """Recorded values by position, phase and level, encoded; and what any writer has already."""
    recorded: dict[Key, dict[str, Any]] = {}
    present: set[tuple[str, Position]] = set()
    for writer, row in read_run(run.path):
        present.update((name, row.position) for name in row.values)
        if writer.startswith("record"):
            values = {name: encode_value(value, run.path / "media") for name, value in row.values.items()}
            recorded.setdefault((row.position, row.phase, row.level), {}).update(values)
    return recorded, present
