"""Which checkpoints are given up, what that costs, and that each is whole or gone whatever
happens.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.records import Position
from flor_plugins.store.checkpoints import (
    known_tensors,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from flor_plugins.store.codec import encode
from flor_plugins.store.gc import pin, thin
from flor_plugins.store.gc.checkpoint_sizes import CheckpointContent, CheckpointSizes
from flor_plugins.store.gc.disk_usage import evict, evict_optimizer, read_sizes
from flor_plugins.store.gc.eviction import EvictionCandidate, EvictionStep, choose, limits_of
from flor_plugins.store.gc.leftovers import size_of
from flor_plugins.store.gc.replay_cost import (
    CheckpointForm,
    QuestionCosts,
)
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import RunProgress, estimated_progress
from tests.retaining import (
    STEPS,
    at,
    begin_replay,
    check_all,
    ended,
    forms,
    make_run,
    save_all,
    sections,
    train,
)

FORMS: tuple[CheckpointForm, ...] = ("full", "weights", "gone")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


def progress_of(epochs: int, epoch_s: float = 1.0) -> RunProgress:
    return RunProgress({epoch: epoch * STEPS for epoch in range(epochs + 1)}, at(epochs), epoch_s)


def mean_of(epochs: int, kept: Iterable[int]) -> float:
    """The expected cost if only these epochs have a checkpoint."""
    there: dict[Position, CheckpointForm] = {at(epoch): "full" for epoch in kept}
    return QuestionCosts.of(progress_of(epochs), there).mean


def equal(epochs: int, weights: int = 1, optimizer: int = 2) -> EvictionCandidate:
    """A run with a full checkpoint of the same size at each epoch."""
    positions = [at(epoch) for epoch in range(epochs + 1)]
    sizes = CheckpointSizes(
        {one: CheckpointContent(weights, optimizer) for one in positions},
        dict.fromkeys(positions, "full"),
    )
    return EvictionCandidate("run", progress_of(epochs), [sizes], {positions[0], positions[-1]})


def log_spaced(epochs: int, count: int) -> list[set[int]]:
    """Every way to keep the first, the last, and `count - 2` more whose distances from the
    last grow by a factor.
    """
    found = []
    for percent in range(1, 400):
        kept, distance = {0, epochs}, 1.0
        while len(kept) < count and distance < epochs:
            kept.add(epochs - round(distance))
            distance *= 1 + percent / 100
        if len(kept) == count and kept not in found:
            found.append(kept)
    return found


# ---- what a question costs


def test_a_run_with_a_checkpoint_at_each_epoch_answers_everything_at_once() -> None:
    answers = equal(7).questions.answers()
    assert (answers.at_once, answers.mean_s, answers.worst_s) == (tuple(range(8)), 0.0, 0.0)


def test_costs_are_seconds_of_training_from_the_nearest_earlier_full_checkpoint() -> None:
    there: dict[Position, CheckpointForm] = {at(0): "full", at(2): "weights", at(4): "full"}
    found = QuestionCosts.of(progress_of(4, epoch_s=10.0), there).answers()
    # weights after 1 and 3: 10 s and 30 s; training from the beginning of 2, 3 and 4: 10 s, 20
    # s and 30 s
    assert found.at_once == (0, 2, 4)
    assert found.mean_s == pytest.approx((10 + 30) / 8 + (10 + 20 + 30) / 8)
    assert found.worst_s == 30.0


def test_checkpoints_inside_an_epoch_are_worth_something_before_its_end() -> None:
    inside = [Position(0, step) for step in range(0, 100, 10)]
    half = RunProgress({0: 0}, inside[-1])
    kept: dict[Position, CheckpointForm] = dict.fromkeys(inside, "full")
    less: dict[Position, CheckpointForm] = {**kept, inside[5]: "gone"}
    assert QuestionCosts.of(half, kept).mean < QuestionCosts.of(half, less).mean


def test_the_progress_of_a_run_is_estimated_from_its_checkpoints() -> None:
    found = estimated_progress(
        [Position(0, 0), Position(1, 13), Position(2, 20), Position(4, 45)], None
    )
    assert found.ends == {0: 0, 1: 10, 2: 20, 3: 30, 4: 40}
    assert not found.is_end(Position(1, 13)) and found.epochs_done(
        Position(1, 13)
    ) == pytest.approx(1.3)
    assert estimated_progress([], None).ends == {0: 0}


@st.composite
def runs(draw: st.DrawFn) -> tuple[RunProgress, dict[Position, CheckpointForm]]:
    epochs = draw(st.integers(0, 12))
    steps = st.integers(0, (epochs + 1) * STEPS - 1)
    chosen = draw(st.lists(st.tuples(steps, st.sampled_from(FORMS)), max_size=12))
    there: dict[Position, CheckpointForm] = {
        Position(step // STEPS, step): form for step, form in chosen
    }
    return progress_of(epochs, draw(st.sampled_from([1.0, 7.5]))), there


@given(runs(), st.data())
def test_the_increase_of_a_step_is_the_difference_of_the_costs(
    run: tuple[RunProgress, dict[Position, CheckpointForm]], data: st.DataObject
) -> None:
    progress, there = run
    there = {**there, Position(0, 0): "full"}
    weights = data.draw(
        st.none() | st.dictionaries(st.integers(1, 12), st.floats(0.1, 9.0), min_size=12)
    )
    questions = QuestionCosts.of(progress, there, weights)
    present = [one for one, form in there.items() if form != "gone" and one.step]
    if not present:
        return
    position = data.draw(st.sampled_from(present))
    now = there[position]
    then = data.draw(st.sampled_from(FORMS[FORMS.index(now) + 1 :]))
    before, increase = questions.mean, questions.increase(position, now, then)
    questions.take(position, now)
    questions.put(position, then)
    assert questions.mean - before == pytest.approx(increase, abs=1e-9)
    assert increase >= 0


# ---- which are given up


@pytest.mark.parametrize(("weights", "optimizer"), [(3, 0), (1, 2)])
def test_equal_checkpoints_are_thinned_at_least_as_well_as_log_spaced_or_the_newest(
    weights: int, optimizer: int
) -> None:
    for epochs in (*range(2, 25), 50):
        for count in range(2, epochs + 2):
            run = equal(epochs, weights, optimizer)
            choose([run], run.nbytes - 3 * count)
            assert run.nbytes <= 3 * count
            found = run.questions.mean
            others = [{0, *range(epochs - count + 2, epochs + 1)}, *log_spaced(epochs, count)]
            assert found <= min(mean_of(epochs, kept) for kept in others) + 1e-9


def test_thinning_again_and_again_beside_a_training_beats_the_newest_and_log_spaced() -> None:
    room = 10
    kept = [0]
    for epoch in range(1, 101):
        kept.append(epoch)
        positions = [at(one) for one in kept]
        sizes = CheckpointSizes(
            {one: CheckpointContent(1) for one in positions}, dict.fromkeys(positions, "full")
        )
        run = EvictionCandidate(
            "run", estimated_progress(positions, None), [sizes], {positions[0], positions[-1]}
        )
        choose([run], run.nbytes - room)
        kept = [one.epoch for one, form in run.forms.items() if form == "full"]
    assert len(kept) <= room
    others = [{0, *range(100 - room + 2, 101)}, *log_spaced(100, room)]
    assert mean_of(100, kept) <= min(mean_of(100, one) for one in others)


@st.composite
def shelves(draw: st.DrawFn) -> list[EvictionCandidate]:
    """Runs of checkpoints of all sizes that refer to earlier ones."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        epochs = draw(st.integers(1, 7))
        contents: dict[Position, CheckpointContent] = {}
        for epoch in range(epochs + 1):
            owners = [at(one) for one in range(epoch)]
            uses = draw(st.sets(st.sampled_from(owners), max_size=2)) if owners else set()
            weights = draw(st.integers(0, 50))
            contents[at(epoch)] = CheckpointContent(
                rest=weights + 5,
                optimizer=draw(st.integers(0, 100)),
                tensors={"model/a": weights, "optimizer/b": 3},
                of_optimizer=frozenset({"optimizer/b"}),
                frame=4,
                uses=frozenset((one, "model/a") for one in uses),
                optimizer_uses=frozenset(
                    (one, "optimizer/b") for one in uses if draw(st.booleans())
                ),
            )
        sizes = CheckpointSizes(contents, {one: draw(st.sampled_from(FORMS)) for one in contents})
        fixed = {at(0), at(epochs)}
        found.append(
            EvictionCandidate(
                f"run{number}", progress_of(epochs), [sizes], fixed, draw(st.booleans())
            )
        )
    return found


