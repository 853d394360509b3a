"""The recipe of TAPAS: its questions, their encoding, and what is measured with them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import EvalPrediction, TapasTokenizer

import flor_plugins as flor
from flor_plugins.hooks.hook_files import load
from flor_plugins.hooks.metric import Context
from flor_plugins.recipe import check_recipe
from tests.replaying import Project, rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
SHAPE = {"rows": 5, "columns": 3}


@pytest.fixture(scope="module")
def tapas() -> Iterator[Any]:
    """The recipe's module; it and what it imports from beside it are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        known = set(sys.modules)
        import tapas

        yield tapas
        for name in ("tapas", "table_questions", "prepared"):
            if name not in known:
                del sys.modules[name]


@pytest.fixture(scope="module")
def questions(tapas: Any) -> list[Any]:
    return tapas.table_questions.ask(200, held_out=False, seed=0, **SHAPE)


@pytest.fixture(scope="module")
def tokenizer(
    tapas: Any, questions: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> TapasTokenizer:
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    vocabulary.write_text("\n".join(tapas.make_vocabulary(questions)) + "\n")
    return TapasTokenizer(str(vocabulary))


def read(question: Any) -> tuple[set[tuple[int, int]], float | None]:
    """Cells and number of an answer, from nothing but the words of the question and the
    table, with pandas.
    """
    names = question.table.columns
    frame = pd.DataFrame(list(question.table.rows), columns=list(names))
    text = f" {re.sub('[?:]', '', question.text)} "
    column = max(
        (i for i in range(1, len(names)) if f" {names[i]} " in text), key=lambda i: len(names[i])
    )
    values = frame.iloc[:, column]
    numbers = pd.to_numeric(values.str.replace(",", ""), errors="coerce")
    if question.kind == "look_up":
        row = max(
            (i for i in frame.index if f" {frame.iloc[i, 0]} " in text),
            key=lambda i: len(frame.iloc[i, 0]),
        )
        return {(row, column)}, None
    if question.kind == "extreme":
        row = numbers.idxmax() if re.search("highest|largest", text) else numbers.idxmin()
        return {(int(row), column)}, None
    if question.kind == "sum_or_average":
        number = numbers.mean() if re.search(" (average|mean) ", text) else numbers.sum()
        return {(int(row), column) for row in frame.index}, float(number)
    if found := re.search(r" (more|less) than ([-\d.,]+) ", text):
        than = float(found[2].replace(",", ""))
        meant = numbers > than if found[1] == "more" else numbers < than
    else:
        meant = values == max((one for one in values if f" {one} " in text), key=len)
    if question.kind == "count":
        return {(int(row), column) for row in frame.index[meant]}, float(meant.sum())
    return {(int(row), 0) for row in frame.index[meant]}, None


def test_answers_are_those_that_a_reader_of_the_table_finds(tapas: Any) -> None:
    for question in tapas.table_questions.ask(1_000, held_out=False, seed=3, rows=12, columns=6):
        cells, number = read(question)
        assert set(question.cells) == cells, question
        assert question.number == (None if number is None else pytest.approx(number)), question


def test_kinds_take_turns_and_each_asks_for_its_operators(questions: list[Any], tapas: Any) -> None:
    assert [one.kind for one in questions[:10]] == [*tapas.KINDS, *tapas.KINDS]
    found = {kind: {one.operator for one in questions if one.kind == kind} for kind in tapas.KINDS}
    assert found == {
        "look_up": {"NONE"},
        "reverse_look_up": {"NONE"},
        "extreme": {"NONE"},
        "count": {"COUNT"},
        "sum_or_average": {"SUM", "AVERAGE"},
    }


def test_tables_of_the_validation_have_rows_of_their_own(tapas: Any) -> None:
    tables = tapas.table_questions
    for source in tables.SOURCES:
        rows = tables.load(source)
        parts = [tables.split(rows, held_out) for held_out in (True, False)]
        assert sorted(map(str, rows)) == sorted(map(str, parts[0] + parts[1]))
        assert len({row[source.key] for row in parts[0]}) >= tables.FEWEST_ROWS, source.name
        assert len(parts[0]) == len(rows) // 4


def test_encoded_answer_is_the_answer(
    tapas: Any, questions: list[Any], tokenizer: TapasTokenizer
) -> None:
    fitting = [one for one in questions if tapas.fits(one, tokenizer, 72)]
    encoded = tapas.encode(questions, tokenizer, 72)
    assert len(fitting) == len(encoded["kind"]) > 190
    assert (encoded["input_ids"] != tokenizer.unk_token_id).all()
    for index, question in enumerate(fitting):
        one = {key: value[index] for key, value in encoded.items()}
        is_answer = one["labels"] == 1
        places = one["token_type_ids"][is_answer][:, [2, 1]] - 1  # row and column
        assert {tuple(place) for place in places.tolist()} == set(question.cells)
        values = (one["numeric_values"] / one["numeric_values_scale"])[is_answer]
        count = (1 / one["numeric_values_scale"])[is_answer].sum()
        assert count.item() == pytest.approx(len(question.cells))
        if question.operator == "SUM":
            assert values.sum().item() == pytest.approx(question.number)
        if question.operator == "AVERAGE":
            assert (values.sum() / count).item() == pytest.approx(question.number)


def guesses(encoded: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a reader that is often right: the same for all tokens of a cell, and for
    operators.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.where(encoded["labels"] == 1, 1.0, -200.0)
    slips = torch.rand(len(logits), generator=generator) < 0.3
    cell = (encoded["token_type_ids"][:, :, 1] == 1) & (encoded["token_type_ids"][:, :, 2] == 1)
    logits = torch.where(slips[:, None] & cell, 2.0, logits)
    operators = torch.nn.functional.one_hot(encoded["aggregation_labels"].long(), 4).float()
    return logits, operators + torch.rand(operators.shape, generator=generator) * 1.3


def test_accuracy_is_that_of_the_answers_that_the_tokenizer_reads_off(
    tapas: Any, questions: list[Any], tokenizer: TapasTokenizer
) -> None:
    fitting = [one for one in questions if tapas.fits(one, tokenizer, 72)]
    encoded = tapas.encode(fitting, tokenizer, 72)
    logits, operators = guesses(encoded)
    cells, chosen = tokenizer.convert_logits_to_predictions(
        {key: encoded[key] for key in ("input_ids", "attention_mask", "token_type_ids")},
        logits.clone(),
        operators,
    )
    right = {kind: [] for kind in tapas.KINDS}
    for question, its_cells, operator in zip(fitting, cells, chosen, strict=True):
        right[question.kind].append(is_right(question, its_cells, tapas.OPERATORS[operator]))
    expected = float(np.mean([one for each in right.values() for one in each]))
    assert 0.2 < expected < 0.9
    answer = tuple(encoded[name].numpy() for name in tapas.ANSWER)
    live = tapas.compute_accuracy(EvalPrediction((logits.numpy(), operators.numpy()), answer))
    assert live == {"accuracy": pytest.approx(expected)}

    ctx = Context(
        model=Parrot(logits, operators),
        device="cpu",
        make_val_dataloader=lambda: batches(tapas, encoded),
    )
    hooks = {metric.name: metric for metric in load(RECIPES / "hooks" / "tapas.py").metrics}
    assert hooks["accuracy_by_kind"](ctx) == pytest.approx(
        {kind: np.mean(each) for kind, each in right.items()}
    )
    needed = [tapas.OPERATORS.index(one.operator) for one in fitting]
    recall = [
        np.mean([c == n for c, n in zip(chosen, needed, strict=True) if n == i]) for i in range(4)
    ]
    assert hooks["operator_recall"](ctx) == pytest.approx(
        dict(zip(tapas.OPERATORS, recall, strict=True))
    )


def is_right(question: Any, cells: list[tuple[int, int]], operator: str) -> bool:
    if question.number is None:
        return operator == "NONE" and set(cells) == set(question.cells)
    texts = [question.table.rows[row][column].replace(",", "") for row, column in cells]
    if operator == "COUNT":
        return len(cells) == question.number
    try:
        values = [float(one) for one in texts]
    except ValueError:
        return False
    number = {"SUM": sum(values), "AVERAGE": sum(values) / max(len(values), 1)}.get(operator)
    return number == pytest.approx(question.number)


class Parrot:
    """A model that says what it is given, batch by batch."""

    def __init__(self, logits: torch.Tensor, operators: torch.Tensor) -> None:
        self.answers = logits, operators
        self.at = 0

    def __call__(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
        part = slice(self.at, self.at + len(input_ids))
        self.at = part.stop % len(self.answers[0])
        return transformers.models.tapas.modeling_tapas.TableQuestionAnsweringOutput(
            logits=self.answers[0][part], logits_aggregation=self.answers[1][part]
        )


def batches(tapas: Any, encoded: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    whole = tapas.Questions(encoded)
    return [
        {key: value[i : i + 64] for key, value in whole.encoded.items()}
        for i in range(0, len(whole), 64)
    ]


def test_hooks_number_kinds_and_operators_as_the_recipe_does(tapas: Any) -> None:
    hooks = sys.modules[load(RECIPES / "hooks" / "tapas.py").metrics[0].function.__module__]
    assert (hooks.KINDS, hooks.OPERATORS) == (tapas.KINDS, tapas.OPERATORS)


def test_recipe_has_no_mistake() -> None:
    assert check_recipe(RECIPES / "tapas.yaml") == []


def test_full_size_is_that_of_tapas_base(tapas: Any) -> None:
    size = tapas.SCALES["full"]
    with torch.device("meta"):
        model = tapas.build_model(size, size.hidden_size)
    assert sum(one.numel() for one in model.parameters()) == 110_676_486


@pytest.mark.slow
def test_full_size_takes_a_step(tapas: Any, tokenizer: TapasTokenizer) -> None:
    size = tapas.SCALES["full"]
    asked = tapas.table_questions.ask(
        5, held_out=False, seed=0, rows=size.rows, columns=size.columns
    )
    encoded = tapas.Questions(tapas.encode(asked, tokenizer, size.length))
    model = tapas.build_model(size, size.hidden_size)
    loss = model(**torch.utils.data.default_collate([encoded[0], encoded[1]])).loss
    loss.backward()
    assert 0 < loss.item() < 10
    assert all(
        one.grad is not None and one.grad.isfinite().all()
        for one in model.parameters()
        if one.requires_grad
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replay_finds_what_was_recorded(tmp_path: Path, tapas: Any) -> None:
    """Weighted by how many there are of each kind, the replayed accuracies are the one that
    was recorded.
    """
    project = Project(tmp_path / "project", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    shutil.copytree(RECIPES, project.root / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    recipe = (RECIPES / "tapas.yaml").read_text()
    one = re.sub(
        r"versions:\n(  - .*\n)+",
        "versions:\n  - {name: short, epochs: 2, hidden_size: 32}\n",
        recipe,
    )
    project.write("recipes/tapas.yaml", one)
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recipe")
    project.flor("replay", "recipes/tapas.yaml", "--yes", timeout_s=500)

    assert {one["verdict"] for one in project.verdicts()} == {"exact"}
    names = ("eval_accuracy", "accuracy_by_kind", "operator_recall")
    recorded, by_kind, recall = (
        rows_of(flor.dataframe(n, store=project.store.root), "short", n) for n in names
    )
    assert len(recorded) == len(by_kind) == len(recall) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        kinds = tapas.load_questions(tapas.SCALES["tiny"])[1]["kind"]
    counts = dict(zip(tapas.KINDS, torch.bincount(kinds.long()).tolist(), strict=True))
    for position, accuracy in recorded.items():
        right = sum(by_kind[position][kind] * count for kind, count in counts.items())
        assert right / len(kinds) == pytest.approx(accuracy)
        assert all(0 <= share <= 1 for share in recall[position].values())
