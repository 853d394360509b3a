"""A training beside which something breaks: fault_cell.py FRAMEWORK CELL, as resume_cell.py,
whose STOP it heeds too.

FAULT: `kind:number[:more]`; so many states are handed over to be written when it happens.
Kinds: full (the disk), read-only (the store), no-run and no-checkpoints (folders that are
removed), writer (killed then, and at each third state after that). more: so many states later
this process kills itself; of a full disk (a tmpfs of its own, that goes with the process) the
store is copied to flor_after/ before. Ends with status 77 where no file system can be mounted.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import resume_cell
import xxhash

from flor_plugins.recorder.checkpointing.writer_client import WriterClient

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # linux/sched.h
READ_ONLY, REMOUNT, BIND, REC, PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h
STORE = Path(".flor")
kind, number, more = (os.environ.pop("FAULT", "none:0") + ":0").split(":")[:3]
libc = ctypes.CDLL(None, use_errno=True)


def mount(source, target, kind, flags, data=None):
    texts = [None if one is None else os.fsencode(one) for one in (source, target, kind)]
    if libc.mount(*texts, flags, None if data is None else data.encode()):
        print("no mount", os.strerror(ctypes.get_errno()))
        sys.exit(77)


def own_mounts():
    """File systems that are mounted from here on are seen by this process and its children only."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS):
        if libc.unshare(NEW_MOUNTS | NEW_USER):
            sys.exit(77)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount(None, "/", None, REC | PRIVATE)


def kill_writer():
    for file in STORE.glob("runs/*/writer.json"):
        with suppress(OSError, ValueError):  # it is gone, or just begins
            os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)


def kill_both():
    kill_writer()
    os.kill(os.getpid(), signal.SIGKILL)


def fill():
    with (STORE / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError as error:
            print("FILLED", error)


def happen(nth):
    if kind == "both":
        if nth == int(number):
            threading.Timer(float(more), kill_both).start()
        return
    if kind == "writer" and nth >= int(number) and (nth - int(number)) % 3 == 0:
        kill_writer()
    if nth == int(number):
        while (
            kind not in ("none", "writer")
            and len(list(STORE.glob("runs/*/checkpoints/epoch=*/state.json"))) < 3
        ):
            time.sleep(0.01)  # so that something is there to go on from
        if kind == "full":
            fill()
        elif kind == "read-only":
            mount(STORE, STORE, None, BIND)
            mount(None, STORE, None, BIND | REMOUNT | READ_ONLY)
        elif kind in ("no-run", "no-checkpoints"):
            for run in STORE.glob("runs/*"):
                shutil.rmtree(run if kind == "no-run" else run / "checkpoints", ignore_errors=True)
    if int(more) and nth == int(number) + int(more):
        if kind == "full":
            kill_writer()
            shutil.copytree(STORE, "flor_after", ignore=lambda *_: ["filler"])
        os.kill(os.getpid(), signal.SIGKILL)


def in_states():
    send, numbers = WriterClient.send, count(1)

    def counted(self, letter):
        happen(next(numbers))
        send(self, letter)

    WriterClient.send = counted


def said(of):
    def on_train_end(self, trainer, *args, **kwargs):
        state = (kwargs.get("model") or args[0]).state_dict()
        memory = b"".join(one.detach().contiguous().numpy().tobytes() for one in state.values())
        print("WEIGHTS", xxhash.xxh3_128_hexdigest(memory))

    of.on_train_end = on_train_end


if __name__ == "__main__":
    in_states()
    said(resume_cell.LightningStop)
    said(resume_cell.HfStop)
    if kind in ("full", "read-only"):
        own_mounts()
    if kind == "full":
        STORE.mkdir()
        mount("tmpfs", STORE, "tmpfs", 0, "size=8m")
    getattr(resume_cell, sys.argv[1])(sys.argv[2])
    print("AFTER TRAINING")
    if kind == "full":
        shutil.copytree(STORE, "flor_after", ignore=lambda *_: ["filler"])