@given(shelves(), st.integers(0, 800))
def test_the_budget_is_met_or_nothing_more_can_be_given_up(
    runs: list[EvictionCandidate], budget: int
) -> None:
    before = {run.run_id: dict(run.forms) for run in runs}
    total = sum(run.nbytes for run in runs)
    steps = choose(runs, total - budget)
    left = sum(run.nbytes for run in runs)
    assert left <= max(budget, 0) or not any(
        run.freed(step) > 0 for run in runs for step in run.steps()
    )
    assert total > budget or not steps
    for run in runs:
        told = {step.position: step for step in steps if step.run_id == run.run_id}
        changed = {one for one, form in run.forms.items() if form != before[run.run_id][one]}
        assert changed == told.keys() and not changed & set(run.fixed)
        assert run.can_train or all(step.then == "weights" for step in told.values())
        for sizes in run.parts:  # what is there has all that it refers to
            for one, form in sizes.forms.items():
                used = sizes.contents[one].uses if form != "gone" else frozenset()
                assert all(key in sizes.kept(owner) for owner, key in used)


@given(shelves(), st.integers(0, 800), st.integers(0, 800))
def test_nothing_is_chosen_beyond_what_was_agreed_to(
    runs: list[EvictionCandidate], budget: int, later: int
) -> None:
    forms_before = [dict(run.forms) for run in runs]
    total = sum(run.nbytes for run in runs)
    steps = choose(runs, total - budget)
    for run, there in zip(runs, forms_before, strict=True):
        for position, form in there.items():
            run.put(position, form)
    agreed = limits_of(steps)
    fewer = choose(runs, total - max(budget, later), agreed)
    assert all(
        FORMS.index(step.then) <= FORMS.index(agreed[step.run_id, step.position]) for step in fewer
    )


