"""A store in an object store (s3://, gs://, ...), mirrored in a folder here.

What is needed of it is fetched, and what was made here is put back.

The folder is a store as any other, with files missing that nobody has needed yet. Objects are
put whole, what announces them after them, and none is deleted but the sealed form of a journal
that goes on: readers of the object store see what readers of a folder see.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from flor_plugins.errors import FlorError, StoreError
from flor_plugins.store.files import PARTIAL, read_json, whole_file, write_json
from flor_plugins.store.layout import VARIABLE, Store, find_store, is_url, store_in
from flor_plugins.store.metrics.row_source import source_of
from flor_plugins.store.remote.object_store import (
    ObjectInfo,
    is_local,
    open_file_system,
    version_of,
)

# in the folder: which object store it mirrors, and which version of each object is here
NOTES = "mirror.json"
FORMAT = 1
TENSORS = ".safetensors"
CODE = "code"
# A run is there once its run.json is, a checkpoint once its state.json is.
_ANNOUNCES = ("shell.json", "state.json", "run.json")


def cache_of(url: str) -> Path:
    """Return the folder on this machine that mirrors an object store.

    It lies beneath $XDG_CACHE_HOME, named by the url's hash.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "flor-plugins" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def mirrored_by(store: Store) -> str | None:
    """The url that a folder mirrors; None for a store that is itself."""
    notes = store.root / NOTES
    return read_json(notes)["url"] if notes.exists() else None


def mirror_of(store: Store) -> Mirror | None:
    """What puts back what was made in a folder that mirrors an object store."""
    url = mirrored_by(store)
    return None if url is None else Mirror(url, store.root)


def open_url(url: str) -> Store:
    """Return the folder on this machine that mirrors an object store.

    What is known of its runs is fetched as of now.
    """
    mirror = Mirror(url)
    mirror.pull_records()
    mirror.pull_replays()
    return mirror.store


def open_any(named: str | Path | None = None, start: Path | None = None) -> Store:
    """The store for what reads and replays: a folder, or the url of an object store.

    None: as `find_store`.
    """
    text = os.environ.get(VARIABLE, "") if named is None else str(named)
    if is_url(text):
        return open_url(text)
    return find_store(start) if named is None else store_in(named)


