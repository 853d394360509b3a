"""What the kernel offers to a process that wants a view of the files of its own: namespaces
and mounts.
"""

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
    """Let this process and its children have mounts of their own; for good, and only before it
    has threads.

    True: within a user namespace, in which it is who it was (as_user: also where it could do
    without). OSError where the system refuses."""
    libc = _libc()
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
    """mount(2). Raises OSError."""
    words = [os.fsencode(word) for word in (source, target, kind)]
    if _libc().mount(*words, ctypes.c_ulong(flags), os.fsencode(data) if data else None) != 0:
        raise _error(target)


def mount_points() -> Iterator[tuple[str, int]]:
    """Every mount point that this process sees, and its flags."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        yield place, sum(FLAGS.get(option, 0) for option in fields[5].split(","))


def escaped(path: str) -> str:
    """A path in the options of overlayfs."""
    return re.sub(r"([\\,:])", r"\\\1", path)


def keep_mounts() -> None:
    """Neither this process nor its children may change mounts any more.

    Who is not root keeps no right that the user namespace gave: a file that only its owner's
    mode protects stays protected."""
    libc = _libc()
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (
        ctypes.c_uint32 * 6
    )()  # effective, permitted, inheritable: the low words, then the high ones
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
    """Start a process that waits for the end of this one and of all it forks, killed or not,
    and removes the folder.
    """
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


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
