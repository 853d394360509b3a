"""The rows that a replay stores: which of the values are wanted, encoded, by what gave them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flor_plugins.hooks.hook_files import HookFile
from flor_plugins.records import Grade, Level, Position, ReplayPass, Row, Run, Task
from flor_plugins.replayer.planning.recorded_values import history_of
from flor_plugins.store import ranks
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.metrics.row_source import SourcedRow, replay_writer
from flor_plugins.store.metrics.value_codec import encode_value


class ResultWriter:
    """Writes a replay's own journal, and knows what the run has recorded.

    metrics: the @flor.metric hooks of the hook files. rank: of the processes that replay
    together, only the first one's values are kept. failed: hears why a value can't be stored.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        replay_id: str,
        files: Sequence[HookFile],
        rows: Sequence[SourcedRow],
        rank: int,
        failed: Callable[[str], None],
    ) -> None:
        path = ranks.folder(run.path, rank)
        self._media, self._failed = path / "media", failed
        journal = path / "metrics" / f"{replay_writer(replay_id)}.jsonl"
        self._journal = None if rank else Journal(journal, self._media)
        self.metrics = {metric.name: metric for file in files for metric in file.metrics}
        # As the planner does: what an earlier source of a hook gave does not count (`known_by`).
        own = {
            m.name: (file.digest_of(m.name), file.digest) for file in files for m in file.metrics
        }
        self._digests: Mapping[str, tuple[str | None, ...]] = {**own, **task.digests}
        self._history = history_of(replace(run, path=path), self._digests, None if rank else rows)

    def encode(self, row: Row) -> dict[str, object]:
        """Return the values that can be stored."""
        encoded: dict[str, object] = {}
        for name, value in row.values.items():
            try:
                encoded[name] = encode_value(value, self._media)
            except Exception as error:
                self._failed(f"metric {name!r} at {row.position} can't be stored: {error}")
        return {name: value for name, value in encoded.items() if value is not None}

    def recorded(self, row: Row) -> Mapping[str, object]:
        """Return the values that the run has at the place of a row, encoded."""
        return self._history.at(row)

    def write(self, row: Row, names: Iterable[str], replay_pass: ReplayPass, grade: Grade) -> None:
        """Store those of a row's values that are wanted, and what was looked for in vain."""
        if self._journal is None:
            return
        wanted = {
            name: row.values[name] for name in names if self._is_wanted(name, row, replay_pass)
        }
        self._history.note(row, wanted)
        is_step = replay_pass.way == "train" and (row.phase, row.level) == ("train", "step")
        has_looked = is_step and _is_chosen(replay_pass, row.position)
        self._append(row, wanted, self._unsure(replay_pass) if has_looked else (), grade)

    def note_validation(
        self, position: Position, level: Level, replay_pass: ReplayPass, grade: Grade
    ) -> None:
        """Store that a validation has looked for what it may log."""
        row = Row(position, "validation", level, {}, time.time())
        self._append(row, {}, self._unsure(replay_pass), grade)

    def seal(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.seal()

    def _append(
        self, row: Row, values: Mapping[str, object], looked_for: Iterable[str], grade: Grade
    ) -> None:
        """One row for each source of the values.

        looked_for: only running the code tells whether it logs these there.
        """
        if self._journal is None:
            return
        by_source: dict[str | None, dict[str, object]] = {}
        absent: dict[str | None, list[str]] = {}
        for name, value in values.items():
            by_source.setdefault(self._digest(name), {})[name] = value
        for name in looked_for:
            absent.setdefault(self._digest(name), []).append(name)
        for source, names in absent.items():
            by_source.setdefault(source, {})[ASKED] = names
        for source, named in by_source.items():
            self._journal.append(replace(row, values=named, verdict=grade, hook=source))

    def _unsure(self, replay_pass: ReplayPass) -> list[str]:
        return [name for name in replay_pass.metrics if name not in self.metrics]

    def _digest(self, name: str) -> str | None:
        return next(iter(self._digests.get(name, ())), None)

    def _is_wanted(self, name: str, row: Row, replay_pass: ReplayPass) -> bool:
        is_training, position = replay_pass.way == "train", row.position
        if name not in replay_pass.metrics:
            return False
        if name not in self.metrics:  # it may be logged in training and in validation
            place = (position, row.phase, row.level)
            is_free = not is_training or place[1:] != ("train", "step")
            return (name, place) not in self._history.rows and (
                is_free or _is_chosen(replay_pass, position)
            )
        if (name, position) in self._history.present:
            return False
        if is_training and self.metrics[name].at == "step":
            return replay_pass.steps is None or position.step in replay_pass.steps
        return not is_training or position in replay_pass.positions


def _is_chosen(replay_pass: ReplayPass, position: Position) -> bool:
    """Values of that update are wanted."""
    steps = replay_pass.steps
    return steps is None or position.step in steps or position in replay_pass.positions
