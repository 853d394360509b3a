"""Landlock: the Linux kernel refuses writes, also those of C code and of child processes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from flor_plugins.replayer.sandbox.mounts import system_library

# linux/landlock.h; system call numbers are the same on all architectures but alpha.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
NO_NEW_PRIVS = 38  # linux/prctl.h

WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
# remove folder and file; make char device, folder, file, socket, fifo, block device, link
CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
REFER = 1 << 13  # rename and link from one folder to another
FIRST_WITH_REFER, FIRST_WITH_TRUNCATE = 2, 3


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """Return the version that the kernel offers; 0 where Landlock is missing or switched off."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(
        0,
        system_library().syscall(
            CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG)
        ),
    )


def allow_writes_only_in(folders: Iterable[Path]) -> bool:
    """Refuse writes outside `folders` to this thread, its later threads and its children, for good.

    Reading stays free. Threads that run already are not bound, so call it early. False,
    and nothing changed, where the kernel does not offer it. Folders that are not there
    are left out.
    """
    version = abi()
    if version < FIRST_WITH_REFER:  # version 1 forbids every rename between folders
        return False
    file_rights = WRITE_FILE | (TRUNCATE if version >= FIRST_WITH_TRUNCATE else 0)
    rights = file_rights | CHANGE_FOLDER | REFER
    libc = system_library()
    ruleset = _Ruleset(rights)
    rules = libc.syscall(
        CREATE_RULESET,
        ctypes.byref(ruleset),
        ctypes.c_size_t(ctypes.sizeof(ruleset)),
        ctypes.c_uint32(0),
    )
    if rules < 0:
        return False
    try:
        for folder in folders:
            _allow(libc, rules, folder, rights, file_rights)
        if libc.prctl(NO_NEW_PRIVS, *(ctypes.c_ulong(number) for number in (1, 0, 0, 0))) != 0:
            return False
        return libc.syscall(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, folder: Path, rights: int, file_rights: int) -> None:
    try:
        place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        beneath = _PathBeneath(rights if folder.is_dir() else file_rights, place)
        numbers = (
            ctypes.c_int(rules),
            ctypes.c_int(PATH_BENEATH),
            ctypes.byref(beneath),
            ctypes.c_uint32(0),
        )
        libc.syscall(ADD_RULE, *numbers)
    finally:
        os.close(place)
