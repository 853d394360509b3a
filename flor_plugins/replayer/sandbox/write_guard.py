"""The past is read-only: a replaying process writes to its sandbox and the store, nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from flor_plugins.errors import ReplayError
from flor_plugins.replayer.sandbox import child_processes
from flor_plugins.replayer.sandbox.import_hooks import ImportHook
from flor_plugins.replayer.sandbox.landlock import allow_writes_only_in
from flor_plugins.replayer.sandbox.private_folders import link_caches, own_temporary

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# CUDA names its threads through /proc; neither place holds files of the user's.
DEVICES = ("/dev", "/proc")

# Arguments of an event that name what is changed: (path, its dir_fd or None, how).
# "through": the event follows a link at the end of the path; "itself": it changes the link;
# "new": nothing is there.
EVENTS: dict[str, tuple[tuple[int, int | None, str], ...]] = {
    "os.mkdir": ((0, 2, "new"),),
    "os.remove": ((0, 1, "itself"),),
    "os.rmdir": ((0, 1, "itself"),),
    "os.rename": ((0, 2, "itself"), (1, 3, "itself")),
    "os.symlink": ((1, 2, "itself"),),
    "os.link": (
        (0, 2, "through"),
        (1, 3, "itself"),
    ),  # the file would be written under its new name
    "os.truncate": ((0, None, "through"),),
    "os.chmod": ((0, 2, "through"),),
    "os.chown": ((0, 3, "through"),),
    "os.utime": ((0, 3, "through"),),
    "os.setxattr": ((0, None, "through"),),
    "os.removexattr": ((0, None, "through"),),
    # Their parts are events, too; asked here, they are refused before half is done.
    "shutil.rmtree": ((0, 1, "itself"),),
    "shutil.move": ((0, None, "itself"), (1, None, "itself")),
}
# What a file allows that is open only for reading.
OF_OPEN_FILES = frozenset(("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"))


# Modules with functions that write files without Python's open.
WRITERS = ("torch.serialization", "torch", "safetensors", "safetensors.torch", "safetensors.numpy")


class WriteRefused(ReplayError, PermissionError):
    """The replayed script tried to write outside its sandbox and the store."""


def forbid_writes(
    allowed: Sequence[Path], sandbox: Path, *, kernel: bool = True
) -> tuple[str, ...]:
    """Refuse writes outside `allowed` and `sandbox` to this process, for good; call it once, early.

    Always allowed: devices. Temporary files get a folder of their own, and caches a folder of
    links in it (it goes with the process). A link in either or in the sandbox that leads out is
    replaced by a copy when it is written to. Returns the protections that are on: see `guard`.
    """
    sandbox = Path(os.path.realpath(sandbox))
    own = own_temporary()
    link_caches(own)
    folders = [sandbox, *(Path(os.path.realpath(folder)) for folder in allowed), own.parent]
    places = tuple(
        dict.fromkeys(str(folder) for folder in folders if folder not in sandbox.parents)
    )
    return guard(places, (str(sandbox), str(own)), kernel=kernel)


def guard(
    places: Sequence[str], links: Sequence[str] = (), *, kernel: bool = True
) -> tuple[str, ...]:
    """Refuse writes outside `places` and devices to this process, for good.

    links: folders whose links are replaced by copies when they are written to. Returns the
    protections that are on: "python", and "landlock" where the kernel offers it (it binds C
    code and child processes, but no thread that runs already). Where it does not, programs that
    bring no guard along are not started. No bytecode is written. Refusals are WriteRefused.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    places = (*places, *DEVICES)
    binds = kernel and allow_writes_only_in(map(Path, places))
    child_processes.bind_pythons({"places": list(places), "links": list(links), "kernel": binds})
    _ask_where_python_does_not()
    sys.addaudithook(_WriteGuard(tuple(places), tuple(links), binds))
    ImportHook(dict.fromkeys(WRITERS, lambda module: guard_extensions())).put_on()
    return ("python", "landlock") if binds else ("python",)


