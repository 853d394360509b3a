"""Workers of one machine are spread over its devices."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.replayer.execution.gpu_assignment import VARIABLE, GpuAssignment, visible


def driver(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / f"0000:{number:02x}:00.0").mkdir()
    return folder


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("0", "1", "2")),
        ({VARIABLE: "2, 0"}, ("2", "0")),
        ({VARIABLE: "GPU-8f3a,GPU-91bc"}, ("GPU-8f3a", "GPU-91bc")),
        ({VARIABLE: ""}, ()),
        ({VARIABLE: "1,-1,2"}, ("1",)),
    ],
)
def test_the_devices_are_those_that_this_process_may_use(
    environment: dict[str, str], expected: tuple[str, ...], tmp_path: Path
) -> None:
    assert visible(environment, driver(tmp_path, 3)) == expected


def test_a_machine_without_devices_has_none(tmp_path: Path) -> None:
    assert visible({}, tmp_path / "nothing") == ()


def test_workers_at_a_time_see_one_device_each_and_a_crew_as_many_as_it_has_processes() -> None:
    devices = GpuAssignment(("0", "1", "2"))
    with devices.taken(1) as first, devices.taken(2) as crew:
        assert first == {VARIABLE: "0"} and crew == {VARIABLE: "1,2"}
    with devices.taken(1) as first:
        assert first == {VARIABLE: "0"}, "given back"


@pytest.mark.parametrize("names", [(), ("0",)])
def test_where_there_is_no_choice_the_recorded_environment_stands(names: tuple[str, ...]) -> None:
    with GpuAssignment(names).taken(1) as seen:
        assert seen == {}


@given(st.integers(2, 8), st.lists(st.integers(1, 4), max_size=20))
def test_no_device_has_two_workers_more_than_another(count: int, asked: list[int]) -> None:
    devices = GpuAssignment([str(number) for number in range(count)])
    taken = {str(number): 0 for number in range(count)}
    with ExitStack() as held:
        for processes in asked:
            mine = held.enter_context(devices.taken(processes))[VARIABLE].split(",")
            assert len(set(mine)) == len(mine) == min(processes, count)
            for name in mine:
                taken[name] += 1
            assert max(taken.values()) - min(taken.values()) <= 1
