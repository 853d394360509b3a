"""Causes of a divergence: pure data in, ranked lines out."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flor_plugins.recorder.launch_environment import environment
from flor_plugins.records import (
    Code,
    Launch,
    Obstacle,
    Position,
    RecordingProcess,
    ReplayGrade,
    Run,
)
from flor_plugins.replayer.verification.causes import (
    BatchFingerprints,
    Evidence,
    SecondReplay,
    causes,
    relative_difference,
)
from flor_plugins.replayer.verification.environment_diff import differences, variable_changes

THEN: dict[str, Any] = {
    "python": "3.11.7",
    "platform": "Linux-6.1",
    "cpu": "AMD EPYC",
    "every_package": True,
    "packages": {"torch": "2.6.0", "numpy": "2.1.0", "toy": "1.0"},
    "devices": ["NVIDIA A100"],
    "determinism": {"num_threads": 1, "deterministic_algorithms": False, "cudnn_benchmark": False},
}
FIRST = Position(0, 7)
SAME = (BatchFingerprints(Position(0, 6), 11, 11), BatchFingerprints(FIRST, 12, 12))
AGREE = SecondReplay(agrees=True)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)
odd = st.dictionaries(st.sampled_from([*THEN, "later"]), json_values) | json_values


def now(**parts: Any) -> dict[str, Any]:
    """THEN with some values of its parts replaced."""
    changed = copy.deepcopy(THEN)
    for name, value in parts.items():
        changed[name] = {**changed[name], **value} if isinstance(value, dict) else value
    return changed


def recorded(
    environment: Any = THEN,
    left_out: tuple[str, ...] = (),
    env: Any = None,
    obstacles: tuple[Obstacle, ...] = (),
) -> Run:
    env = {"PYTHONHASHSEED": "0"} if env is None else env
    return Run(
        "id",
        "run",
        "project",
        "hf",
        "finished",
        "2026-01-01T00:00:00Z",
        Launch("script", "train.py", env=env),
        Code("0" * 40, "repo", "root", left_out),
        RecordingProcess("host", 1, "1"),
        Path("run"),
        environment=environment,
        obstacles=obstacles,
    )


def found(run: Run | None = None, **evidence: Any) -> list[str]:
    evidence = {
        "environment": THEN,
        "variables": {"PYTHONHASHSEED": "0"},
        "batches": SAME,
        **evidence,
    }
    return causes(run or recorded(), Evidence(FIRST, **evidence))


# ---- differences


@given(json_values)
def test_nothing_differs_from_itself_whatever_was_recorded(value: Any) -> None:
    assert (
        differences({"anything": value, **THEN}, copy.deepcopy({"anything": value, **THEN})) == []
    )
    assert differences(value, copy.deepcopy(value)) == []


@given(odd, odd)
def test_odd_recordings_never_raise_and_make_single_lines(then: Any, present: Any) -> None:
    evidence = Evidence(
        FIRST,
        batches=(BatchFingerprints(FIRST, then, present),),
        environment=present,
        variables=present,
        on_gpu=True,
    )
    lines = differences(then, present) + causes(recorded(then, env=then), evidence)
    assert all(len(line.splitlines()) == 1 for line in lines)


@given(
    st.sampled_from(
        [("python",), ("cpu",), ("packages", "toy"), ("determinism", "num_threads"), ("devices",)]
    ),
    st.text("abc", max_size=3) | st.integers() | st.lists(st.text("abc", max_size=3), max_size=2),
)
def test_every_changed_value_is_one_line_that_names_it(path: tuple[str, ...], value: Any) -> None:
    changed = copy.deepcopy(THEN)
    part = changed[path[0]] if len(path) == 2 else changed
    assume(path != ("devices",) or isinstance(value, list))
    part[path[-1]] = value
    assume(changed != THEN)
    (line,) = differences(THEN, changed)
    assert path[-1].removesuffix("s") in line and " recorded, " in line and line.endswith(" now")
    assert len(differences(changed, THEN)) == 1


PACKAGES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2"]), min_size=1)


@given(PACKAGES, PACKAGES)
def test_packages_differ_where_versions_do_and_where_one_side_has_none(
    was: dict[str, str], present: dict[str, str]
) -> None:
    expected = sum(was.get(name) != present.get(name) for name in was.keys() | present.keys())
    then, later = (
        {"every_package": True, "packages": was},
        {"every_package": True, "packages": present},
    )
    assert len(differences(then, later)) == expected
    # Earlier recordings name some packages only: the others are unknown, not absent.
    common = sum(was[name] != present[name] for name in was.keys() & present.keys())
    assert len(differences({"packages": was}, later)) == common


def test_lines_say_both_values_and_those_that_matter_come_first() -> None:
    packages = {"torch": "2.7.0", "toy": "2.0", "aaa": "1"}
    changed = now(packages=packages, determinism={"num_threads": 2}, devices=[], python="3.12.0")
    assert differences(THEN, changed) == [
        "device: NVIDIA A100 recorded, none now",
        "num_threads: 1 recorded, 2 now",
        "package torch: 2.6.0 recorded, 2.7.0 now",
        "package aaa: not installed recorded, 1 now",
        "package toy: 1.0 recorded, 2.0 now",
        "python: 3.11.7 recorded, 3.12.0 now",
    ]


def test_a_gpu_without_a_name_yet_is_not_another_gpu() -> None:
    assert differences(THEN, now(devices=["cuda:0"])) == []
    assert differences(now(devices=["cuda:0"]), THEN) == []
    assert differences(THEN, now(devices=["cuda:0", "cuda:1"])) != []


def test_this_process_does_not_differ_from_itself() -> None:
    assert differences(environment(), environment()) == []


def test_variables_that_only_say_where_a_process_runs_do_not_count() -> None:
    then = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "a",
        "MASTER_PORT": "1",
        "HF_HOME": "a",
        "HF_DATASETS_CACHE": "a",
    }
    present = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "b",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert variable_changes(then, present) == []
    changes = variable_changes(then, {**present, "OMP_NUM_THREADS": "2", "MKL_CBWR": "AVX2"})
    assert [str(one) for one in changes] == [
        "variable MKL_CBWR: not set recorded, AVX2 now",
        "variable OMP_NUM_THREADS: 1 recorded, 2 now",
    ]


# ---- the four planted causes


@pytest.mark.parametrize("second", [None, AGREE])
@pytest.mark.parametrize("relative", [None, 3e-2, 1e-6])
def test_a_changed_data_file_is_named_with_its_step(
    second: SecondReplay | None, relative: float | None
) -> None:
    batches = (
        BatchFingerprints(FIRST, 12, 99),
        BatchFingerprints(Position(0, 5), 11, 77),
        BatchFingerprints(Position(0, 1), 10, 10),
    )
    run = recorded(left_out=("data/train.csv (ignored by git)",))
    lines = found(run, batches=batches, relative=relative, second=second)
    assert lines[0].startswith("the data differ: batch of step 5: 11 recorded, 77 now")
    assert "data/train.csv" in lines[0] and len(lines) == 1


@pytest.mark.parametrize("relative", [None, 3e-2, 1e-6])
def test_a_changed_package_is_named(relative: float | None) -> None:
    lines = found(environment=now(packages={"toy": "2.0"}), relative=relative, second=AGREE)
    assert lines == ["package toy: 1.0 recorded, 2.0 now"]


@pytest.mark.parametrize("relative", [None, 3e-2, 1e-6])
def test_an_unseeded_draw_in_the_model_is_named(relative: float | None) -> None:
    lines = found(relative=relative, second=SecondReplay(False, FIRST, same_data=True))
    assert len(lines) == 1 and lines[0].startswith(
        "two replays differ from each other at step 7: an unseeded draw"
    )


@pytest.mark.parametrize("second", [None, AGREE])
def test_another_thread_count_is_named(second: SecondReplay | None) -> None:
    run = recorded(env={"OMP_NUM_THREADS": "1"})
    changed = now(determinism={"num_threads": 2, "num_interop_threads": 2}, platform="Linux-6.5")
    lines = found(
        run, environment=changed, variables={"OMP_NUM_THREADS": "2"}, relative=2.4e-7, second=second
    )
    assert lines[0].startswith("num_threads: 1 recorded, 2 now (the values differ by 2.4e-07")
    assert lines[1] == "variable OMP_NUM_THREADS: 1 recorded, 2 now"


# ---- ranking, if there are several


def test_small_differences_point_to_numerics_and_large_ones_to_packages() -> None:
    changed = now(packages={"toy": "2.0"}, determinism={"num_threads": 2})
    assert found(environment=changed, relative=1e-7)[0].startswith("num_threads")
    assert found(environment=changed, relative=1e-2)[0].startswith("package toy")


def test_what_the_replay_has_shown_stands_above_what_differs_around_it() -> None:
    changed = now(
        packages={"torch": "2.7"}, determinism={"num_threads": 2}, devices=["NVIDIA H100"]
    )
    around = {"environment": changed, "on_gpu": True}
    assert found(**around, batches=(BatchFingerprints(FIRST, 1, 2),))[0].startswith(
        "the data differ"
    )
    assert found(**around, second=SecondReplay(False, FIRST))[0].startswith("two replays differ")


def test_replays_that_disagree_later_do_not_explain_the_first_difference() -> None:
    lines = found(
        environment=now(packages={"toy": "2.0"}), second=SecondReplay(False, Position(1, 9))
    )
    assert lines[0].startswith("package toy") and "only after" in lines[1]


def test_data_that_differ_later_are_a_consequence() -> None:
    lines = found(
        environment=now(packages={"toy": "2.0"}),
        batches=(*SAME, BatchFingerprints(Position(0, 8), 1, 2)),
    )
    assert lines[0].startswith("package toy") and "only after the values do" in lines[1]


@pytest.mark.parametrize(("same_data", "on_gpu", "expected"), [
    (False, True, "two replays differ from each other at step 7, in their data already"),
    (True, False, "the data differ"),
    (None, False, "two replays differ"),
    (None, True, "the data differ"),  # what disagrees are the kernels, perhaps
])  # fmt: skip
def test_data_and_replays_that_differ_are_told_apart(
    same_data: bool | None, on_gpu: bool, expected: str
) -> None:
    second = SecondReplay(False, FIRST, same_data)
    assert found(batches=(BatchFingerprints(FIRST, 1, 2),), second=second, on_gpu=on_gpu)[
        0
    ].startswith(expected)


def test_a_gpu_without_deterministic_algorithms_is_a_cause_of_small_differences() -> None:
    assert found(on_gpu=True, relative=1e-7)[0].startswith(
        "trained on a GPU without deterministic algorithms"
    )
    flags = {"deterministic_algorithms": True}
    assert not any("GPU" in line for line in found(relative=1e-7))
    exact = found(
        recorded(now(determinism=flags)),
        environment=now(determinism=flags),
        on_gpu=True,
        relative=1e-7,
    )
    assert not any("kernels" in line for line in exact)
    draw = found(on_gpu=True, relative=1e-7, second=SecondReplay(False, FIRST))[0]
    assert draw.index("kernel") < draw.index("unseeded draw")


@pytest.mark.parametrize(("grade", "relative"), [("partial", 1e-2), ("close", 1e-7)])
def test_obstacles_noted_at_record_time_are_named_with_their_remedy(
    grade: ReplayGrade, relative: float
) -> None:
    obstacle = Obstacle(grade, "the loader of train.py:3 is a generator", "give it a length")
    run = recorded(obstacles=(obstacle,))
    (line,) = found(run, relative=relative)
    assert line == (
        "known since the recording: the loader of train.py:3 is a generator (remedy: give "
        "it a length)"
    )


def test_gpus_do_not_matter_to_a_training_on_the_cpu() -> None:
    changed = now(devices=["NVIDIA H100"], determinism={"cudnn_benchmark": True, "num_threads": 3})
    lines = found(environment=changed, relative=1e-7)
    assert [line.partition(":")[0] for line in lines] == [
        "num_threads",
        "device",
        "cudnn_benchmark",
    ]


def test_many_packages_share_a_line_after_the_first_five() -> None:
    changed = now(packages={"torch": "2.7", **{f"p{number}": "1" for number in range(7)}})
    lines = found(environment=changed)
    assert lines[0].startswith("package torch") and len(lines) == 6
    assert (
        lines[-1]
        == "3 more packages: p4 not installed -> 1, p5 not installed -> 1, p6 not installed -> 1"
    )


# ---- when nothing is found


def test_no_cause_says_what_is_equal_and_what_to_try() -> None:
    (line,) = found(relative=1e-2)
    assert line.startswith(
        "no difference was found between then and now: packages, switches of torch, devices"
    )
    assert "the data of 2 batches are equal" in line and "verify the run again" in line
    run = recorded(left_out=("a.csv (large)", "b", "c", "d", "e"), env={})
    agreed, files = found(run, second=AGREE, variables={})
    assert "two replays agree" in agreed and "PYTHONHASHSEED was not set" in agreed
    assert files.endswith("which may have changed: a.csv (large), b, c and 2 more")
    assert (
        "nothing could be compared; the data were not compared"
        in found(recorded({}), batches=())[0]
    )


def test_a_weak_cause_is_called_weak() -> None:
    lines = found(environment=now(platform="Linux-6.5"), second=AGREE)
    assert lines[0].startswith("platform") and lines[1].startswith(
        "none of these is a likely cause"
    )


# ---- how large a difference is


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
@settings(max_examples=50)
def test_relative_difference_is_symmetric_and_zero_only_for_equals(
    one: float, other: float
) -> None:
    size = relative_difference(one, other)
    assert size is not None and size >= 0.0
    assert size == relative_difference(other, one)
    assert (size == 0.0) == (one == other)


@pytest.mark.parametrize(("was", "present", "expected"), [
    (1.0, 1.0 + 1e-6, 1e-6), ([1, [2.0, 4.0]], [1, [2.0, 5.0]], 0.2), (0, 0, 0.0), ([], [], 0.0),
    (math.inf, 1.0, math.inf), (10**400, 1.5, math.inf), ("a", 1, None),
    ([1], [1, 2], None), ([1, None], [1, 2], None),
])  # fmt: skip
def test_relative_difference_of_values(was: Any, present: Any, expected: float | None) -> None:
    assert relative_difference(was, present) == (
        None if expected is None else pytest.approx(expected, rel=1e-3)
    )
