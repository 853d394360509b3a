"""A FlorDB store as it lies on disk: SQLite of versions 3.4 and 4, and the JSON lines of version 4.

Nothing of it is written, and no lock of it is waited for: a copy of the database is read.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flor_plugins.errors import StoreError
from flor_plugins.recorder.importers.flordb.typed_values import value_of
from flor_plugins.records import JsonObject

# `logs.value_type`: what was logged, what was printed, and how long something took.
LOGGED, PRINTED, TIMED = 1, 2, 3
_TRIES, _BETWEEN_S = 20, 0.1
_V3 = {"projid", "tstamp", "filename", "ctx_id", "value_name", "value", "value_type"}
_V4 = _V3 - {"ctx_id"} | {"ctx"}
_LOOPS = {"ctx_id", "p_ctx_id", "l_name", "iteration", "l_value"}

SegmentKey = tuple[str, str, str]  # projid, tstamp, filename: one process that logged


@dataclass(frozen=True, slots=True)
class LoopIteration:
    """One iteration of a loop. value: what was iterated over, as text."""

    name: str
    iteration: int | None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedValue:
    """One logged value, and the loops around it, outermost first.

    source: forward, replay or extract.
    """

    name: str
    value: Any
    path: tuple[LoopIteration, ...] = ()
    kind: int = LOGGED
    source: str = "forward"


@dataclass(slots=True)
class LoggedTraining:
    """What one process logged, in its order.

    first: the number that the store gives the first iteration of a loop.
    """

    key: SegmentKey
    first: int
    logs: list[LoggedValue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_database(file: Path) -> list[LoggedTraining]:
    """Every process that logged into a FlorDB database.

    Raises StoreError where it is none, or of another version.
    """
    with _copied(file) as copy, closing(sqlite3.connect(copy)) as connection:
        try:
            columns = {row[1] for row in connection.execute("PRAGMA table_info(logs)")}
            if columns >= _V4:
                return _version_4(connection, has_source="source" in columns)
            if (
                columns >= _V3
                and {row[1] for row in connection.execute("PRAGMA table_info(loops)")} >= _LOOPS
            ):
                return _version_3(connection)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{file} can't be read as a database of FlorDB: {error}") from error
    raise StoreError(
        f"{file} is no database of FlorDB 3.4 or 4: its table logs has "
        f"{', '.join(sorted(columns)) or 'no columns'}"
    )


def read_lines(file: Path) -> LoggedTraining | None:
    """One process of FlorDB 4, from its .flor/runs/<tstamp>.jsonl; None where nothing is in it."""
    found: LoggedTraining | None = None
    for number, line in enumerate(
        file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key = (record["projid"], record["tstamp"], record["filename"])
            log = LoggedValue(
                record["name"], value_of(record["value"]), _segments(record["ctx"]), record["type"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{file}:{number} is no line of FlorDB: {type(error).__name__} {error}"
            ) from error
        found = found or LoggedTraining(key, first=0)
        found.logs.append(log)
    return found


@contextmanager
def _copied(file: Path) -> Iterator[Path]:
    """Yield a copy of a database as it stood at one moment, without what is not committed."""
    with tempfile.TemporaryDirectory(prefix="flor-flordb-") as folder:
        for _ in range(_TRIES):
            before = _stands(file)
            for part in before:
                try:
                    shutil.copyfile(part, Path(folder) / part.name)
                except FileNotFoundError:
                    break
            if before and _stands(file) == before:
                yield Path(folder) / file.name
                return
            shutil.rmtree(folder)
            Path(folder).mkdir()
            time.sleep(_BETWEEN_S)
    raise StoreError(
        f"{file} is being written without a pause, or is gone. Try again when nothing writes to it."
    )


def _stands(file: Path) -> dict[Path, tuple[int, int]]:
    """The database and the journals of what is being written to it: size and time."""
    found = {}
    for part in (file, file.with_name(f"{file.name}-journal"), file.with_name(f"{file.name}-wal")):
        try:
            status = part.stat()
            found[part] = (status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue
    return found


def _version_4(connection: sqlite3.Connection, *, has_source: bool) -> list[LoggedTraining]:
    source = "source" if has_source else "'forward'"
    found: dict[SegmentKey, LoggedTraining] = {}
    query = (
        f"SELECT projid, tstamp, filename, ctx, value_name, value, value_type, {source} "
        f"FROM logs ORDER BY rowid"
    )
    for projid, tstamp, filename, ctx, name, value, kind, its in connection.execute(query):
        training = found.setdefault(
            (projid, tstamp, filename), LoggedTraining((projid, tstamp, filename), first=0)
        )
        training.logs.append(
            LoggedValue(
                name, value_of(value), _segments(json.loads(ctx) if ctx else None), kind, its
            )
        )
    return list(found.values())


def _version_3(connection: sqlite3.Connection) -> list[LoggedTraining]:
    rows = connection.execute("SELECT ctx_id, p_ctx_id, l_name, iteration, l_value FROM loops")
    loops = {
        ctx_id: (parent, LoopIteration(name, iteration, value))
        for ctx_id, parent, name, iteration, value in rows
    }
    found: dict[SegmentKey, LoggedTraining] = {}
    query = (
        "SELECT projid, tstamp, filename, ctx_id, value_name, value, value_type FROM logs "
        "ORDER BY rowid"
    )
    for projid, tstamp, filename, ctx_id, name, value, kind in connection.execute(query):
        training = found.setdefault(
            (projid, tstamp, filename), LoggedTraining((projid, tstamp, filename), first=1)
        )
        training.logs.append(LoggedValue(name, value_of(value), _path(ctx_id, loops), kind))
    return list(found.values())


def _path(
    ctx_id: int | None, loops: Mapping[int, tuple[int | None, LoopIteration]]
) -> tuple[LoopIteration, ...]:
    found: list[LoopIteration] = []
    while ctx_id is not None and len(found) <= len(loops):
        ctx_id, segment = loops[ctx_id]
        found.insert(0, segment)
    return tuple(found)


def _segments(ctx: Sequence[JsonObject] | None) -> tuple[LoopIteration, ...]:
    return tuple(LoopIteration(one["name"], one["iteration"], one["value"]) for one in ctx or ())