class Mirror:
    """An object store and its folder here, `store`.

    One thread at a time; several processes may share the folder.

    Raises MissingDependency where the package for that kind of url is not installed. All
    methods raise StoreError, naming the object, when the object store refuses.
    """

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self.store = Store(folder or cache_of(url))
        self._files, self._top = open_file_system(self.url)
        self._notes = self.store.root / NOTES

    # ---- from there to here

    def pull_records(self, run_id: str = "", *, media: bool = False) -> None:
        """Fetch what is known of all runs, or of one.

        That is all of them but the tensors and, unless asked for, media.

        What was deleted there is deleted here.
        """
        self._pull(f"runs/{run_id}".rstrip("/"), partial(_is_record, media=media), prune=True)

    def pull_replays(self) -> None:
        """What is known of all replays: plans, with what was estimated, and verdicts."""
        self._pull(
            "replays",
            _is_replay_summary,
            prune=True,
        )

    def pull_replay(self, replay_id: str) -> None:
        """Plan, hooks, outputs and verdicts of a replay."""
        self._pull(f"replays/{replay_id}", None)

    def pull_files(self, paths: Iterable[Path]) -> None:
        """Files of the store, by where they lie here.

        One that is not there is passed over: its reader says so.
        """
        by_folder: dict[str, set[str]] = {}
        for path in paths:
            name = path.relative_to(self.store.root).as_posix()
            by_folder.setdefault(str(PurePosixPath(name).parent), set()).add(name)
        for folder, names in sorted(by_folder.items()):
            self._pull(folder, names.__contains__)

    def pull_code(self, vid: str) -> bool:
        """Put a commit into the bare repository of the folder here.

        Returns False if the object store does not have it.
        """
        from flor_plugins.store.remote.code_packs import unpack

        pack = self._here(_code(vid))
        self.pull_files([pack])
        if pack.exists():
            unpack(pack, vid, self.store.root / "code.git")
        return pack.exists()

    # ---- from here to there

    def push_code(self, repo: Any, vid: str) -> None:
        """Put a commit of `repo` (git.Repo) beside the runs, unless it is there.

        Raises SnapshotError.
        """
        from flor_plugins.store.remote.code_packs import pack

        name = _code(vid)
        if not self._ask(name, self._files.exists, self._there(name)):
            with tempfile.TemporaryDirectory(prefix="flor-code-") as scratch:
                file = Path(scratch) / "pack"
                pack(repo, vid, file)
                self._put(name, file)

    def push(self, *folders: Path, only: Callable[[str], bool] | None = None) -> list[str]:
        """Put the files of folders of the store that are other there, in that order.

        Returns their paths in it.

        only: of the path in the store. Within a folder tensors go first, what announces them
        last. Tensors, media and code that are there are passed over; all else is small, and put
        again.
        """
        pushed = []
        for folder in folders:
            inside = folder.relative_to(self.store.root).as_posix()
            there = {name: info.get("size") for name, info in self._list(inside).items()}
            files = [
                path
                for path in folder.rglob("*")
                if path.is_file() and not path.name.startswith(PARTIAL)
            ]
            for name in sorted(
                (file.relative_to(self.store.root).as_posix() for file in files),
                key=_last_if_announcing,
            ):
                if (only is None or only(name)) and self._has_put(name, there):
                    pushed.append(name)
        return pushed

    # ---- inside

    def _has_put(self, name: str, there: ObjectInfo) -> bool:
        """Put a file there.

        False where it was there already, or is gone: a journal may be sealed at any moment.
        """
        here = self._here(name)
        try:
            if _never_changes(name) and there.get(name) == here.stat().st_size:
                return False
            self._put(name, here)
        except (OSError, StoreError):
            if here.exists():
                raise
            return False  # its sealed form comes with the next push
        self._open_again(name, there)
        return True

    def _pull(
        self, inside: str, is_wanted: Callable[[str], bool] | None, *, prune: bool = False
    ) -> None:
        there, seen, fetched = self._list(inside), self._seen(), {}
        for name in sorted(filter(is_wanted, there), key=_last_if_announcing):
            version = version_of(there[name])
            is_same = seen.get(name) == version and self._here(name).exists()
            if not is_same and not self._is_written_here(name, there[name]):
                self._get(name)
                fetched[name] = version
        gone = [
            name for name in seen if prune and name.startswith(f"{inside}/") and name not in there
        ]
        for name in sorted(gone, key=_last_if_announcing, reverse=True):
            self._remove(self._here(name))
        if fetched or gone or not self._notes.exists():
            # Read again: others may have written meanwhile. What is lost between these lines is
            # fetched again.
            kept = {name: version for name, version in self._seen().items() if name not in gone}
            write_json(
                self._notes, {"format": FORMAT, "url": self.url, "seen": {**kept, **fetched}}
            )

    def _is_written_here(self, name: str, there: ObjectInfo) -> bool:
        """Say whether an object is the journal of a replay on this machine.

        It only grows; what is there is a beginning of it.

        Its writer would go on in a file that is no longer in the folder.
        """
        here = self._here(name)
        is_journal = name.endswith(".jsonl") and source_of(here.stem).is_replay
        return is_journal and here.exists() and here.stat().st_size >= (there.get("size") or 0)

    def _remove(self, path: Path) -> None:
        """Remove a file, and the folders that are empty without it.

        One without state.json would be a damaged checkpoint.
        """
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder in (self.store.runs, self.store.replays, self.store.root):
                return
            try:
                folder.rmdir()
            except OSError:  # it is not empty, or another process has removed it
                return

    def _seen(self) -> dict[str, str]:
        """Path in the store to the version that was fetched."""
        return read_json(self._notes)["seen"] if self._notes.exists() else {}

    def _list(self, inside: str) -> dict[str, ObjectInfo]:
        """Path in the store to what is known of each object beneath a folder of it."""

        def listed() -> dict[str, ObjectInfo]:
            self._files.invalidate_cache()
            try:
                return self._files.find(self._there(inside), detail=True)
            except FileNotFoundError:
                return {}

        found = self._ask(inside, listed)
        names = {
            path.lstrip("/")[len(self._top.lstrip("/")) :].lstrip("/"): info
            for path, info in found.items()
        }
        return {name: info for name, info in names.items() if PARTIAL not in name}

    def _get(self, name: str) -> None:
        with whole_file(self._here(name)) as scratch:
            self._ask(name, self._files.get_file, self._there(name), str(scratch))

    def _put(self, name: str, here: Path) -> None:
        """Object stores show an object once all of it is there; of folders that is up to us."""
        there = self._there(name)
        if is_local(self._files):
            with whole_file(Path(there)) as scratch:
                shutil.copyfile(here, scratch)
        else:
            self._ask(name, self._files.put_file, str(here), there)

    def _open_again(self, name: str, there: ObjectInfo) -> None:
        """Remove the sealed form of a journal that is written on here.

        Of a journal in both forms the sealed one counts.
        """
        sealed = str(PurePosixPath(name).with_suffix(".parquet"))
        if name.endswith(".jsonl") and sealed in there and not self._here(sealed).exists():
            self._ask(sealed, self._files.rm_file, self._there(sealed))

    def _here(self, name: str) -> Path:
        path = self.store.root / name
        if not path.resolve().is_relative_to(self.store.root.resolve()):
            raise StoreError(
                f"{self.url} has an object {name!r}, which is no file of a store. Rename it."
            )
        return path

    def _there(self, name: str) -> str:
        return f"{self._top}/{name}"

    def _ask(self, name: str, act: Callable[..., Any], *arguments: str) -> Any:
        try:
            return act(*arguments)
        except FlorError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StoreError(
                f"{self.url}/{name} was asked for; the object store refused: "
                f"{type(error).__name__}: {error}. "
                f"Are the url, the network and the credentials right? "
                f"(`fsspec.open({self.url!r})` uses the same.)"
            ) from error


def _is_record(path: str, media: bool) -> bool:
    return not path.endswith(TENSORS) and (media or "/media/" not in path)


def _is_replay_summary(path: str) -> bool:
    return PurePosixPath(path).name in ("plan.json", "verdicts.json")


def _never_changes(name: str) -> bool:
    """Say whether a name is its content's hash, or that of a commit.

    Tensors are written once; packed, they have another size.
    """
    return "/media/" in name or name.startswith(f"{CODE}/") or name.endswith(TENSORS)


def _last_if_announcing(name: str) -> tuple[int, str]:
    place = PurePosixPath(name)
    return _ANNOUNCES.index(place.name) + 1 if place.name in _ANNOUNCES else 0, name


def _code(vid: str) -> str:
    return f"{CODE}/{vid}.pack"
