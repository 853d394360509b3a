"""A machine loses its power while checkpoints are written: what the disk may hold then, and
what is read of it.

The model of a disk: what was written to a file is safe once the file was fsynced, and a name (a
new file, a folder, a rename) once its folder was. All else may be there or not, and bytes may
be missing at the end or zero."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.errors import DamagedCheckpoint, NoCheckpoint
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import (
    known_tensors,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from flor_plugins.store.codec import encode

pytestmark = pytest.mark.xdist_group("power loss")


@dataclass(frozen=True)
class Event:
    """One thing that the writer did. what: "fsync" of a path, or "rename" of one to another."""

    what: str
    path: str
    to: str = ""
    content: bytes | None = None  # of a file, when it was fsynced
    tree: tuple[tuple[str, bytes], ...] = ()  # all there was when it was done


class Log:
    """All fsyncs and renames below a folder, in order, and the folder as it was then."""

    def __init__(self, root: Path) -> None:
        self.root, self.events = root, list[Event]()

    @contextmanager
    def kept(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def synced(handle: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)
            self._add("fsync", path, content=path.read_bytes() if path.is_file() else None)

        def renamed(how: Any) -> Any:
            def act(one: Any, other: Any, **options: Any) -> None:
                how(one, other, **options)
                self._add("rename", Path(one), Path(other))

            return act

        with patch.context() as within:
            within.setattr(os, "fsync", synced)
            within.setattr(os, "rename", renamed(rename))
            within.setattr(os, "replace", renamed(replace))
            yield

    def _add(
        self, what: str, path: Path, to: Path | None = None, content: bytes | None = None
    ) -> None:
        there = self.root.rglob("*")
        tree = tuple(
            (str(one.relative_to(self.root)), one.read_bytes()) for one in there if one.is_file()
        )
        one, other = (str(end.relative_to(self.root)) if end else "" for end in (path, to))
        self.events.append(Event(what, one, other, content, tree))


def disk_after(events: list[Event], chance: random.Random, folder: Path) -> None:
    """A disk on which no more of `events` is safe than a file system has to keep.

    Files at their last place, with a part of their bytes where they were never fsynced; then
    some of the renames that no fsync of their folder followed are undone, the later ones first.
    """
    safe: dict[str, bytes] = {}  # by the present name
    loose: list[Event] = []  # renames whose folder was not fsynced since
    for event in events:
        if event.what == "fsync" and event.content is not None:
            safe[event.path] = event.content
        elif event.what == "fsync":
            loose = [one for one in loose if str(Path(one.to).parent) != event.path]
        else:
            loose.append(event)
            safe = {_moved(path, event.path, event.to): content for path, content in safe.items()}
    for path, content in events[-1].tree:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if safe.get(path) == content else _torn(content, chance))
    for one in reversed(loose):
        if (
            chance.random() < 0.5
            and (folder / one.to).exists()
            and not (folder / one.path).exists()
        ):
            (folder / one.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / one.to).rename(folder / one.path)


def _moved(path: str, one: str, other: str) -> str:
    return other + path[len(one) :] if path == one or path.startswith(f"{one}/") else path


def _torn(content: bytes, chance: random.Random) -> bytes:
    length = chance.choice([0, len(content), chance.randrange(len(content) + 1)])
    rest = chance.choice([0, len(content) - length])
    return content[:length] + bytes(rest)


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"frozen": torch.arange(50.0), "trained": torch.randn(40, generator=generator)},
        "optimizer": {"moment": torch.randn(40, generator=generator), "step": step},
    }


STEPS = 4


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """What the writer does for a few checkpoints that refer to each other."""
    root = tmp_path_factory.mktemp("written")
    made, known = Log(root), known_tensors(root / "run")
    with pytest.MonkeyPatch.context() as patch, made.kept(patch):
        for step in range(STEPS):
            save_checkpoint(root / "run", Position(0, step), encode(state(step)), known)
    return made


def read(run: Path) -> tuple[list[int], list[int]]:
    """Steps that are read and equal what was saved, and steps that are listed and said to be
    damaged.
    """
    read, damaged = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list_checkpoints(run)
    for one in found:
        step = one.position.step
        try:
            loaded = load_checkpoint(run, one.position)
        except DamagedCheckpoint:
            damaged.append(step)
            continue
        expected = state(step)
        assert loaded["optimizer"]["step"] == step
        for section, name in (("model", "frozen"), ("model", "trained"), ("optimizer", "moment")):
            assert torch.equal(loaded[section][name], expected[section][name])
        read.append(step)
    return read, damaged


def finished(events: list[Event]) -> list[int]:
    """Steps whose folder got its name, and the folder of all of them was fsynced after that."""
    found: list[int] = []
    names: list[str] = []
    for event in events:
        if (
            event.what == "rename"
            and "/epoch=" in event.to
            and event.to.endswith(tuple("0123456789"))
        ):
            names.append(event.to)
        if event.what == "fsync" and event.path == "run/checkpoints":
            found = [Position.parse(Path(one).name).step for one in names]
    return found


def test_the_log_has_what_the_model_needs(log: Log) -> None:
    assert finished(log.events) == [*range(STEPS)]
    synced = {one.path for one in log.events if one.what == "fsync"}
    assert (
        any(path.endswith("model.safetensors") for path in synced) and "run/checkpoints" in synced
    )


@given(st.data())
@settings(max_examples=300)
def test_after_a_loss_of_power_what_was_finished_is_whole_and_what_was_not_is_never_read(
    log: Log, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(log.events)))
    seed = data.draw(st.integers(0, 1 << 30))
    folder = tmp_path_factory.mktemp("disk")
    disk_after(log.events[:cut], random.Random(seed), folder)
    whole, damaged = read(folder / "run")
    assert damaged == []
    assert set(finished(log.events[:cut])) <= set(whole)
    shutil.rmtree(folder)


def test_at_every_moment_the_disk_has_each_finished_checkpoint_and_the_next_one_can_be_written(
    log: Log, tmp_path: Path
) -> None:
    for cut in range(1, len(log.events) + 1):
        folder = tmp_path / str(cut)
        disk_after(log.events[:cut], random.Random(cut), folder)
        whole, damaged = read(folder / "run")
        assert set(finished(log.events[:cut])) <= set(whole) and not damaged
        later = Position(0, STEPS)
        save_checkpoint(folder / "run", later, encode(state(STEPS)), known_tensors(folder / "run"))
        assert read(folder / "run")[0] == [*whole, STEPS]


@given(st.integers(0, 1 << 30))
@settings(max_examples=200)
def test_a_disk_that_loses_what_it_said_was_safe_is_noticed(
    log: Log, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Some do.

    Whole or damaged, but never another state; what refers to a torn file is damaged, too.
    """
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("disk")
    for path, content in log.events[-1].tree:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(_torn(content, chance) if chance.random() < 0.3 else content)
    whole, damaged = read(folder / "run")
    assert not set(whole) & set(damaged)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_torn_checkpoint_is_passed_over_or_refused_and_the_one_before_it_is_read(
    name: str, log: Log, tmp_path: Path
) -> None:
    shutil.copytree(log.root / "run", tmp_path / "run")
    torn = tmp_path / "run" / "checkpoints" / str(Position(0, STEPS - 1)) / name
    torn.write_bytes(torn.read_bytes()[:100] + bytes(torn.stat().st_size - 100))
    if name == "state.json":
        with pytest.warns(UserWarning, match="a checkpoint is passed over.*state.json"):
            assert [one.position.step for one in list_checkpoints(tmp_path / "run")] == [
                *range(STEPS - 1)
            ]
    with pytest.raises((DamagedCheckpoint, NoCheckpoint), match=name):
        load_checkpoint(tmp_path / "run", Position(0, STEPS - 1))
    assert set(read(tmp_path / "run")[0]) == {*range(STEPS - 1)}
