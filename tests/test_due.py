"""A value is known by run, position, metric and the source of its hook: what counts as there
already.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import ReplayError
from flor_plugins.hooks.hook_files import load, scan
from flor_plugins.hooks.source_digest import digest_of, digests, joined
from flor_plugins.records import Grade, Position, ReplayRequest, Row, Run
from flor_plugins.replayer.planning import planner
from flor_plugins.replayer.planning.epoch_selection import epochs_of, sample, spread
from flor_plugins.replayer.planning.recorded_values import of_today
from flor_plugins.store.layout import Store
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.row_source import source_of
from flor_plugins.store.query.dataframe import dataframe
from tests.test_plan import ask, boundary, record, ways

SOURCE = '''
"""Hooks."""
from __future__ import annotations
import math
import os
from statistics import fmean
import flor_plugins as flor

SCALE, SHIFT = 2, 3
TABLE = {}

def inner(x):
    return fmean([x]) * SCALE

def outer(x):
    return inner(x)

@flor.metric
def first(ctx):
    return outer(1)

@flor.metric(at="epoch")
def second(ctx):
    return math.pi + SHIFT
'''


def changed(old: str, new: str, source: str = SOURCE) -> set[str]:
    """The functions whose digest an edit changes."""
    assert old in source
    before, after = digests(source.encode()), digests(source.replace(old, new).encode())
    return {name for name in before if before[name] != after.get(name)}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("outer(1)", "outer(2)", {"first"}),
        ("@flor.metric\n", "@flor.metric(reduce='sum')\n", {"first"}),
        ("fmean([x])", "fmean([x, x])", {"inner", "outer", "first"}),
        (
            "from statistics import fmean",
            "from numpy import mean as fmean",
            {"inner", "outer", "first"},
        ),
        ("math.pi", "math.e", {"second"}),
        ("import os\n", "", set()),
        ('"""Hooks."""', '"""All hooks."""', set()),
        ("TABLE = {}", "TABLE = []", set()),
        ("SCALE, SHIFT = 2, 3", "SCALE, SHIFT = 2, 4", {"inner", "outer", "first", "second"}),
        ("TABLE = {}", "TABLE = {}\nTABLE['a'] = 1", {"inner", "outer", "first", "second"}),
        ("TABLE = {}", "TABLE = {}\nif os.name: SCALE = 9", {"inner", "outer", "first", "second"}),
        ("TABLE = {}", "TABLE = {}\nfrom os.path import *", {"inner", "outer", "first", "second"}),
    ],
)
def test_an_edit_changes_the_hooks_that_use_what_it_touches(
    old: str, new: str, expected: set[str]
) -> None:
    assert changed(old, new) == expected


@pytest.mark.parametrize("dynamic", ["globals()['SCALE']", "eval('SCALE')", "vars()"])
def test_a_hook_that_looks_names_up_by_text_goes_by_the_whole_file(dynamic: str) -> None:
    source = SOURCE.replace("math.pi", dynamic).encode()
    assert digests(source)["second"] == digest_of(source)
    assert digests(source)["first"] != digest_of(source)


def test_lines_that_move_and_line_ends_are_not_an_edit() -> None:
    assert digests(SOURCE.encode()) == digests(
        ("\n\n# moved\n" + SOURCE).replace("\n", "\r\n").encode()
    )


def test_scanned_and_loaded_hooks_go_by_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "hooks.py"
    path.write_text(SOURCE + "\ndef compute_metrics(prediction): ...\n")
    found, loaded = {one.name: one for one in scan(path)}, load(path)
    assert {name: one.digest for name, one in found.items() if one.kind == "metric"} == {
        one.name: loaded.digest_of(one.name) for one in loaded.metrics
    }
    assert found["compute_metrics"].digest == loaded.digest == found["first"].file_digest


def compute(
    run: Run, number: int, hook: str | None, epochs: tuple[int, ...], grade: Grade = "exact"
) -> None:
    """A replay that gave `accuracy`, its number as the value."""
    journal = Journal(
        run.path / "metrics" / f"replay-2026112{number}-000000-000-000000-w0.jsonl",
        run.path / "media",
    )
    for epoch in epochs:
        values = {"accuracy": float(number)}
        journal.append(Row(boundary(epoch), "validation", "epoch", values, 0.0, grade, hook))
    journal.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".flor").make()


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    path = tmp_path / "hooks.py"
    path.write_text("import flor_plugins as flor\n\n@flor.metric\ndef accuracy(ctx): ...\n")
    return path


def test_a_value_of_another_hook_is_computed_anew_and_the_newest_is_shown(
    store: Store, hooks: Path
) -> None:
    run = record(store)
    compute(run, 1, "0" * 64, (1, 2, 3))
    assert ways(ask([run], hooks, "accuracy")) == {"state": (1, 2, 3)}
    compute(run, 2, scan(hooks)[0].digest, (1, 3))
    assert ways(ask([run], hooks, "accuracy")) == {"state": (2,)}
    assert dataframe(store, "accuracy")["accuracy"].tolist() == [2.0, 1.0, 2.0]
    assert len(list((run.path / "metrics").glob("replay-*"))) == 2, "the old ones are kept"


@pytest.mark.parametrize("grade", ["exact", "diverged", "unverified"])
def test_a_value_of_the_same_hook_is_there_whatever_its_verdict(
    store: Store, hooks: Path, grade: Grade
) -> None:
    run = record(store)
    compute(run, 1, scan(hooks)[0].digest, (1, 2, 3), grade)
    assert ask([run], hooks, "accuracy").tasks == ()


def test_a_value_that_goes_by_the_whole_file_is_there_until_the_file_changes(
    store: Store, hooks: Path
) -> None:
    run = record(store)
    compute(run, 1, digest_of(hooks.read_bytes()), (1, 2, 3))
    assert ask([run], hooks, "accuracy").tasks == ()
    hooks.write_text(hooks.read_text() + "\n# changed\n")
    assert ways(ask([run], hooks, "accuracy")) == {"state": (1, 2, 3)}


def test_editing_one_hook_of_a_file_leaves_the_values_of_the_others(
    store: Store, hooks: Path
) -> None:
    run = record(store)
    compute(run, 1, scan(hooks)[0].digest, (1, 2, 3))
    hooks.write_text(hooks.read_text() + "\n@flor.metric\ndef other(ctx): ...\n")
    assert ask([run], hooks, "accuracy").tasks == ()


def test_what_the_run_logged_itself_is_never_computed_again(store: Store, hooks: Path) -> None:
    hooks.write_text("import flor_plugins as flor\n\n@flor.metric\ndef val(ctx): ...\n")
    assert ask([record(store)], hooks, "val").tasks == ()


def test_a_predicate_sees_the_values_of_the_hook_of_today(store: Store, hooks: Path) -> None:
    run = record(store)
    compute(run, 1, "0" * 64, (1, 2, 3))
    compute(run, 2, scan(hooks)[0].digest, (2,))
    assert ways(ask([run], hooks, "accuracy", where="accuracy.isna()")) == {"state": (1, 3)}
    assert ask([run], hooks, "accuracy", where="accuracy == 1").tasks == ()


def test_values_of_callbacks_go_by_their_file(store: Store, tmp_path: Path) -> None:
    run, path = record(store), tmp_path / "callbacks.py"
    path.write_text(
        "class Hook(TrainerCallback):\n    def on_evaluate(self, *args, **kwargs): ...\n"
    )
    compute(run, 1, joined([digest_of(path.read_bytes())]), (1, 2))
    compute(run, 2, None, (3,))
    assert ask([run], path, "accuracy").tasks == ()
    path.write_text(path.read_text() + "\n")
    assert ways(ask([run], path, "accuracy")) == {"validate": (1, 2)}


def test_rows_stay_where_their_values_do_not_count() -> None:
    row = Row(Position(1, 4), "train", "step", {"a": 1, "b": 2}, 0.0, "exact", "old")
    rows = [(source_of("replay-x-w0"), row), (source_of("record-r0"), row)]
    kept = of_today(rows, {"a": ("new",)})
    assert [dict(one.values) for _, one in kept] == [{"b": 2}, {"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("sample:5", range(21), [1, 6, 11, 15, 20]),
        ("sample:2", range(21), [1, 20]),
        ("sample:1", range(21), [20]),
        ("sample:9", range(4), [1, 2, 3]),
        ("sample:3", [], []),
    ],
)
def test_a_sample_of_epochs_is_spread_and_has_both_ends(
    text: str, known: range, expected: list[int]
) -> None:
    assert epochs_of(text, known) == expected


@pytest.mark.parametrize("text", ["sample:", "sample:0", "sample:-1", "sample:x", "sample"])
def test_a_sample_of_nothing_is_told(text: str) -> None:
    with pytest.raises(ReplayError, match="sample:5"):
        epochs_of(text, range(4))


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_sample_is_as_large_as_asked_and_even(size: int, count: int) -> None:
    found = sample(range(size), count)
    assert len(found) == len(set(found)) == min(size, count)
    assert found[-1] == size - 1
    gaps = [b - a for a, b in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.integers(0, 200))
def test_each_beginning_of_the_order_is_spread_over_all(size: int) -> None:
    order = spread(range(size))
    assert sorted(order) == list(range(size))
    for done in range(2, size + 1):
        seen = sorted(order[:done])
        assert seen[0] == 0 and seen[-1] == size - 1
        # a beginning of 2**k + 1 leaves no gap wider than a 2**k-th of all
        halvings = (done - 1).bit_length() - 1
        assert max(b - a for a, b in pairwise(seen)) <= -(-(size - 1) // 2**halvings)


def test_positions_come_in_an_order_of_which_a_tenth_shows_the_curve(
    store: Store, hooks: Path
) -> None:
    made = planner.make(store, [record(store)], ReplayRequest(("accuracy",), hooks=(hooks,)))
    assert [one.epoch for one in made.tasks[0].passes[0].positions] == [1, 3, 2]
    assert made.tasks[0].passes[0].epochs == (1, 2, 3)
