"""Ten scripts that do what they should not: after a replay all is as it was, and what was
asked is answered.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flor_plugins as flor
from flor_plugins.errors import FlorError
from flor_plugins.replayer.sandbox import isolation, landlock
from tests import replaying
from tests.replaying import Project, rows_of

ACTS = (
    "write_home",
    "save_checkpoints",
    "call_system",
    "delete_outputs",
    "push_to_hub",
    "log_to_trackers",
    "spawn",
    "change_folder",
    "change_source",
    "write_through_links",
)
# Where nothing is copied on write, these end with the refusal of a path, or of a program.
OF_A_PATH = ("write_home", "save_checkpoints", "change_folder", "change_source", "delete_outputs")
REFUSED = {"overlay": (), "landlock": OF_A_PATH, "python": (*OF_A_PATH, "call_system", "spawn")}


HOOK = """
import flor_plugins as flor

@flor.metric(at="step")
def {}(ctx):
    return float(sum(p.detach().double().norm() for p in ctx.model.parameters()))
"""


@dataclass(frozen=True)
class World:
    """home/, outside/ and project/ of a user, each with files to be harmed."""

    root: Path
    project: Project
    trainer: str

    def record(self, act: str) -> None:
        self.project.python("hostile.py", self.trainer, act)


def make(root: Path, trainer: str) -> World:
    for name in ("home", "outside/deep"):
        (root / name).mkdir(parents=True)
    lay(root)
    env = {
        "HOME": str(root / "home"),
        "OUTSIDE": str(root / "outside"),
        "PROJECT": str(root / "project"),
        "HF_HUB_OFFLINE": "0",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": str(root / "home/.cache"),
    }
    project = Project(replaying.make(root / "project").root, env)
    (project.root / "linked.txt").symlink_to(root / "outside" / "linked.txt")
    project.write("notes.md", "notes\n")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "a link that leads out")
    return World(root, project, trainer)


def lay(root: Path) -> None:
    """The files to be harmed, as they are before each act."""
    for name in ("canary", "mode", "time", "long", "gone", "moved"):
        (root / "home" / f"{name}.txt").write_text("of the user")
    # as the recording has left its folder
    (root / "outside" / "saved").mkdir(parents=True, exist_ok=True)
    for name in ("canary.txt", "linked.txt", "deep/canary.txt", "canary.safetensors"):
        (root / "outside" / name).parent.mkdir(exist_ok=True)
        (root / "outside" / name).write_text("of the user")


def lay_data(world: World) -> None:
    ignored = world.project.root / "ignored"
    shutil.rmtree(ignored, ignore_errors=True)
    (ignored / "out").mkdir(parents=True)
    (ignored / "out" / "result.txt").write_text("of the user")
    (ignored / "data.bin").write_bytes(bytes(range(64)))
    (ignored / "linked.txt").symlink_to(world.root / "outside" / "canary.txt")
    (ignored / "linked-folder").symlink_to(world.root / "outside" / "deep")
    base = sqlite3.connect(ignored / "base.db")
    with base:
        base.execute("create table t (n)")
    base.close()


def restore(world: World) -> None:
    """After the recording, which has done its harm."""
    world.project.git("checkout", "-q", "--", ".")
    shutil.rmtree(world.root / "outside")
    (world.root / "outside" / "deep").mkdir(parents=True)
    lay(world.root)
    lay_data(world)
    (world.project.root / "copy.py").unlink(missing_ok=True)


def look(world: World) -> dict[str, Any]:
    """Of every file and folder: mode, time, size, where a link leads, sha256; and what git says."""
    seen: dict[str, Any] = {}
    git = world.project.root / ".git"
    for folder, folders, files in os.walk(world.root):
        folders[:] = [
            name for name in folders if Path(folder, name) not in (world.project.store.root, git)
        ]
        for path in (Path(folder), *(Path(folder, name) for name in (*files, *folders))):
            found = path.lstat()
            is_file = stat.S_ISREG(found.st_mode)
            held = (
                hashlib.sha256(path.read_bytes()).hexdigest()
                if is_file
                else path.is_symlink() and os.readlink(path)
            )
            size = found.st_size if is_file else None
            seen[str(path.relative_to(world.root))] = (
                oct(found.st_mode),
                found.st_mtime_ns,
                size,
                held,
            )
    index = hashlib.sha256((git / "index").read_bytes()).hexdigest()
    status = world.project.git("--no-optional-locks", "status", "--porcelain")
    refs = world.project.git("for-each-ref", "refs/heads", "refs/tags")
    return {
        **seen,
        "git": (index, status, refs, (git / "HEAD").read_text(), (git / "config").read_bytes()),
    }


@pytest.fixture(scope="module", params=["lightning", pytest.param("hf", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def hub() -> Iterator[list[bytes]]:
    """A server where a hub might be: what was sent to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    other, _ = server.accept()
                except OSError:
                    return
                with other:
                    heard.append(other.recv(100))
                    other.sendall(
                        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )

        threading.Thread(target=listen, daemon=True).start()
        heard_at = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", heard_at)
            yield heard
        server.shutdown(socket.SHUT_RDWR)


def replay(world: World, act: str, kind: str, patch: pytest.MonkeyPatch) -> str:
    """What the replay of that act came to: a verdict, or the refusal."""
    for name, value in world.project.env.items():
        patch.setenv(name, value)
    patch.setenv(isolation.VARIABLE, kind)
    # each kind asks for what is not known yet
    metric, store = (
        f"norm_{kind}",
        world.project.store.root,
    )
    hook = world.root.parent / f"{metric}.py"
    hook.write_text(HOOK.format(metric))
    try:
        frame = flor.replay(metric, f"name == '{act}'", hooks=[hook], store=store)
    except FlorError as error:
        return str(error)
    assert len(rows_of(frame, act, metric)) > 0
    [verdict] = [row["verdict"] for row in world.project.verdicts()]
    return verdict


@pytest.mark.parametrize(
    "kind",
    ["overlay", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("landlock", "python"))],
)
@pytest.mark.parametrize(
    "act",
    # One of each mechanism in the default run: files, child processes, and what leaves the machine.
    [
        act
        if act in ("write_home", "spawn", "push_to_hub")
        else pytest.param(act, marks=pytest.mark.slow)
        for act in ACTS
    ],
)
def test_nothing_outside_sandbox_and_store_is_changed(
    world: World, act: str, kind: str, hub: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if act == "log_to_trackers":
        pytest.importorskip("mlflow")
        pytest.importorskip("tensorboard")
    needs(kind, world)
    if act not in {run.name for run in flor.runs(store=world.project.store.root)}:
        lay_data(world)
        world.record(act)
        assert hub or act != "push_to_hub"  # it would be heard
        hub.clear()
        restore(world)
    before = look(world)
    found = replay(world, act, kind, monkeypatch)
    after = look(world)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()
    assert hub == []
    print(f"RESULT | {world.trainer} | {act} | {kind} | {found.splitlines()[0][:200]}")
    if act in REFUSED[kind]:
        assert "the replayed script was about to" in found
    else:
        assert found == "exact"


def needs(kind: str, world: World) -> None:
    if kind == "landlock" and landlock.abi() < landlock.FIRST_WITH_REFER:
        pytest.skip("this kernel offers no Landlock")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(isolation.VARIABLE, raising=False)
        if kind == "overlay" and isolation.in_force(world.root)[0] != "overlay":
            pytest.skip(isolation.in_force(world.root)[1])
