"""The thread that writes rows: many at once, and no State waits for more of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.recorder import background_writer
from flor_plugins.records import Position
from flor_plugins.store.checkpoints import folder_of
from tests.posting import wait_until
from tests.test_recording_faults import Toy, toy

__all__ = ["toy"]  # a fixture


@pytest.fixture
def endless_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits for the pause never comes."""
    with monkeypatch.context() as patch:
        patch.setattr(background_writer, "PAUSE", 3600.0)
        yield


def made() -> background_writer.BackgroundWriter:
    def failed(error: Exception) -> None:
        raise AssertionError("no job fails here") from error

    return background_writer.BackgroundWriter(failed)


def test_what_is_wanted_soon_and_all_before_it_is_done_without_a_pause(endless_pause: None) -> None:
    one, done, is_done = made(), list[int](), threading.Event()
    for number in range(3):
        one.put(lambda number=number: done.append(number))
    one.put(is_done.set, soon=True)
    assert is_done.wait(60) and done == [0, 1, 2]
    one.close()


def test_a_state_is_written_while_the_rows_before_it_still_wait_for_others(
    endless_pause: None, toy: Toy, tmp_path: Path
) -> None:
    """Else a training that is killed soon after it has no checkpoint to go on from."""

    def look(batch: int) -> None:
        if batch == 3:  # the window of the first State ended with the first update
            (run,) = flor.runs(store=tmp_path)
            first = folder_of(run.path, Position(0, 0))
            wait_until(lambda: (first / "state.json").exists(), "the first State waits for rows")

    toy.train(toy.callback(store=tmp_path), look)
    (run,) = flor.runs(store=tmp_path)
    assert run.status == "finished" and not run.gaps
