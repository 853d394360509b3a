"""A training whose machine loses its power: power_cell.py FRAMEWORK CELL, as resume_cell.py.

POWER: `number:seed`. After so many fsyncs and renames in the store, flor_after/ is made of it
as a disk may hold it then, and this process is killed; `safe.txt` has the checkpoints that the
disk has to hold, one a line.

The disk: bytes are safe once their file was fsynced, what was appended since may be missing or
zero; the name of a file or folder, and a rename, once the folder it lies in was. What git
writes is not looked at: it syncs by itself."""

import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path

import fault_cell
import resume_cell

from flor_plugins.recorder.checkpointing import writer_client

STORE, CODE = Path(".flor").absolute(), "code.git"
number, seed = map(int, os.environ.pop("POWER", "0:0").split(":"))


class Disk:
    """What is safe of the store: bytes by present path, names, and renames that may be
    undone (with what they hid).
    """

    def __init__(self):
        self.contents, self.names, self.loose = {}, {STORE}, []
        self._lock, self._count = threading.RLock(), 0

    def fsync(self, handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        with self._lock:
            if path.is_dir():
                self.names |= set(path.iterdir())
                self.loose = [one for one in self.loose if one[1].parent != path]
            else:
                self.contents[path] = path.read_bytes()
            self._happened(path)

    def renaming(self, rename):
        def act(one, other, **options):
            one, other = Path(one).absolute(), Path(other).absolute()
            with self._lock:
                hidden = self.contents.get(other) if other in self.names else None
                rename(one, other, **options)
                self.contents = {
                    _moved(path, one, other): content for path, content in self.contents.items()
                }
                self.names = {_moved(path, one, other) for path in self.names - {one}}
                self.loose.append((one, other, hidden))
                self._happened(other)

        return act

    def _happened(self, path):
        if STORE not in path.parents:
            return
        self._count += 1
        if self._count == number:
            self.lose_power(random.Random(seed))

    def lose_power(self, chance):
        whole = [
            one for one in STORE.glob("runs/*/checkpoints/epoch=*") if not self._is_forgotten(one)
        ]
        Path("safe.txt").write_text("".join(f"{one.name}\n" for one in whole))
        after = Path("flor_after").absolute()
        shutil.copytree(STORE / CODE, after / CODE)
        there = {
            path: path.read_bytes()
            for path in STORE.rglob("*")
            if path.is_file() and CODE not in path.parts
        }
        for path, content in there.items():
            _put(after / path.relative_to(STORE), self._torn(path, content, chance))
        for one, other, hidden in reversed(self.loose):
            if STORE not in other.parents or chance.random() < 0.5:
                continue
            was, now = (after / path.relative_to(STORE) for path in (one, other))
            if hidden is not None:
                _put(now, hidden)
            elif now.exists() and was.parent.exists():
                now.rename(was)
        for path in sorted(
            {one for file in there for one in (file, *file.parents) if STORE in one.parents}
        ):
            target = after / path.relative_to(STORE)
            if path not in self.names and target.exists() and chance.random() < 0.5:
                shutil.rmtree(target) if target.is_dir() else target.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def _is_forgotten(self, path):
        unsafe = {other for _, other, _ in self.loose}
        return any(
            one in unsafe or one not in self.names
            for one in (path, *path.parents)
            if STORE in one.parents
        )

    def _torn(self, path, content, chance):
        safe = self.contents.get(path, b"")
        start = len(safe) if content.startswith(safe) else 0
        length = chance.choice([start, len(content), chance.randrange(start, len(content) + 1)])
        return content[:length] + bytes(chance.choice([0, len(content) - length]))


def _moved(path, one, other):
    return other / path.relative_to(one) if path == one or one in path.parents else path


def _put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    fault_cell.said(resume_cell.LightningStop)
    fault_cell.said(resume_cell.HfStop)
    if number:
        disk = Disk()
        os.fsync, os.rename, os.replace = (
            disk.fsync,
            disk.renaming(os.rename),
            disk.renaming(os.replace),
        )
        writer_client.RESTARTS = 0  # a thread writes: its syncs are seen, too
    getattr(resume_cell, sys.argv[1])(sys.argv[2])
    print("AFTER TRAINING", disk._count if number else "")