def test_a_step_that_turned_out_not_to_be_needed_is_taken_back() -> None:
    sizes = {0: 1, 1: 10, 2: 1, 3: 500, 4: 1}
    sizes = CheckpointSizes(
        {at(one): CheckpointContent(size) for one, size in sizes.items()},
        {at(one): "full" for one in sizes},
    )
    run = EvictionCandidate("run", progress_of(4), [sizes], {at(0), at(4)})
    assert choose([run], 400) == [EvictionStep("run", at(3), "full", "gone")]


# ---- on disk


def test_a_checkpoint_without_its_optimizer_is_one_of_the_weights(store: Store) -> None:
    run = train(store, 2)
    before = size_of(run.path)
    evict_optimizer(run.path, at(1))
    assert check_all(run.path) == {0: "full", 1: "weights", 2: "full"}
    (one,) = [one for one in list_checkpoints(run.path) if one.position == at(1)]
    assert one.lost == ("optimizer: given up to free space",) and "optimizer" not in one.sections
    assert before - size_of(run.path) > 4 * 2 * 4000


def test_a_tensor_of_an_optimizer_that_another_checkpoint_needs_stays(store: Store) -> None:
    run = make_run(store)
    known: dict[Any, Any] = {}
    same = sections(1)["optimizer"]
    for epoch in (1, 2):
        save_checkpoint(run.path, at(epoch), encode({**sections(epoch), "optimizer": same}), known)
    sizes, _ = read_sizes(run.path)
    assert sizes.freed(at(1), "weights") == 0
    evict_optimizer(run.path, at(1), sizes.kept(at(1)))
    assert forms(run.path) == {1: "weights", 2: "full"}
    assert load_checkpoint(run.path, at(2))["optimizer"][0]["state"][0]["exp_avg"].sum() == (
        same[0]["state"][0]["exp_avg"].sum()
    )


