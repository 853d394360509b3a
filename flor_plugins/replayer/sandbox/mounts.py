"""Mount namespaces: what the kernel offers a process that wants its own view of the files."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# linux/sched.h, linux/mount.h
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
# linux/statfs.h says which of a mount's flags must be named again when it is made read-only.
FLAGS = {
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
# linux/capability.h, linux/prctl.h
CAPABILITY_VERSION, SYS_ADMIN, DROP_FROM_BOUNDS = 0x20080522, 21, 24


def new_namespace(*, as_user: bool = False) -> bool:
    """Give this process and its children mounts of their own, for good, before it has threads.

    Returns whether a user namespace was needed, in which the process keeps its identity
    (as_user: use one even where it is not needed). Raises OSError where the system refuses.
    """
    libc = system_library()
    if not sys.platform.startswith("linux"):
        raise OSError(0, "only Linux has mount namespaces")
    is_user = as_user or libc.unshare(ctypes.c_int(NEW_MOUNTS)) != 0
    if is_user:
        user, group = os.geteuid(), os.getegid()
        if libc.unshare(ctypes.c_int(NEW_USER | NEW_MOUNTS)) != 0:
            raise _error("user namespaces")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    mount("none", "/", flags=RECURSIVE | PRIVATE)  # nothing of what follows is seen elsewhere
    return is_user


def mount(source: str, target: str, kind: str = "none", *, flags: int = 0, data: str = "") -> None:
    """Mount a file system; raises OSError."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    if (
        system_library().mount(*words, ctypes.c_ulong(flags), os.fsencode(data) if data else None)
        != 0
    ):
        raise _error(target)


def mount_points() -> Iterator[tuple[str, int]]:
    """Yield every mount point that this process sees, and its flags."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        yield place, sum(FLAGS.get(option, 0) for option in fields[5].split(","))


def escaped(path: str) -> str:
    """Escape a path for the options of overlayfs."""
    return re.sub(r"([\\,:])", r"\\\1", path)


def keep_mounts() -> None:
    """Forbid this process and its children to change mounts any more.

    A process that is not root keeps no right that the user namespace gave: a file that only its
    owner's mode protects stays protected.
    """
    libc = system_library()
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    # effective, permitted, inheritable: the low words, then the high ones
    sets = (ctypes.c_uint32 * 6)()
    libc.prctl(DROP_FROM_BOUNDS, *(ctypes.c_ulong(number) for number in (SYS_ADMIN, 0, 0, 0)))
    if libc.capget(head, sets) != 0:
        raise _error("capabilities")
    for place in range(6):
        low = place < 3
        kept = ~(1 << SYS_ADMIN) if low else ~0
        sets[place] = sets[place] & kept & 0xFFFFFFFF if os.geteuid() == 0 else 0
    if libc.capset(head, sets) != 0:
        raise _error("capabilities")


def remove_when_over(scratch: Path) -> None:
    """Start a process that removes the folder when this one and all its children have ended."""
    read, _ = os.pipe()
    if os.fork():
        os.close(read)  # the other end stays open for good: its end is the end of all who have it
        return
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((null, null, null, read)):
            os.dup2(source, number)
        os.closerange(4, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
        os.read(3, 1)
        remove(scratch)
    finally:
        os._exit(0)


def remove(scratch: Path) -> None:
    """Remove a scratch folder; overlayfs leaves folders in it that nobody may enter."""
    for folder, folders, _ in os.walk(scratch):
        for name in folders:
            with suppress(OSError):
                if not os.path.islink(path := os.path.join(folder, name)):
                    os.chmod(path, 0o700)
    shutil.rmtree(scratch, ignore_errors=True)


def system_library() -> ctypes.CDLL:
    """Return libc, with errno kept for `ctypes.get_errno`."""
    return ctypes.CDLL(None, use_errno=True)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