def _ask_where_python_does_not() -> None:
    """Ask about files relative to an open folder, pipes and devices.

    No event of the interpreter tells where they are made.
    """
    for name in ("open", "mkfifo", "mknod"):
        setattr(os, name, _locating(getattr(os, name), is_open=name == "open"))


def _locating(call: Callable[..., Any], *, is_open: bool) -> Callable[..., Any]:
    @wraps(call)
    def locate_and_call(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
        flags = kwargs.get("flags", args[0] if args else 0) if is_open else os.O_CREAT
        if (dir_fd is not None or not is_open) and flags & WRITING:
            sys.audit("open", _located(path, dir_fd), None, flags)
        return call(path, *args, dir_fd=dir_fd, **kwargs)

    return locate_and_call


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


@dataclass(frozen=True, slots=True)
class _WriteGuard:
    """An audit hook.

    It runs on every event of the interpreter: what is no write must leave at once.
    """

    places: tuple[str, ...]
    links: tuple[str, ...]
    binds_children: bool

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
        elif not self.binds_children and (event in child_processes.EVENTS or event == "os.system"):
            self._check_program(event, args)

    def _check_program(self, event: str, args: tuple[Any, ...]) -> None:
        program = child_processes.unguarded(event, args)
        if program is not None:
            raise WriteRefused(
                errno.EACCES,
                "the replayed script was about to start a program, and this system offers "
                "nothing that keeps a "
                "program from writing outside the sandbox (flor-hf doctor says why); let the "
                "script do without",
                program,
            )

    def _check_change(self, event: str, args: tuple[Any, ...]) -> None:
        for place, folder, how in EVENTS[event]:
            path = _located(
                args[place], args[folder] if folder is not None and len(args) > folder else None
            )
            if path is None and event in OF_OPEN_FILES:
                path = _path_of(args[place])
            if path is None or (how == "new" and os.path.lexists(path)):
                # an open file was asked about when it was opened; mkdir says itself what is
                # there
                continue
            if (
                place == 0
                and event in ("os.remove", "os.rmdir", "os.link")
                and not os.path.lexists(path)
            ):
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
            if {"mode=ro", "mode=memory", "immutable=1"} & set(
                options.split("&")
            ) or path == ":memory:":
                return
        self._check_through(path, keeps=True)

    def _check_through(self, name: Any, keeps: bool) -> None:
        """Ask about the file that a path leads to; keeps: its content is needed in a copy."""
        path = _located(name, None)
        if path is None or self._is_allowed(os.path.realpath(path)):
            return
        path = self._unfold(path)
        if os.path.islink(path) and self._top(path) is not None:
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
        """Replace linked folders on the way to a path among links by folders of links."""
        path = os.path.normpath(path)
        top = self._top(path)
        if top is None:
            return path
        here = top
        for part in path.removeprefix(top + os.sep).split(os.sep)[:-1]:
            here = os.path.join(here, part)
            if (
                os.path.islink(here)
                and os.path.isdir(here)
                and not self._is_allowed(os.path.realpath(here))
            ):
                _make_folder_of_links(here)
        return path

    def _top(self, path: str) -> str | None:
        """The folder of links that a path, read without following links, lies in."""
        return next((top for top in self.links if path.startswith(top + os.sep)), None)

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


def _path_of(number: Any) -> str | None:
    """Where an open file lies, if it is one."""
    if not isinstance(number, int):
        return None
    with suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{number}")
        return path if os.path.isabs(path) and os.path.exists(path) else None
    return None


def _copy_up(link: str, keeps: bool) -> None:
    """Replace a link by a whole file of its own, with the content if it is needed."""
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
        "the replayed script was about to write outside its sandbox, and a replay changes "
        "nothing there; "
        "let the script write to a path relative to its project, or to the folder for "
        "temporary files",
        path,
    )
