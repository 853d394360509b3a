from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.errors import StoreError, UnknownRun
from flor_plugins.records import (
    Code,
    Launch,
    Position,
    RecordingProcess,
    Run,
    SkippedCheckpoint,
    Timing,
)
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import find_run, is_gone, list_runs, load_run, save_run, this_process

FIRST, SECOND, THIRD = (
    "20261123-200501-123-9f3a2c",
    "20261123-200502-123-aaaaaa",
    "20261124-000000-000-000000",
)


def make(store: Store, run_id: str, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "run_id": run_id,
        "name": "bert",
        "project": "p",
        "framework": "hf",
        "status": "finished",
        "started_at": "2026-11-23T20:05:01Z",
        "launch": Launch("script", "train.py", ("--lr", "1"), env={"A": "b"}),
        "code": Code("a" * 40, "/r/.git", "/r", ("big.bin (11 MB)",)),
        "process": RecordingProcess("elsewhere", 1, "2"),
        "path": store.run(run_id),
    }
    run = Run(**{**fields, **changes})
    save_run(run)
    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


def test_a_run_comes_back_as_it_was_saved(store: Store) -> None:
    full = make(
        store,
        FIRST,
        tags=("a", "b"),
        finished_at="2026-11-23T21:00:00Z",
        error="boom",
        position=Position(3, 120),
        environment={"torch": "2.6", "cuda": None},
        params={"lr": 1e-3, "layers": [1, 2], "model.name": "x"},
        timing=Timing(1.0, None, 0.5, 0.25),
        gaps=("disk was full",),
        skipped=(
            SkippedCheckpoint(Position(2, 80), "the writer was busy", 1.5),
            SkippedCheckpoint(Position(3, 120), "too dear"),
        ),
        skipped_count=7,
    )
    bare = make(store, SECOND, code=None)
    assert load_run(store.run(FIRST)) == full
    assert load_run(store.run(SECOND)) == bare
    assert json.loads((store.run(FIRST) / "run.json").read_text())["format"] == 1


def test_a_run_of_an_earlier_version_says_nothing_of_what_was_skipped(store: Store) -> None:
    run = make(store, FIRST, timing=Timing(1.0, 2.0, 0.5))
    content = json.loads((run.path / "run.json").read_text())
    del content["skipped"], content["skipped_count"], content["timing"]["recording_s"]
    (run.path / "run.json").write_text(json.dumps(content))
    assert load_run(run.path) == run
    assert (run.skipped, run.skipped_count, run.timing.recording_s) == ((), 0, None)


params = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("$"), inner),
    max_leaves=9,
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(), params))
def test_all_params_that_json_can_say_survive(
    tmp_path_factory: pytest.TempPathFactory, found: dict[str, Any]
) -> None:
    store = Store(tmp_path_factory.mktemp("s"))
    make(store, FIRST, params=found)
    assert load_run(store.run(FIRST)).params == found


def test_other_params_become_text_instead_of_ending_the_training(store: Store) -> None:
    import numpy

    make(
        store,
        FIRST,
        params={
            "path": Path("a/b"),
            "inf": float("inf"),
            "np": numpy.float32(0.5),
            "f": len,
            "s": {1},
        },
    )
    found = load_run(store.run(FIRST)).params
    assert found == {"path": "a/b", "inf": float("inf"), "np": 0.5, "f": str(len), "s": [1]}


def test_runs_are_listed_by_time(store: Store) -> None:
    for run_id in (THIRD, FIRST, SECOND):
        make(store, run_id)
    assert [run.run_id for run in list_runs(store)] == [FIRST, SECOND, THIRD]
    assert list_runs(Store(store.root / "none")) == []


@pytest.mark.parametrize(
    "text", ["", '{"format": 1, "run_i', "[]", '{"format": 1}', '{"format": 99}', "\x00"]
)
def test_damaged_runs_are_left_out_with_one_warning(store: Store, text: str) -> None:
    make(store, FIRST)
    for run_id in (SECOND, THIRD):
        store.run(run_id).mkdir()
        (store.run(run_id) / "run.json").write_text(text)
    with pytest.warns(UserWarning, match=r"2 run\(s\) are left out") as caught:
        assert [run.run_id for run in list_runs(store)] == [FIRST]
    assert len(caught) == 1 and SECOND in str(caught[0].message)
    with pytest.raises(StoreError, match=SECOND):
        load_run(store.run(SECOND))


def test_a_run_is_found_by_id_beginning_or_newest_name(store: Store) -> None:
    first, second, third = make(store, FIRST), make(store, SECOND), make(store, THIRD, name="gpt")
    assert find_run(store, FIRST) == first
    assert find_run(store, "20261124") == third
    assert find_run(store, "bert") == second
    assert find_run(store, "gpt") == third


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bret", "Did you mean bert"),
        ("20261123", "2 runs.*begin with.*" + FIRST),
        ("202", "no run answers"),
        ("", "no run answers"),
        ("../runs/" + FIRST, "no run answers"),
        ("/", "no run answers"),
        ("*", "no run answers"),
    ],
)
def test_an_unclear_name_lists_what_exists(store: Store, text: str, message: str) -> None:
    make(store, FIRST)
    make(store, SECOND)
    with pytest.raises(UnknownRun, match=message) as caught:
        find_run(store, text)
    assert FIRST in str(caught.value)


def test_an_empty_store_says_so(store: Store) -> None:
    with pytest.raises(UnknownRun, match="no runs"):
        find_run(store, "bert")


CHILD = """
import sys, time
from flor_plugins.store.runs import load_run, save_run, this_process
from pathlib import Path
import dataclasses
save_run(dataclasses.replace(load_run(Path(sys.argv[1])), status="running", process=this_process()))
print("saved", flush=True)
time.sleep(600)
"""


def test_a_run_is_killed_once_its_process_was_killed(store: Store) -> None:
    run = make(store, FIRST)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"saved\n"
        assert load_run(run.path).status == "running"
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is a zombie
        assert load_run(run.path).status == "killed"
    finally:
        child.kill()
        child.communicate()
    assert list_runs(store)[0].status == "killed"
    # a read never writes
    assert json.loads((run.path / "run.json").read_text())["status"] == "running"


def test_a_pid_that_was_given_again_is_another_process(store: Store) -> None:
    here = this_process()
    assert not is_gone(here)
    if not here.started:
        pytest.skip("this system does not say when a process started")
    assert is_gone(dataclasses.replace(here, started="1"))
    make(store, FIRST, status="running", process=dataclasses.replace(here, started="1"))
    assert load_run(store.run(FIRST)).status == "killed"


def test_a_run_of_another_host_is_believed(store: Store) -> None:
    run = make(
        store, FIRST, status="running", process=RecordingProcess("elsewhere", 999_999_999, "1")
    )
    assert load_run(run.path).status == "running"


def test_reading_runs_imports_no_library() -> None:
    code = (
        "import sys, flor_plugins.store.runs, flor_plugins.store.metrics.journal\n"
        "assert not {'torch', 'numpy', 'pandas', 'pyarrow', 'duckdb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
