"""A replay asks for its States in the order in which they are read ahead, and leaves nothing
behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from codec_cases import same
from torch import nn

from flor_plugins.adapter import callback_class, replay_driver_of
from flor_plugins.records import Position, Run
from flor_plugins.replayer.worker_session.session import WorkerSession
from flor_plugins.store import ranks
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests import cells_hf, cells_lightning, variants
from tests.test_prefetch import readers, slow

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainings' own

CELLS: dict[str, Callable[..., Any]] = {
    "lightning": lambda *args: cells_lightning.train("dropout_shuffle", *args, seed=5)[1:],
    "hf": lambda *args: cells_hf.train("plain", *args),
}


@pytest.fixture(scope="module", params=list(CELLS))
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run]:
    folder = tmp_path_factory.mktemp(request.param)
    callback = callback_class(request.param)(store=folder / "store")
    _, train = CELLS[request.param](folder / "out", callback)
    train()
    return request.param, list_runs(Store(folder / "store"))[0]


def driven(
    framework: str, run: Run, ways: dict[str, tuple[int, ...]], folder: Path
) -> list[dict[str, Any]]:
    session, events = variants.session_of(run, ways)
    callback = callback_class(framework)()
    replay_driver_of(framework).drive(*CELLS[framework](folder, callback), session)
    session.finish()
    return events


def test_all_but_the_first_state_of_a_replay_are_read_ahead(
    recorded: tuple[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Position] = []
    load = ranks.load_checkpoint

    def waiting(path: Path, rank: int, position: Position, only: Any = None) -> Any:
        waited.append(position)
        return load(path, rank, position, only)

    monkeypatch.setattr(ranks, "load_checkpoint", waiting)
    monkeypatch.chdir(tmp_path)
    framework, run = recorded
    events = driven(
        framework, run, {"state": (1, 2, 3), "validate": (1, 3), "train": (1, 3)}, tmp_path
    )
    passed = {one["way"]: one["grade"] for one in events if one["event"] == "passed"}
    assert passed.pop("validate") in ("exact", "unverified")
    assert passed == {"state": "exact", "train": "exact"}
    # Lightning's own restore functions see the first stretch's State when the fit is set up.
    assert len(waited) == {"lightning": 2, "hf": 1}[framework]


def test_what_a_module_keeps_of_the_states_it_loads_stays(
    recorded: tuple[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework, run = recorded
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    load = nn.Module.load_state_dict

    def keeping(self: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append((dict(state), {name: one.clone() for name, one in state.items()}))
        return load(self, state, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "load_state_dict", keeping)
    monkeypatch.chdir(tmp_path)
    driven(framework, run, {"validate": (1, 2, 3), "train": (2, 3)}, tmp_path)
    assert len(kept) >= (5 if framework == "lightning" else 0)
    assert all(same(*one) for one in kept)


def test_a_pass_that_raises_leaves_no_thread(
    recorded: tuple[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framework, run = recorded
    done = slow(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def failing(*args: Any) -> None:
        assert readers()
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerSession, "compare_weights", failing)
    with pytest.raises(ZeroDivisionError):
        driven(framework, run, {"state": (1, 2, 3)}, tmp_path)
    assert not readers() and len(done) == 1
