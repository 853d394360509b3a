"""Copy-on-write: a process sees all files as they are; what it changes goes to a scratch folder.

In a mount namespace of its own, overlayfs lies over every folder in reach. Folders of the
system are read-only there; the few that are really written lie on top.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.errors import ReplayError
from flor_plugins.replayer.sandbox.mounts import (
    BIND,
    READ_ONLY,
    RECURSIVE,
    REMOUNT,
    escaped,
    keep_mounts,
    mount,
    mount_points,
    new_namespace,
    remove,
    remove_when_over,
)

# A training writes nothing there. Devices and shared memory stay as they are.
SYSTEM = frozenset(
    [
        "/bin",
        "/boot",
        "/etc",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/lost+found",
        "/sbin",
        "/snap",
        "/usr",
    ]
)
SPECIAL = ("/dev", "/proc", "/run", "/sys")
# What lies over a folder can't lie in it, so one of these is not covered. The last resort is
# memory.
BASES = ("/var/tmp", "/tmp")
MAX_COVERS = 200

UpperFiller = Callable[[Path, Path], None]


class NoOverlay(ReplayError):
    """The system has no copy-on-write for a process like this one."""


@dataclass(frozen=True, slots=True)
class OverlayFolders:
    """Which folders lie below an overlay.

    essential: folders that must be copy-on-write. kept: folders that are really written. fill:
    called with each covered folder and the folder that will lie over it, before it does.
    as_user: with a user namespace even where the process is privileged.
    """

    essential: tuple[Path, ...]
    kept: tuple[Path, ...] = ()
    fill: UpperFiller = lambda covered, over: None
    as_user: bool = False

    def needs(self, folder: str) -> bool:
        """Is an essential folder at or beneath `folder`?"""
        return any(essential.is_relative_to(folder) for essential in self.essential)


def enter(folders: OverlayFolders) -> tuple[Path, ...]:
    """Make all further writes of this process and its children go to a scratch folder, for good.

    Call it before any thread starts. It is tried in a child first: where NoOverlay is raised
    nothing has changed. Returns the covered folders. The scratch folder goes when the last of
    these processes has ended, also where they are killed.
    """
    base = _find_base(folders)
    scratch = _scratch(base)
    remove_when_over(scratch)
    return tuple(_enter(folders, scratch, base))


def why_not(folders: OverlayFolders) -> str:
    """Return why `enter` would refuse, "" if it would not; nothing is changed."""
    try:
        _find_base(folders)
    except NoOverlay as error:
        return str(error)
    return ""


def copy_owner(folder: Path, twin: Path) -> None:
    """Copy owner, mode and times: of two folders over each other the upper one decides."""
    status = folder.stat()
    with suppress(OSError):  # an owner that a user namespace does not know
        os.chown(twin, status.st_uid, status.st_gid)
    os.chmod(twin, stat.S_IMODE(status.st_mode))
    os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))


# ---- before


def _find_base(folders: OverlayFolders) -> str | None:
    """Return the folder for the scratch folder; None for memory."""
    reasons = []
    for base in (*(base for base in BASES if not folders.needs(base)), None):
        try:
            scratch = _scratch(base)
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
            continue
        try:
            reason = _why_trial_fails(folders, scratch, base)
        finally:
            remove(scratch)
        if not reason:
            return base
        if reason not in reasons:
            reasons.append(reason)
    raise NoOverlay(f"no copy-on-write: {'; '.join(reasons)}")


def _scratch(base: str | None) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"flor-{os.getuid()}-", dir=base))


def _why_trial_fails(folders: OverlayFolders, scratch: Path, base: str | None) -> str:
    """Cover what is essential in a child that ends at once; return why that failed, or ""."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        reason = "it died"
        try:
            unfilled = OverlayFolders(folders.essential, folders.kept, as_user=folders.as_user)
            _enter(unfilled, scratch, base, is_trial=True)
            reason = ""
        except BaseException as error:
            reason = str(error) or type(error).__name__
        finally:
            os.write(write, reason.encode()[:4000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        reason = answer.read()
    _, status = os.waitpid(child, 0)
    return reason or (f"a trial ended with status {status}" if status else "")


# ---- inside


def _enter(
    folders: OverlayFolders, scratch: Path, base: str | None, *, is_trial: bool = False
) -> list[Path]:
    is_user = new_namespace(as_user=folders.as_user)
    mounts = {place: flags for place, flags in mount_points() if not _is_special(place)}
    covers = list(_covers(mounts, folders, base))
    roots = _opened(mounts)
    kept = _opened(map(str, folders.kept))
    if base is None:
        mount("flor", str(scratch), "tmpfs", data="mode=700")
    over = os.open(scratch, os.O_PATH | os.O_CLOEXEC)  # its path may be covered in a moment
    done = []
    for number, folder in enumerate(covers):
        if is_trial and not folders.needs(folder):
            continue
        try:
            _cover(folder, f"/proc/self/fd/{over}", number, folders.fill, is_user)
            done.append(Path(folder))
        except OSError as error:
            if folders.needs(folder):
                raise NoOverlay(f"{folder} can't be covered: {error.strerror}") from error
    for folder, place in kept.items():
        mount(f"/proc/self/fd/{place}", folder, flags=BIND | RECURSIVE)
    for folder, root in roots.items():
        with suppress(OSError):  # what we may not change we can't write either
            mount(
                "none", f"/proc/self/fd/{root}", flags=REMOUNT | BIND | READ_ONLY | mounts[folder]
            )
    for number in (over, *roots.values(), *kept.values()):
        os.close(number)
    os.chdir(os.getcwd())  # what lies over it now
    keep_mounts()
    return done


def _opened(paths: Iterable[str]) -> dict[str, int]:
    """Open folders by their paths; those that this process may not enter are left out."""
    descriptors = {}
    for path in paths:
        with suppress(PermissionError):
            descriptors[path] = os.open(path, os.O_PATH | os.O_CLOEXEC)
    return descriptors


def _covers(mounts: Mapping[str, int], folders: OverlayFolders, base: str | None) -> Iterator[str]:
    """Yield the folders to cover.

    A folder with a mount in it is covered in parts: the system refuses the whole.
    """
    inner = [*mounts, *([base] if base else [])]
    left, count = ["/"], 0
    while left:
        folder = left.pop()
        if folder == "/" or any(
            place != folder and Path(place).is_relative_to(folder) for place in inner
        ):
            with suppress(PermissionError):
                entries = [
                    entry.path
                    for entry in os.scandir(folder)
                    if entry.is_dir(follow_symlinks=False)
                ]
                left.extend(entry for entry in entries if not _is_left_out(entry, folders, base))
            continue
        count += 1
        if count > MAX_COVERS:
            raise NoOverlay(f"more than {MAX_COVERS} folders would have to be covered")
        yield folder


def _is_left_out(folder: str, folders: OverlayFolders, base: str | None) -> bool:
    return folder == base or folder in SPECIAL or (folder in SYSTEM and not folders.needs(folder))


def _cover(folder: str, scratch: str, number: int, fill: UpperFiller, is_user: bool) -> None:
    own = Path(scratch, str(number))
    upper, work = own / "upper", own / "work"
    for made in (own, upper, work):
        made.mkdir()
    copy_owner(Path(folder), upper)
    fill(Path(folder), upper)
    copy_owner(Path(folder), upper)  # its time, which filling has changed
    options = f"lowerdir={escaped(folder)},upperdir={upper},workdir={work},volatile"
    # A folder from below can be renamed only where the kernel may note where it was.
    mount(
        "overlay",
        folder,
        "overlay",
        data=f"{options},{'userxattr' if is_user else 'redirect_dir=on'}",
    )


def _is_special(place: str) -> bool:
    return any(Path(place).is_relative_to(special) for special in SPECIAL)
