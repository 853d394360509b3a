"""`flor-hf bench`: what follows from measurements, how it is told, and one bench of small
recipes from end to end.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextvars import Context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

import flor_plugins as flor
from flor_plugins.bench import chart, run, table
from flor_plugins.bench.folder import open_folder
from flor_plugins.bench.own_store import clear
from flor_plugins.bench.ratios import LEAST_PAIRS
from flor_plugins.bench.results import (
    Bench,
    BenchQuestion,
    BenchTraining,
    RecipeResult,
    StoredSizes,
    worst,
)
from flor_plugins.bench.train import count_parameters
from flor_plugins.bench.values import by_epoch, plain
from flor_plugins.cli import bench
from flor_plugins.errors import FlorError, RecipeError
from flor_plugins.loops.intercept import listen
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs
from tests.conftest import IDENTITY, environment

pytestmark = pytest.mark.xdist_group("benchmarks")

SVG = "{http://www.w3.org/2000/svg}"
seconds = st.floats(0.01, 1e5)
texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def training(
    version: str, pair: int, is_recorded: bool, train_s: float, cpu_s: float = 1.0
) -> BenchTraining:
    return BenchTraining(
        version=version,
        pair=pair,
        is_recorded=is_recorded,
        train_s=train_s,
        cpu_s=cpu_s,
        process_s=train_s + 5,
        load=1.0,
        parameters=430_000,
        run_ids=(f"{version}{pair}",) if is_recorded else (),
    )


def made_up(*pairs: tuple[float, float], verdict: str = "exact", **more: Any) -> RecipeResult:
    """A recipe of one version; pairs: seconds with, seconds without."""
    trainings = [
        training("a", i, how, pair[not how])
        for i, pair in enumerate(pairs)
        for how in (True, False)
    ]
    question = BenchQuestion(
        metric="acc", process_s=4.0, asked_s=3.0, ways=("state",), verdict=verdict, count=2,
        values={"a": ((1, 0.25), (2, 0.5))},
    )  # fmt: skip
    kept = StoredSizes(
        version="a",
        run_id="r",
        checkpoints=3,
        checkpoint_bytes=5_200_000,
        all_bytes=9_000_000,
        recording_s=0.5,
        objective=((1, 2.0), (2, 1.5)),
    )
    given = {
        "model": "BERT",
        "data": "real: texts",
        "objective": "filling in",
        "objective_metric": "loss",
        "trainings": trainings,
        "kept": (kept,),
        "questions": (question,),
    }
    return RecipeResult(
        **{"recipe": "bert", "path": "bert.yaml", "versions": ("a",), **given, **more}
    )


def bench_of(*results: RecipeResult) -> Bench:
    return Bench(started_at="then", finished_at="now", machine={"cores": 2}, results=results)


def lines_of(text: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# ---- what follows from measurements


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=30))
def test_the_overhead_is_the_median_over_pairs_and_lies_in_its_range(pairs):
    found = made_up(*pairs).overhead
    shares = sorted(one / other - 1 for one, other in pairs)
    middle = (shares[(len(shares) - 1) // 2] + shares[len(shares) // 2]) / 2
    assert found is not None and found.n == len(pairs)
    assert math.isclose(found.middle, middle, rel_tol=1e-9, abs_tol=1e-9)
    assert shares[0] <= found.low <= found.middle <= found.high <= shares[-1]


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=8), st.randoms())
def test_who_came_first_in_a_pair_does_not_matter(pairs, chance):
    result = made_up(*pairs)
    mixed = list(result.trainings)
    chance.shuffle(mixed)
    assert result.model_copy(update={"trainings": tuple(mixed)}).overhead == result.overhead


def test_a_training_whose_pair_was_not_made_counts_for_seconds_and_not_for_the_overhead():
    result = made_up((11.0, 10.0), (99.0, 1.0))
    result = result.model_copy(update={"trainings": result.trainings[:3]})
    assert result.overhead is not None and result.overhead.n == 1
    assert math.isclose(result.overhead.middle, 0.1) and math.isclose(result.overhead_s or 0, 1.0)
    assert result.seconds("a", is_recorded=True) == 55.0


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1.02, 1.0)], False),
        ([(1.02, 1.0)] * (LEAST_PAIRS - 1), False),
        ([(1.02, 1.0)] * LEAST_PAIRS, True),
        ([(1.02, 1.0), (0.99, 1.0)] * LEAST_PAIRS, False),
    ],
)
def test_few_pairs_and_pairs_on_both_sides_of_nothing_are_inconclusive(pairs, expected):
    result = made_up(*pairs)
    assert result.is_conclusive is expected
    assert ("inconclusive" in table.overhead(result)) is not expected


def test_training_again_is_all_versions_without_the_callback_and_unknown_while_one_lacks():
    trainings = (
        training("a", 1, False, 10),
        training("a", 1, True, 99),
        training("b", 1, False, 20),
    )
    result = made_up(trainings=trainings, versions=("a", "b"))
    assert result.again_s == 10 + 5 + 20 + 5
    assert result.speedup(result.questions[0]) == 40 / 4
    assert result.model_copy(update={"versions": ("a", "b", "c")}).again_s is None


@given(st.permutations(["exact", "exact", "close", "unverified", "diverged"]), st.integers(1, 5))
def test_the_worst_verdict_counts(verdicts, count):
    order = ["exact", "close", "unverified", "diverged"]
    assert worst(verdicts[:count]) == max(verdicts[:count], key=order.index)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (made_up((1, 1)), True),
        (made_up((1, 1), verdict="close"), False),
        (made_up((1, 1), verdict="unverified"), False),
        (made_up((1, 1), verdict="diverged"), False),
        (made_up((1, 1), error="it broke"), False),
        (made_up((1, 1), questions=(BenchQuestion(metric="acc", error="no hook"),)), False),
        (made_up((1, 1), questions=(BenchQuestion(metric="acc"),)), False),
        (made_up((1, 1), questions=()), True),
    ],
)
def test_only_exact_verdicts_and_no_failure_are_good(result, expected):
    assert result.is_good is expected


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_values_of_updates_become_the_mean_of_the_epoch_in_which_they_were_made(
    epochs, steps, data
):
    made = [[data.draw(st.floats(-1e6, 1e6)) for _ in range(steps)] for _ in range(epochs)]
    # The update that completes an epoch counts it as completed.
    rows = [
        ((epoch + (step + 1) // steps), epoch * steps + step + 1, value)
        for epoch, values in enumerate(made)
        for step, value in enumerate(values)
    ]
    found = by_epoch(data.draw(st.permutations(rows)))
    assert [epoch for epoch, _ in found] == list(range(1, epochs + 1))
    for (_, mean), values in zip(found, made, strict=True):
        assert math.isclose(mean, math.fsum(values) / steps, rel_tol=1e-9, abs_tol=1e-6)


def test_values_of_epochs_stay_where_they_are():
    matrix = [[1, 0], [0, 1]]
    assert by_epoch([(0, 0, 0.1), (1, 7, 0.2), (2, 14, matrix)]) == (
        (0, 0.1),
        (1, 0.2),
        (2, matrix),
    )


leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3)


@given(st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)))
def test_any_value_has_json(value):
    json.loads(json.dumps(plain(value), allow_nan=False))


def test_parameters_that_are_shared_count_once():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.weight = one.weight
    registered = ObjectRegistry()
    registered.add((one, other), {"optimizer": SGD(one.parameters(), lr=1.0)})
    assert count_parameters(registered) == 6 + 2 + 2
    assert count_parameters(("a trainer", one, "data")) == 8


# ---- how it is told


@given(
    st.builds(
        made_up,
        st.tuples(seconds, seconds),
        model=texts,
        data=texts,
        objective=texts,
        error=texts | st.none(),
    )
)
def test_the_table_is_whole_whatever_the_texts_hold(result):
    heads = lines_of(table.markdown(bench_of(result, made_up((2.0, 1.0)))))
    assert len(heads[0]) == len(heads[2]) == len(heads[3]) == len(table.HEAD)
    assert heads[3][0] == "BERT"


def test_the_table_says_what_was_measured():
    [head, _, row, *_] = lines_of(table.markdown(bench_of(made_up((10.1, 10.0), (10.3, 10.0)))))
    assert head == list(table.HEAD)
    assert row == [
        "BERT", "430 k", "5.20 MB", "real: texts", "filling in", "loss 2 → 1.5", "10.2",
        "+2.0 %, +0.20 s (+1.0 to +3.0 %, 2 pairs: inconclusive)<br>processor +0.0 %<br>by its "
        "own clock +4.9 %",
        "15.0 s", "acc 4.0 s (3.8x)", "exact",
    ]  # fmt: skip


def test_a_failure_stands_in_the_table_and_in_the_chart():
    failed = RecipeResult(recipe="gpt2", path="gpt2.yaml", error="gpt2.yaml:3: no module 'gpt2'")
    asked = made_up(
        (2.0, 1.0), questions=(BenchQuestion(metric="acc", error="no hook | gives acc"),)
    )
    bench = bench_of(failed, asked)
    told = table.markdown(bench)
    assert lines_of(told)[2][-1] == "failed: gpt2.yaml:3: no module 'gpt2'"
    assert lines_of(told)[3][-2:] == ["acc: failed", "acc: no hook \\| gives acc"]
    assert "failed" in chart.svg(bench)


@given(st.lists(st.floats(-1e7, 1e9), max_size=6))
@example([5e-324])
def test_an_axis_holds_nothing_and_all_values_in_round_steps(values):
    shown = chart.axis(values)
    tolerance = 1e-6 * max(map(abs, shown.ticks))
    assert (
        shown.ticks[0] <= min([0.0, *values]) + tolerance
        and max([0.0, *values]) - tolerance <= shown.ticks[-1]
    )
    assert min(map(abs, shown.ticks)) == 0 and 2 <= len(shown.ticks) <= 2 * chart.TICKS
    assert math.isclose(shown.at(shown.ticks[0]), chart.LEFT) and math.isclose(
        shown.at(shown.ticks[-1]), chart.RIGHT
    )


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=3), texts)
def test_bars_are_as_long_as_their_seconds(pairs, name):
    result = made_up(*pairs, recipe=re.sub(r"[^ -~]", "", name))
    root = ElementTree.fromstring(chart.svg(bench_of(result)))
    bars = [
        float(one.get("width", "")) for one in root.iter(f"{SVG}rect") if one.get("width") != "100%"
    ]
    assert result.again_s is not None and len(bars) == 2
    assert math.isclose(bars[0] / result.again_s, bars[1] / 4.0, rel_tol=0.02, abs_tol=0.01)


def test_a_chart_of_nothing_is_a_picture():
    assert ElementTree.fromstring(chart.svg(bench_of())).tag == f"{SVG}svg"


@given(
    st.lists(
        st.builds(made_up, st.tuples(seconds, seconds), model=texts, error=texts | st.none()),
        max_size=3,
    )
)
def test_the_data_is_read_back_as_it_was_written(results):
    bench = bench_of(*results)
    assert Bench.model_validate_json(bench.model_dump_json()) == bench


@pytest.mark.parametrize(
    ("share", "told"), [(0.0123, "+1.2 %"), (-0.004, "-0.4 %"), (66.589, "+6659 %")]
)
def test_shares_are_told_with_the_digits_that_mean_something(share, told):
    assert table.percent(share) == told


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0"), (812, "812"), (430_000, "430 k"), (109_500_000, "110 M")]
)
def test_counts_are_told_in_three_digits(number, told):
    assert table.count(number) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.123456, "0.1235"),
        (3, "3"),
        (True, "True"),
        ([[1, 2, 3], [4, 5, 6]], "[2x3]"),
        ([], "[0]"),
        ("a\nb", "a b"),
    ],
)
def test_values_find_room_in_a_cell(value, told):
    assert table.value(value) == told


# ---- files


def test_a_folder_that_is_not_a_benchs_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(FlorError, match="not the folder of a bench"):
        open_folder(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["bench.json"]
    with pytest.raises(FlorError, match="which is a file"):
        open_folder(tmp_path / "bench.json")


def test_what_the_user_keeps_in_the_folder_stays(tmp_path: Path):
    folder, _ = open_folder(tmp_path / "out")
    folder.write(bench_of())
    (folder.root / "notes.txt").write_text("mine")
    again, before = open_folder(folder.root)
    again.write(bench_of(made_up((2.0, 1.0))))
    assert before == bench_of()
    assert (folder.root / "notes.txt").read_text() == "mine"


@pytest.fixture
def recipes(tmp_path: Path) -> list[Path]:
    """Files of recipes that are never trained."""
    found = [tmp_path / f"{name}.yaml" for name in ("one", "three", "two")]
    for path in found:
        path.write_text(f"version: 1\nname: {path.stem}\ntrainer: a:b\n")
    (tmp_path / "notes.txt").write_text("no recipe")
    return found


def test_a_folder_means_all_recipes_in_it_each_once(recipes: list[Path]):
    folder = recipes[0].parent
    assert run.recipes_of([folder, recipes[1]]) == recipes
    with pytest.raises(FlorError, match="there is no such recipe"):
        run.recipes_of([folder / "four.yaml"])
    (folder / "empty").mkdir()
    with pytest.raises(FlorError, match=r"no \.yaml file is there"):
        run.recipes_of([folder / "empty"])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """Recipes seem to be measured: those that are named raise after their first pair."""
    raising: dict[str, BaseException] = {}

    def seem(path: Path, setting: Any) -> Iterator[RecipeResult]:
        yield made_up((2.0, 1.0), recipe=path.stem, questions=())
        if path.stem in raising:
            raise raising[path.stem]
        yield made_up((2.0, 1.0), recipe=path.stem)

    monkeypatch.setattr(run, "measured", seem)
    return raising


def rows_in(folder: Path) -> dict[str, RecipeResult]:
    return {
        one.recipe: one
        for one in Bench.model_validate_json((folder / "bench.json").read_text()).results
    }


def ask(recipes: list[Path], out: Path, *, is_added: bool = False) -> int:
    return bench.bench(recipes, 1, out, None, is_added, False)


def test_a_recipe_that_fails_does_not_stop_the_others(recipes, measured, tmp_path, capsys):
    measured["three"] = RecipeError("three.yaml:3: it is wrong")
    assert ask(recipes, tmp_path / "out") == 1
    rows = rows_in(tmp_path / "out")
    assert list(rows) == ["one", "three", "two"]
    assert rows["three"].error == "three.yaml:3: it is wrong" and rows["three"].trainings
    assert rows["two"].questions and rows["two"].error is None
    assert "three.yaml:3: it is wrong" in capsys.readouterr().err


def test_an_interrupt_leaves_what_is_known(recipes, measured, tmp_path):
    measured["three"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ask(recipes, tmp_path / "out")
    rows = rows_in(tmp_path / "out")
    assert list(rows) == ["one", "three"]
    assert (
        rows["one"].error is None
        and rows["three"].error == "interrupted"
        and rows["three"].trainings
    )
    assert "interrupted" in (tmp_path / "out" / "bench.md").read_text()


def test_rows_of_other_recipes_stay_only_if_it_is_asked_for(recipes, measured, tmp_path):
    assert ask(recipes[:2], tmp_path / "out") == 0
    assert ask(recipes[1:], tmp_path / "out", is_added=True) == 0
    assert list(rows_in(tmp_path / "out")) == ["one", "three", "two"]
    assert ask(recipes[:1], tmp_path / "out") == 0
    assert list(rows_in(tmp_path / "out")) == ["one"]


def test_rows_of_another_machine_are_not_mixed_with_new_ones(
    recipes, measured, tmp_path, monkeypatch
):
    assert ask(recipes[:1], tmp_path / "out") == 0
    monkeypatch.setattr(run, "machine", lambda: {"cores": 10_000})
    with pytest.raises(FlorError, match=r"cores was .*, now 10000"):
        ask(recipes[1:], tmp_path / "out", is_added=True)
    assert list(rows_in(tmp_path / "out")) == ["one"]
    assert ask(recipes[1:], tmp_path / "out") == 0


# ---- loops that nobody records


def test_a_loop_that_is_not_recorded_trains_alike_and_leaves_nothing(tmp_path: Path):
    net, begun, given = nn.Linear(2, 1), [], []

    def train(is_recorded: bool) -> None:
        listen(begun.append, is_recorded=is_recorded)
        flor.checkpoints(net, store=tmp_path / str(is_recorded))
        for epoch in flor.loop("epoch", range(2)):
            given.extend((epoch, i) for i in flor.loop("step", range(2)))
            flor.log("value", epoch)

    for is_recorded in (False, True):
        Context().run(train, is_recorded)
    assert given[:4] == given[4:] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [next(iter(one.modules().values())) for one in begun] == [net, net]
    assert [len(list_runs(Store(tmp_path / str(one)))) for one in (False, True)] == [0, 1]


# ---- from end to end

LOOP = """
import torch
from torch import nn
import flor_plugins as flor

