"""Who wrote a row: the recorded training or a replay.

A journal's file name says it; names are made and read here only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flor_plugins.records import Row

_REPLAY = re.compile(r"replay-(.+)-w(\d+)")
_RECORD = re.compile(r"record-r(\d+)")


@dataclass(frozen=True, slots=True)
class RowSource:
    """What a row comes from. str() gives "record", or "replay <id>".

    writer: the name of its journal. replay_id: None for what was recorded. worker: the rank of
    the training's process, or the number of the replay's worker; None of a training's later
    segments.
    """

    writer: str
    replay_id: str | None = None
    worker: int | None = None

    @property
    def is_replay(self) -> bool:
        """Say whether a replay wrote it, and not the training."""
        return self.replay_id is not None

    def __str__(self) -> str:
        return "record" if self.replay_id is None else f"replay {self.replay_id}"


SourcedRow = tuple[RowSource, Row]


def source_of(writer: str) -> RowSource:
    """Return the source of the rows of a journal, by its name."""
    replay = _REPLAY.fullmatch(writer)
    if replay:
        return RowSource(writer, replay[1], int(replay[2]))
    record = _RECORD.fullmatch(writer)
    return RowSource(writer, worker=int(record[1]) if record else None)


def recording_writer(segment: int = 1) -> str:
    """Return the name of the journal of a training's first process.

    segment: 1, or how many times the process has begun a journal of this run.
    """
    return "record-r0" if segment == 1 else f"record-r0-{segment}"


def replay_writer(replay_id: str, worker: int = 0) -> str:
    """Return the name of the journal of a replay's worker."""
    return f"replay-{replay_id}-w{worker}"