def test_the_bytes_that_were_foreseen_are_freed(store: Store) -> None:
    run = train(store, 4)
    sizes, _ = read_sizes(run.path)
    assert sizes.nbytes == size_of(run.path / "checkpoints")
    foreseen = sizes.freed(at(2), "gone")
    evict(run.path, at(2))
    assert sizes.nbytes - size_of(run.path / "checkpoints") == foreseen > 0


def test_thinning_fits_the_budget_and_keeps_both_ends(store: Store) -> None:
    run = train(store, 8)
    whole = size_of(run.path / "checkpoints")
    for part in (0.9, 0.6, 0.4):
        given = thin(run.path, int(whole * part))
        assert given and size_of(run.path / "checkpoints") <= whole * part
        found = check_all(run.path)
        assert found[0] == found[8] == "full"
    assert thin(run.path, whole) == []


def test_thinning_to_nothing_leaves_the_first_and_the_last(store: Store) -> None:
    run = train(store, 6)
    thin(run.path, 0)
    assert check_all(run.path) == {0: "full", 6: "full"}


def test_thinning_holds_what_is_pinned_or_a_replay_needs(store: Store) -> None:
    run = train(store, 6)
    folder = begin_replay(store, run, [3], ended())
    thin(run.path, 0)
    assert check_all(run.path) == {0: "full", 3: "full", 6: "full"}
    pin(run)
    (folder / "verdicts.json").write_text("{}")
    assert thin(run.path, 0) == []


def test_the_writer_goes_on_after_thinning_without_a_reference_to_what_is_gone(
    store: Store,
) -> None:
    run = make_run(store, status="running")
    known: dict[Any, Any] = {}
    for epoch in range(12):
        save_all(run.path, [epoch], known=known)
        thin(run.path, 500_000, known)
        there = known_tensors(run.path)
        assert {identity: place for identity, place in known.items() if identity in there} == there
    found = check_all(run.path)
    assert found[0] == found[11] == "full" and len(found) < 12


def test_the_parts_of_other_processes_follow_the_first(store: Store) -> None:
    run = train(store, 5, processes=2)
    part = run.path / "ranks" / "1"
    save_all(part, range(5))  # it has not come so far yet
    thin(run.path, 0)
    thin(part, 0)
    assert forms(part) == {0: "full"}
    assert forms(run.path) == {0: "full", 5: "full"}


def test_thinning_loads_nothing_heavy(store: Store) -> None:
    run = train(store, 3)
    code = (
        "import sys, pathlib\n"
        "from flor_plugins.store.gc import thin\n"
        f"assert thin(pathlib.Path({str(run.path)!r}), 0)\n"
        "print(*[m for m in ('torch', 'pandas', 'pyarrow', 'duckdb', 'typer', 'rich') if m in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


# ---- killed in the middle

KILLED = """
import os, pathlib, signal, sys
moment, count = sys.argv[2], int(sys.argv[3])
def deadly(module, name):
    real = getattr(module, name)
    def act(*args, **more):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(module, name, act)
deadly(os, moment)
from flor_plugins.store.gc import thin
thin(pathlib.Path(sys.argv[1]), 0)
print("not killed")
"""


@pytest.mark.parametrize("moment", ["rename", "replace", "unlink", "fsync", "rmdir"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_kill_leaves_every_listed_checkpoint_whole_and_the_next_thinning_ends(
    store: Store, moment: str, count: int
) -> None:
    run = train(store, 6)
    evict_optimizer(run.path, at(4))
    command = [sys.executable, "-c", KILLED, str(run.path), moment, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL or "not killed" in done.stdout, done.stderr
    found = check_all(run.path)
    assert found[0] == found[6] == "full"
    thin(run.path, 0)
    assert check_all(run.path) == {0: "full", 6: "full"}