def train(*, epochs, lr):
    torch.manual_seed(1)
    torch.set_num_threads(1)
    net, x = nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    flor.checkpoints(net, optimizer)
    for _ in flor.loop("epoch", range(epochs)):
        for i in flor.loop("step", range(4)):
            optimizer.zero_grad()
            (net(x[i::4]) - x[i::4].sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            flor.log("val_loss", float((net(x) - x.sum(1, keepdim=True)).square().mean()))

def idle(*, epochs, lr):
    pass
"""
TRAINER = """
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, index):
        return (self.net(batch[0]) - 1).square().mean()

    def validation_step(self, batch, index):
        self.log("val_loss", (self.net(batch[0]) - 1).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def build_trainer(*, epochs):
    torch.set_num_threads(1)
    lightning.seed_everything(1, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(torch.ones(8, 4)), 4)
    return trainer, Net(), (data, data)
"""
HOOK = """
import flor_plugins as flor

@flor.metric
def norm(ctx):
    return float(sum(p.detach().square().sum() for p in ctx.model.parameters()))
"""
RECIPE = """
version: 1
name: {name}
trainer: {trainer}
data: "generated: normal noise"
objective: {{text: regression, metric: val_loss}}
params: {params}
replay: {{metrics: [norm], hooks: [hook.py]}}
"""


@pytest.fixture(scope="module")
def benched(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A bench of four small recipes: a loop, one that never trains, one that is wrong, a
    trainer.
    """
    root = tmp_path_factory.mktemp("benched")
    for name, text in (("looped.py", LOOP), ("trained.py", TRAINER), ("hook.py", HOOK)):
        (root / name).write_text(text)
    for name, trainer, params in (
        ("a_loop", "looped:train", "{epochs: 2, lr: 0.1}"),
        ("idle", "looped:idle", "{epochs: 2, lr: 0.1}"),
        ("missing", "nowhere:train", "{}"),
        ("trainer", "trained:build_trainer", "{epochs: 2}"),
    ):
        (root / f"{name}.yaml").write_text(RECIPE.format(name=name, trainer=trainer, params=params))
    for words in ("init -q -b main", "add .", "commit -q -m first"):
        subprocess.run(["git", *words.split()], cwd=root, env=environment(IDENTITY), check=True)
    command = [
        sys.executable,
        "-c",
        "from flor_plugins.cli import main; main()",
        "bench",
        ".",
        "--out",
        "out",
    ]
    done = subprocess.run(
        command, cwd=root, env=environment(), capture_output=True, text=True, timeout=240
    )
    return done, root


def test_a_bench_trains_asks_and_tells(benched):
    done, root = benched
    rows = rows_in(root / "out")
    assert list(rows) == ["a_loop", "idle", "missing", "trainer"]
    for name in ("a_loop", "trainer"):
        one = rows[name]
        assert one.error is None and one.verdict == "exact", (
            done.stderr + (root / "out/bench.log").read_text()
        )
        assert [each.is_recorded for each in one.trainings] == [False, True]
        assert [bool(each.run_ids) for each in one.trainings] == [False, True]
        assert one.parameters == 5 and one.kept[0].checkpoint_bytes > 0
        [question] = one.questions
        assert (
            question.count == 2 and question.ways == ("state",) and len(question.values[name]) == 2
        )
        assert all(0 < each.train_s < each.process_s for each in one.trainings)
        assert [epoch for epoch, _ in one.kept[0].objective] == [1, 2]


def test_a_bench_fails_where_a_recipe_does_and_says_why(benched):
    done, root = benched
    rows = rows_in(root / "out")
    assert done.returncode == 1, done.stderr
    assert "neither returned a trainer nor trained with flor.loop" in (rows["idle"].error or "")
    assert "no module 'nowhere'" in (rows["missing"].error or "")
    for name in ("idle", "missing"):
        assert f"flor: {name}: {rows[name].error}" in done.stderr


def test_a_bench_writes_only_into_its_folder_and_keeps_its_store(benched):
    done, root = benched
    assert not (root / ".flor").exists()
    names = {"bench.json", "bench.md", "bench.svg", "bench.log", "store", ".gitignore"}
    assert {one.name for one in (root / "out").iterdir()} == names
    assert str(root / "out" / "bench.md") in done.stdout
    status = subprocess.run(
        ["git", "status", "--short"], cwd=root, capture_output=True, text=True, check=True
    )
    assert [line for line in status.stdout.splitlines() if "__pycache__" not in line] == []
    store = Store(root / "out" / "store")
    assert {run.name for run in list_runs(store)} == {"a_loop", "trainer"}


def test_an_earlier_bench_is_given_up_with_the_code_that_it_kept_alive(benched):
    _, root = benched

    def kept() -> set[str]:
        refs = ["git", "for-each-ref", "refs/flor", "--format=%(refname:lstrip=2)"]
        return set(
            subprocess.run(
                refs, cwd=root, capture_output=True, text=True, check=True
            ).stdout.split()
        )

    store = Store(root / "out" / "store")
    ids = {run.name: run.run_id for run in list_runs(store)}
    assert kept() == set(ids.values())
    clear(store, ["a_loop"])
    assert kept() == {ids["trainer"]} == {run.run_id for run in list_runs(store)}
    clear(store)
    assert kept() == set() and not store.root.exists()
