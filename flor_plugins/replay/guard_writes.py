"""The past is read-only: a replaying process writes to its sandbox and the store, nowhere else."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from flor_plugins.errors import ReplayError
from flor_plugins.replay.landlock import allow_writes_only_in

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
# CUDA names its threads through /proc; neither place holds files of the user's.
DEVICES = ("/dev", "/proc")

# Arguments of an event that name what is changed: (path, its dir_fd or None).
# "through": the event follows a link at the end of the path; "itself": it changes the link.
EVENTS: dict[str, tuple[str, tuple[tuple[int, int | None], ...]]] = {
    "os.mkdir": ("new", ((0, 2),)),
    "os.remove": ("itself", ((0, 1),)),
    "os.rmdir": ("itself", ((0, 1),)),
    "os.rename": ("itself", ((0, 2), (1, 3))),
    "os.symlink": ("itself", ((1, 2),)),
    "os.link": ("itself", ((1, 3),)),
    "os.truncate": ("through", ((0, None),)),
    "os.chmod": ("through", ((0, 2),)),
    "os.chown": ("through", ((0, 3),)),
    "os.utime": ("through", ((0, 3),)),
    "os.setxattr": ("through", ((0, None),)),
    "os.removexattr": ("through", ((0, None),)),
    # Their parts are events, too; asked here, they are refused before half is done.
    "shutil.rmtree": ("itself", ((0, 1),)),
    "shutil.move": ("itself", ((0, None), (1, None))),
}


class WriteRefused(ReplayError, PermissionError):
    """The replayed script tried to write outside its sandbox and the store."""


def forbid_writes(allowed: Sequence[Path], sandbox: Path) -> tuple[str, ...]:
    """Refuse writes outside `allowed` and `sandbox` to this process, for good; call it once, early.

    Always allowed: devices, the folder for temporary files and the user's caches. A
    folder that holds the sandbox is never allowed as a whole: does the folder for temporary
    files hold it or its repository, a new one within takes its place (it goes with the process).
    A link in the sandbox that leads out is replaced by a copy when it is written to.
    No bytecode is written. Returns the protections that are on: "python", and "landlock" where
    the kernel offers it (it binds C code and child processes, but no thread that runs already).
    Call guard_extensions once torch is imported. Refusals are WriteRefused.
    """
    sandbox = Path(os.path.realpath(sandbox))
    folders = [sandbox, *(Path(os.path.realpath(folder)) for folder in allowed), *_always(sandbox)]
    places = tuple(dict.fromkeys(folder for folder in folders if folder not in sandbox.parents))
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    kernel = allow_writes_only_in(places)
    sys.addaudithook(_Guard(tuple(str(place) for place in places), str(sandbox)))
    guard_extensions()
    return ("python", "landlock") if kernel else ("python",)


def guard_extensions() -> None:
    """Guard the functions that write files without Python's open; those of loaded modules only.

    A second call changes nothing. They ask through an `open` event, so that whatever
    guards this process answers.
    """
    for module, name, place in (
        ("torch", "save", 1),
        ("torch.serialization", "save", 1),
        ("torch.serialization", "_open_zipfile_writer", 0),  # for those who imported save by name
        ("safetensors", "serialize_file", 1),
        ("safetensors.torch", "serialize_file", 1),
        ("safetensors.numpy", "serialize_file", 1),
        ("safetensors.torch", "save_file", 1),
        ("safetensors.numpy", "save_file", 1),
    ):
        found = sys.modules.get(module)
        write = getattr(found, name, None)
        if write is not None and not hasattr(write, "_asks_before_writing"):
            setattr(found, name, _asking(write, place))


def _asking(write: Callable[..., Any], place: int) -> Callable[..., Any]:
    names = ("f", "filename", "name_or_buffer")

    @wraps(write)
    def ask_and_write(*args: Any, **kwargs: Any) -> Any:
        named = [kwargs[name] for name in names if name in kwargs]
        target = args[place] if len(args) > place else next(iter(named), None)
        if isinstance(target, str | bytes | os.PathLike):
            sys.audit("open", os.fspath(target), "w", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return write(*args, **kwargs)

    ask_and_write._asks_before_writing = True  # type: ignore[attr-defined]
    return ask_and_write


def _always(sandbox: Path) -> Iterable[Path]:
    yield from map(Path, DEVICES)
    yield _temporary(sandbox)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for name in (cache, *(os.environ[name] for name in CACHES if os.environ.get(name))):
        folder = Path(os.path.realpath(os.path.expanduser(name)))
        try:
            folder.mkdir(parents=True, exist_ok=True)  # the kernel allows only what is there
        except OSError:
            continue
        yield folder


def _temporary(sandbox: Path) -> Path:
    folder = Path(os.path.realpath(tempfile.gettempdir()))
    if folder not in sandbox.parents and folder not in _project(sandbox).parents:
        return folder
    # Two levels, because the kernel would not let us remove the one that is allowed. Short
    # names: sockets of DataLoader workers lie in it, and their paths end at 107 bytes.
    ours = folder / f"flor-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.is_symlink() or ours.stat().st_uid != os.getuid():  # laid there by somebody else
        ours = Path(tempfile.mkdtemp(prefix="flor-", dir=folder))
    own = tempfile.mkdtemp(dir=ours)
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(own, ignore_errors=True) if os.getpid() == owner else None)
    tempfile.tempdir = own
    os.environ.update(TMPDIR=own, TEMP=own, TMP=own)
    return ours


def _project(sandbox: Path) -> Path:
    """The repository that a sandbox is a work tree of; the sandbox itself where it is none."""
    try:
        notes = (sandbox / ".git").read_text().removeprefix("gitdir:").strip()
    except OSError:
        return sandbox
    return Path(os.path.realpath(notes))


@dataclass(frozen=True, slots=True)
class _Guard:
    """An audit hook. It runs on every event of the interpreter: what is no write must leave at once."""

    places: tuple[str, ...]
    sandbox: str

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if flags & WRITING or (isinstance(mode, str) and set(mode) & set("wax+")):
                keeps = not (flags & os.O_TRUNC or (isinstance(mode, str) and "w" in mode))
                self._check_through(path, keeps)
        elif event in EVENTS:
            self._check_change(event, args)
        elif event == "sqlite3.connect":
            self._check_database(args[0])

    def _check_change(self, event: str, args: tuple[Any, ...]) -> None:
        how, targets = EVENTS[event]
        for place, folder in targets:
            path = _located(args[place], args[folder] if folder is not None and len(args) > folder else None)
            if path is None or (how == "new" and os.path.lexists(path)):
                continue  # an open file was asked about when it was opened; mkdir says itself what is there
            if event in ("os.remove", "os.rmdir") and not os.path.lexists(path):
                continue  # the system's own FileNotFoundError says it best
            if how == "through":
                self._check_through(path, keeps=True)
            else:
                self._check_itself(path)

    def _check_database(self, name: Any) -> None:
        path = os.fsdecode(name)
        if path in ("", ":memory:"):
            return
        if path.startswith("file:"):
            path, _, options = path.removeprefix("file:").partition("?")
            if {"mode=ro", "mode=memory", "immutable=1"} & set(options.split("&")) or path == ":memory:":
                return
        self._check_through(path, keeps=True)

    def _check_through(self, name: Any, keeps: bool) -> None:
        """Ask about the file that a path leads to; keeps: its content is needed in a copy."""
        path = _located(name, None)
        if path is None or self._is_allowed(os.path.realpath(path)):
            return
        path = self._unfold(path)
        if os.path.islink(path) and self._is_in_sandbox(path):
            _copy_up(path, keeps)
        elif not self._is_allowed(os.path.realpath(path)):
            raise _refusal(path)

    def _check_itself(self, path: str) -> None:
        """Ask about a path whose last part is not followed: its folder decides."""
        path = self._unfold(path)
        here = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not self._is_allowed(here):
            raise _refusal(path)

    def _unfold(self, path: str) -> str:
        """Replace linked folders on the way to a path in the sandbox by folders of links."""
        inside = self._inside(path)
        if inside is None:
            return path
        here = self.sandbox
        for part in inside.split(os.sep)[:-1]:
            here = os.path.join(here, part)
            if os.path.islink(here) and os.path.isdir(here) and not self._is_allowed(os.path.realpath(here)):
                _make_folder_of_links(here)
        return os.path.join(self.sandbox, inside)

    def _inside(self, path: str) -> str | None:
        """A path relative to the sandbox, read without following links; None if it is elsewhere."""
        path = os.path.normpath(path)
        if not path.startswith(self.sandbox + os.sep):
            return None
        return path.removeprefix(self.sandbox + os.sep)

    def _is_in_sandbox(self, path: str) -> bool:
        return self._inside(path) is not None

    def _is_allowed(self, real: str) -> bool:
        return any(real == place or real.startswith(place + os.sep) for place in self.places)


def _located(name: Any, folder: Any) -> str | None:
    """An absolute path; None for a file that is open already (it was asked about then)."""
    if isinstance(name, int) or name is None:
        return None
    path = os.fsdecode(name)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
        return os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), path)
    return os.path.join(os.getcwd(), path)


def _copy_up(link: str, keeps: bool) -> None:
    """Replace a link by a file of its own, with the content if it is needed; whole or not at all."""
    scratch = f"{link}.flor-{os.getpid()}"
    if keeps and os.path.exists(link):
        shutil.copy(link, scratch)
        os.chmod(scratch, os.stat(scratch).st_mode | 0o200)
        os.replace(scratch, link)
    else:
        os.unlink(link)


def _make_folder_of_links(link: str) -> None:
    source = os.path.realpath(link)
    names = os.listdir(source)
    os.unlink(link)
    os.mkdir(link)
    for name in names:
        os.symlink(os.path.join(source, name), os.path.join(link, name))


def _refusal(path: str) -> WriteRefused:
    return WriteRefused(
        errno.EACCES,
        "the replayed script was about to write outside its sandbox, and a replay changes nothing there; "
        "let the script write to a path relative to its project, or to the folder for temporary files",
        path,
    )
