"""One writer's rows: appended as lines while it runs, one typed Parquet file once it has closed.

A line is one position; the first line says {"format": 1, "writer": "record-r0"}.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flor_plugins.errors import EncodingError, StoreError
from flor_plugins.records import JsonObject, Position, Row
from flor_plugins.store.files import make_folder, sync, whole_file
from flor_plugins.store.metrics import parquet_journal
from flor_plugins.store.metrics.row_source import SourcedRow, source_of
from flor_plugins.store.metrics.value_codec import decode_value, encode_value

FORMAT = 1
_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class Journal:
    """Appends rows to `path` (.jsonl); there is one writer per file, which may have threads.

    A line that a killed writer left unfinished is cut off when the journal is opened
    again. A sealed journal is turned back into lines, so that a resumed run goes on in it.
    """

    def __init__(self, path: Path, media: Path) -> None:
        self.path = path
        self.media = media
        self._lock = threading.Lock()
        make_folder(path.parent)
        _unseal(path, media)
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        _cut_torn_line(self._fd)
        if os.fstat(self._fd).st_size == 0:
            self._write(_header(path))
            sync(path.parent)  # its name; what is in it, when `sync` is called

    def append(self, row: Row) -> None:
        """Hand one row to the operating system.

        It survives the end of this process, not of the machine.

        EncodingError names the metric that can't be stored; nothing of the row is written then.
        StoreError if the journal is closed or the disk is full; the file then is as it was before.
        """
        self._write(_line(row, self.media))

    def take_out(self, unwanted: Callable[[Row], bool]) -> list[Row]:
        """Remove rows, whole or not at all, and return them: a resumed run makes them again."""
        kept: list[Row] = []
        taken: list[Row] = []
        for row in read_rows(self.path):
            (taken if unwanted(row) else kept).append(row)
        with self._lock:
            if self._fd is None:
                raise StoreError(
                    f"rows were to be removed from {self.path}, and it is closed. Open a new "
                    f"Journal."
                )
            _write_whole(self.path, kept, self.media)
            os.close(self._fd)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
        return taken

    def sync(self) -> None:
        """Wait until what was appended survives the end of the machine, too."""
        with self._lock:
            if self._fd is not None:
                os.fsync(self._fd)

    def close(self) -> None:
        """Give the file back. Closing twice is fine."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def seal(self) -> Path:
        """Close, write the rows as <writer>.parquet, and only then remove the lines."""
        self.close()
        target = self.path.with_suffix(".parquet")
        with whole_file(target) as scratch:
            parquet_journal.write(_read_lines(self.path), scratch, self.media)
        self.path.unlink()
        return target

    def _write(self, line: JsonObject) -> None:
        data = _bytes(line)
        with self._lock:
            if self._fd is None:
                raise StoreError(
                    f"a row was logged to {self.path}, and that journal is closed. Open a new "
                    f"Journal on it."
                )
            written = 0
            try:
                written = os.write(self._fd, data)
                while written < len(data):  # happens when the disk is nearly full
                    written += os.write(self._fd, data[written:])
            except OSError as error:
                with suppress(OSError):  # no half line in the middle of a journal that goes on
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise StoreError(
                    f"a row could not be written to {self.path}: {error}. Free some space there."
                ) from error


def read_rows(path: Path, names: Collection[str] | None = None) -> list[Row]:
    """The rows of one journal (.jsonl or .parquet), in the order in which they were written.

    names: read only these metrics; rows without any of them are there all the same.
    A last line that is torn is being written or was cut off by a kill, and is left out.
    """
    media = path.parent.parent / "media"
    if path.suffix == ".parquet":
        return parquet_journal.read(path, media, names)
    wanted = None if names is None else frozenset(names)
    return [_row(line, media, wanted) for line in _read_lines(path)]


def read_run(run_path: Path, names: Collection[str] | None = None) -> list[SourcedRow]:
    """Return (source, row) of all journals of a run, writer by writer; `names` as in `read_rows`.

    A journal that is being sealed has both forms for a moment: the Parquet file counts.
    """
    folder = run_path / "metrics"
    files = [*folder.glob("*.jsonl"), *folder.glob("*.parquet")]
    writers = sorted({file.stem for file in files if not file.name.startswith(".")})
    sources = map(source_of, writers)
    return [
        (source, row) for source in sources for row in _read_writer(folder / source.writer, names)
    ]


def _read_writer(stem: Path, names: Collection[str] | None) -> list[Row]:
    """A journal changes its form at any moment, so the other one is tried when one is gone."""
    for ending in (".parquet", ".jsonl", ".parquet"):
        try:
            return read_rows(stem.with_name(stem.name + ending), names)
        except FileNotFoundError:
            continue
    return []


def _line(row: Row, media: Path) -> JsonObject:
    line: JsonObject = {
        "epoch": row.position.epoch,
        "step": row.position.step,
        "phase": row.phase,
        "level": row.level,
        "at": float(row.at),
        "values": {_name(name): _value(name, value, media) for name, value in row.values.items()},
    }
    if row.verdict is not None:
        line["verdict"] = row.verdict
    if row.hook is not None:
        line["hook"] = row.hook
    return line


def _header(path: Path) -> JsonObject:
    return {"format": FORMAT, "writer": path.stem}


def _write_whole(path: Path, rows: Iterable[Row], media: Path) -> None:
    lines = [_header(path), *(_line(row, media) for row in rows)]
    with whole_file(path) as scratch:
        scratch.write_bytes(b"".join(map(_bytes, lines)))


def _bytes(line: JsonObject) -> bytes:
    return _JSON.encode(line).encode() + b"\n"


def _name(name: Any) -> str:
    if isinstance(name, str) and parquet_journal.is_unicode(name):
        return str.__str__(name)
    raise EncodingError(
        f"a metric has the name {name!r}, and a name is text that UTF-8 can say. Rename the metric."
    )


def _value(name: str, value: Any, media: Path) -> Any:
    try:
        return encode_value(value, media)
    except EncodingError as error:
        raise EncodingError(f"metric {name!r}: {error}") from error


def _row(line: JsonObject, media: Path, wanted: frozenset[str] | None) -> Row:
    values = {
        name: decode_value(value, media) if isinstance(value, dict | list) else value
        for name, value in line["values"].items()
        if wanted is None or name in wanted
    }
    position = Position(line["epoch"], line["step"])
    verdict, hook = line.get("verdict"), line.get("hook")
    return Row(position, line["phase"], line["level"], values, line["at"], verdict, hook)


def _read_lines(path: Path) -> Iterator[JsonObject]:
    """The rows of a .jsonl as JSON.

    A damaged line that is not the last one is left out with a warning.
    """
    *whole, _torn = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
            is_row = "values" in line
        except (ValueError, TypeError):
            warnings.warn(f"{path}:{number} is damaged and left out: {text[:40]!r}", stacklevel=3)
            continue
        if is_row:
            yield line
        elif line.get("format", FORMAT) > FORMAT:
            raise StoreError(
                f"{path} has format {line['format']}, and this version reads up to {FORMAT}. "
                f"Update flor_plugins."
            )


def _unseal(path: Path, media: Path) -> None:
    parquet = path.with_suffix(".parquet")
    if not parquet.exists():
        return
    # The Parquet file counts as long as it is there, so a kill in between loses nothing.
    _write_whole(path, parquet_journal.read(parquet, media), media)
    parquet.unlink()


def _cut_torn_line(fd: int) -> None:
    size = end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
