"""Import of runs recorded without us: Lightning's `.ckpt` files and the HF Trainer's folders.

Only their weights are taken. The user's files are read, never written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flor_plugins.errors import FlorError, StoreError
from flor_plugins.recorder.code_snapshot import snapshot
from flor_plugins.recorder.importers import hf, lightning
from flor_plugins.recorder.importers.found_checkpoints import FoundTraining
from flor_plugins.recorder.importers.launches import nothing
from flor_plugins.records import JsonObject, Launch, Obstacle, RecordingProcess, Run
from flor_plugins.records.sections import MODEL
from flor_plugins.store import checkpoints, codec, runs
from flor_plugins.store.files import read_json, write_json
from flor_plugins.store.layout import Store, find_store, new_id
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.row_source import recording_writer

# In the run's folder: which files it was made of, so that a second import finds it.
SOURCE = "imported.json"
FORMAT = 1
LOST = "everything but the weights: imported from"


@dataclass(frozen=True, slots=True)
class ImportedRun:
    """is_new: the run was made now; else it was there already, made of the same files."""

    run: Run
    is_new: bool


def import_run(
    path: Path, *, name: str | None = None, launch: Launch | None = None, store: Store | None = None
) -> ImportedRun:
    """Make a run of the checkpoints at `path`, with their weights and what was logged beside them.

    path: a `.ckpt` file or a folder of some, a `checkpoint-*` folder or one that has several.
    launch: what trained it (see `launches`), needed for a replay; its code is kept as it is now.
    The same files are imported once; a name or another launch is then given to the run that is
    there. Raises StoreError if nothing at `path` can be read, saying why.
    """
    found = _find(path.absolute())
    home = (store or find_store()).make()
    sources = [_source(file) for file in found.files]
    earlier = _earlier(home, sources)
    if earlier is None:
        return ImportedRun(_make(home, found, sources, name, launch), is_new=True)
    known = replace(earlier, name=name or earlier.name)
    if launch is not None and (known.code is None or _asks(launch) != _asks(known.launch)):
        known = _with_launch(home, replace(known, gaps=found.notes), launch, found.path)
    if known != earlier:
        runs.save_run(known)
    return ImportedRun(known, is_new=False)


def _find(path: Path) -> FoundTraining:
    if not path.exists():
        raise StoreError(f"{path} was to be imported, and is not there")
    of_lightning, of_hf = lightning.files_in(path), hf.folders_in(path) if path.is_dir() else []
    if of_lightning and of_hf:
        raise StoreError(
            f"{path} has checkpoints of Lightning and of the HF Trainer: name one, "
            f"{of_lightning[0]} or {of_hf[0]}"
        )
    if of_lightning:
        return lightning.find(path)
    if of_hf:
        return hf.find(path)
    deeper = sorted(
        {str(one.parent) for kind in ("*.ckpt", "checkpoint-*") for one in _below(path, kind)}
    )
    hint = f" There are some in {', '.join(deeper[:5])}: name one of those." if deeper else ""
    raise StoreError(
        f"{path} was to be imported, and is no .ckpt file, no checkpoint-* folder and no "
        f"folder of those.{hint}"
    )


def _below(path: Path, pattern: str) -> list[Path]:
    """Search no deeper than lightning_logs/version_0/checkpoints.

    Somebody's home may have millions of files.
    """
    return [one for depth in ("*", "*/*", "*/*/*") for one in path.glob(f"{depth}/{pattern}")]


def _make(
    home: Store,
    found: FoundTraining,
    sources: list[JsonObject],
    name: str | None,
    launch: Launch | None,
) -> Run:
    run_id = new_id()
    folder = home.run(run_id)
    moments = [one.path.stat().st_mtime for one in found.checkpoints]
    run = Run(
        run_id=run_id,
        name=name or _name(found.path),
        project=Path.cwd().name,
        framework=found.framework,
        status="finished",
        started_at=_moment(min(moments)),
        finished_at=_moment(max(moments)),
        launch=nothing(),
        code=None,
        process=RecordingProcess("", 0, ""),
        path=folder,
        position=found.checkpoints[-1].position,
        params=found.params,
        gaps=found.notes,
    )
    try:
        _write(run, found)
        write_json(folder / SOURCE, {"format": FORMAT, "path": str(found.path), "files": sources})
        run = _with_launch(home, run, launch, found.path)
        runs.save_run(run)  # last: without it there is no run
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def _write(run: Run, found: FoundTraining) -> None:
    known: checkpoints.KnownTensors = {}
    for one in found.checkpoints:
        encoded = codec.encode({MODEL: one.weights()})
        lost = (*encoded.lost, f"{LOST} {one.path}")
        checkpoints.save_checkpoint(run.path, one.position, replace(encoded, lost=lost), known)
    journal = Journal(run.path / "metrics" / f"{recording_writer()}.jsonl", run.path / "media")
    for row in found.rows:
        journal.append(row)
    journal.seal()


def _with_launch(home: Store, run: Run, launch: Launch | None, source: Path) -> Run:
    """The run with what is known of its code, and what that keeps a replay from."""
    weights = Obstacle(
        "weights",
        f"imported from {source}: of its state only the weights are known",
        "record the next training with FlorCallback",
    )
    if launch is None:
        how = f"flor-{run.framework} import '{source}' -- python train.py ..."
        none = Obstacle("none", "imported without the command that trained it", f"say it: {how}")
        return replace(
            run,
            obstacles=(weights, none),
            gaps=(*run.gaps, f"{none.reason}; to replay it, {none.remedy}"),
        )
    start = Path(launch.folder or launch.cwd)
    try:
        code = snapshot.take(home, run.run_id, start)
    except FlorError as error:
        gap = f"no code snapshot, so this run can't be replayed: {error}"
        return replace(
            run,
            obstacles=(weights, Obstacle("none", gap, "see the message")),
            gaps=(*run.gaps, gap),
        )
    gap = (
        f"the code is that of the import ({_moment(datetime.now(UTC).timestamp())}), maybe "
        f"not of the training"
    )
    return replace(
        run,
        launch=launch,
        code=code,
        project=start.name,
        obstacles=(weights,),
        gaps=(*run.gaps, gap),
    )


def _asks(launch: Launch) -> tuple[object, ...]:
    return (launch.kind, launch.target, launch.argv, launch.folder, dict(launch.params))


def _source(file: Path) -> JsonObject:
    """A file, or a folder in our own format by the file that is written last."""
    status = (file / "state.json" if file.is_dir() else file).stat()
    return {"path": str(file.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _earlier(home: Store, sources: Sequence[JsonObject]) -> Run | None:
    """The run that was made of the same files, if they are unchanged since."""
    for run in runs.list_runs(home):
        file = run.path / SOURCE
        if file.is_file() and sorted(map(_key, read_json(file)["files"])) == sorted(
            map(_key, sources)
        ):
            return run
    return None


def _key(source: JsonObject) -> tuple[str, int, int]:
    return (source["path"], source["size"], source["mtime_ns"])


def _name(path: Path) -> str:
    """Of the file or folder; lightning_logs/version_0/checkpoints is version_0."""
    return (
        path.parent.name if path.name == "checkpoints" else path.name.removesuffix(lightning.ENDING)
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
