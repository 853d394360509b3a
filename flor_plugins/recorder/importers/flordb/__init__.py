"""Import of what FlorDB has logged: values, parameters and code, and nothing to be replayed.

FlorDB's files are read and never written; what it pickled (obj_store) is not opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flor_plugins.errors import FlorError, StoreError
from flor_plugins.recorder.importers.flordb import database, loop_positions
from flor_plugins.recorder.importers.flordb.commits import CommitInfo, commits_in
from flor_plugins.recorder.importers.flordb.database import LoggedTraining, SegmentKey
from flor_plugins.recorder.importers.flordb.loop_positions import LogPlace, PositionedTraining
from flor_plugins.records import JsonObject, Launch, Obstacle, RecordingProcess, Row, Run
from flor_plugins.store import runs
from flor_plugins.store.files import read_json, write_json
from flor_plugins.store.layout import Store, find_store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.row_source import recording_writer, replay_writer

SOURCE = "imported.json"  # as of other imports
FORMAT = 1
_SECONDS = "time::script"
_WRITERS = {
    "forward": recording_writer(),
    "replay": replay_writer("flordb"),
    "extract": replay_writer("flordb-extract"),
}
_NO_REPLAY = Obstacle(
    "none",
    "imported from FlorDB, of which only the values are known",
    "record the next training with FlorCallback",
)


@dataclass(frozen=True, slots=True)
class ImportedTraining:
    """done: "new", "changed" (FlorDB knew more of it than at the import before) or "known"."""

    run: Run
    done: str


def import_flordb(
    path: Path, *, epoch: str | None = None, step: str | None = None, store: Store | None = None
) -> list[ImportedTraining]:
    """Make runs of what FlorDB (3.4 or 4) has logged, oldest first.

    What was imported before is found again.

    path: a project, its `.flor` folder, FlorDB 3's `~/.flor`, or a `.db` file. epoch, step:
    names of the loops that count epochs and steps (default: see `places.loops_of`). Raises
    StoreError if nothing there can be read.
    """
    path = path.expanduser().absolute()
    trainings = _trainings(path)
    home = (store or find_store()).make()
    known = _known(home)
    commits: dict[Path, Mapping[str, CommitInfo]] = {}
    made = []
    for training in sorted(trainings, key=lambda one: one.key[1]):
        committed = _committed(training.key, path, commits)
        args = committed.args if committed else {}
        for one in loop_positions.placed(
            training, loop_positions.loops_of(training, epoch, step), args
        ):
            made.append(_import(home, training, one, committed, known))
    return made


def _trainings(path: Path) -> list[LoggedTraining]:
    """All that is at a path.

    What version 4 wrote as lines counts before its database, which is made of them.
    """
    databases, lines = _files(path)
    found: dict[SegmentKey, LoggedTraining] = {}
    for file in lines:
        training = database.read_lines(file)
        if training is not None:
            found[training.key] = training
    of_lines = set(found)
    for file in databases:
        for training in database.read_database(file):
            its = found.setdefault(training.key, LoggedTraining(training.key, training.first))
            its.logs += [
                log
                for log in training.logs
                if log.source != "forward" or training.key not in of_lines
            ]
    if not found:
        raise StoreError(f"{path} has a store of FlorDB, and nothing was logged to it")
    return list(found.values())


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """(databases, files of lines) of FlorDB. Raises StoreError where there are none."""
    if path.is_file():
        return [path], sorted((path.parent / "runs").glob("*.jsonl"))
    folder = path / ".flor" if (path / ".flor").is_dir() and not any(path.glob("*.db")) else path
    databases, lines = sorted(folder.glob("*.db")), sorted((folder / "runs").glob("*.jsonl"))
    # FlorDB 3 keeps all projects at home, each by the name of its folder.
    at_home = Path.home() / ".flor" / Path(path.name).with_suffix(".db")
    if folder != at_home.parent and path.name != ".flor" and at_home.is_file():
        databases.append(at_home)
    if not databases and not lines:
        raise StoreError(
            f"{path} was to be imported, and no store of FlorDB is there: neither a .db file "
            f"nor runs/*.jsonl in it or "
            f"in its .flor, nor {at_home}. Name the project, its .flor folder, ~/.flor or a "
            f".db file."
        )
    return databases, lines


def _committed(
    key: SegmentKey, path: Path, seen: dict[Path, Mapping[str, CommitInfo]]
) -> CommitInfo | None:
    """Return the commit of a run.

    It is looked for in the repository around its store, or in the present folder's if that is its
    project.
    """
    here = path if path.is_dir() else path.parent
    for folder in (here, Path.cwd()):
        if folder not in seen:
            try:
                seen[folder] = commits_in(folder)
            except FlorError:
                seen[folder] = {}
        found = seen[folder].get(key[1])
        if found is not None and Path(found.code.root).name == key[0]:
            return found
    return None


def _import(
    home: Store,
    training: LoggedTraining,
    one: PositionedTraining,
    committed: CommitInfo | None,
    known: Mapping[str, Run],
) -> ImportedTraining:
    projid, tstamp, filename = training.key
    identity = json.dumps([projid, tstamp, filename, *map(list, one.lead)])
    run = known.get(identity) or _run(home, training, one, identity)
    code = committed.code if committed else run.code
    gaps = [
        *one.notes,
        *([] if code else ["its commit was not found: import from its project's folder"]),
    ]
    run = replace(run, code=code, params=one.params, position=one.last, gaps=tuple(gaps))
    rows = {
        _WRITERS.get(source, _WRITERS["replay"]): _rows(its, source, run)
        for source, its in one.rows.items()
    }
    digest = _digest(run, rows)
    done = "changed" if identity in known else "new"
    if done == "changed" and read_json(run.path / SOURCE).get("digest") == digest:
        return ImportedTraining(known[identity], "known")
    try:
        _write(run, rows)
        source = {"format": FORMAT, "path": "", "files": [], "flordb": identity, "digest": digest}
        runs.save_run(run)
        write_json(run.path / SOURCE, source)
    except BaseException:
        if done == "new":
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    return ImportedTraining(run, done)


def _run(home: Store, training: LoggedTraining, one: PositionedTraining, identity: str) -> Run:
    projid, tstamp, filename = training.key
    try:
        began = datetime.fromisoformat(tstamp).astimezone(UTC)  # FlorDB writes the local time
    except ValueError as error:
        raise StoreError(
            f"a run of FlorDB's project {projid} has the time {tstamp!r}, which is none"
        ) from error
    # Of its time, and of what it is: two machines import it under one id.
    digest = hashlib.sha256(identity.encode()).hexdigest()[:6]
    run_id = f"{began:%Y%m%d-%H%M%S}-{began.microsecond // 1000:03d}-{digest}"
    took = next(
        (log.value for log in training.logs if log.name == _SECONDS and log.kind == database.TIMED),
        0.0,
    )
    ended = datetime.fromtimestamp(began.timestamp() + float(took), UTC)
    part = "".join(f"[{name}={index}]" for name, index in one.lead)
    return Run(
        run_id=run_id,
        name=(Path(filename).stem or projid) + part,
        project=projid,
        framework="flordb",
        status="finished",
        started_at=began.isoformat(timespec="milliseconds"),
        finished_at=ended.isoformat(timespec="milliseconds"),
        launch=Launch("script", filename),
        code=None,
        process=RecordingProcess("", 0, ""),
        path=home.run(run_id),
        obstacles=(_NO_REPLAY,),
    )


def _rows(its: Mapping[LogPlace, JsonObject], source: str, run: Run) -> list[Row]:
    """Return the rows of one source.

    What FlorDB replayed, or read out of printed text, is no recorded value: nobody has compared it.
    """
    at = datetime.fromisoformat(run.started_at).timestamp()
    verdict = None if source == "forward" else "unverified"
    return [
        Row(place, "train", level, values, at, verdict)
        for (place, level), values in sorted(its.items())
    ]


def _write(run: Run, rows: Mapping[str, Sequence[Row]]) -> None:
    folder = run.path / "metrics"
    for file in folder.glob("*"):  # of an earlier import
        file.unlink()
    for writer, its in rows.items():
        journal = Journal(folder / f"{writer}.jsonl", run.path / "media")
        for row in its:
            journal.append(row)
        journal.seal()


def _digest(run: Run, rows: Mapping[str, Iterable[Row]]) -> str:
    """Of all that an import would write."""
    code = run.code.vid if run.code else None
    content = [
        code,
        runs.plain(run.params),
        run.gaps,
        sorted((w, [str(one) for one in its]) for w, its in rows.items()),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _known(home: Store) -> dict[str, Run]:
    """The runs that were imported from FlorDB, by what they are of."""
    files = [(run, run.path / SOURCE) for run in runs.list_runs(home)]
    return {
        content["flordb"]: run
        for run, file in files
        if file.is_file() and "flordb" in (content := read_json(file))
    }
