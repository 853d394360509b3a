"""The recipe of LayoutLMv3: forms that are filled and tagged, their windows, and what is
measured with them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix
from transformers import EvalPrediction

import flor_plugins as flor
from flor_plugins.errors import MissingDependency
from flor_plugins.hooks.hook_files import load
from flor_plugins.hooks.metric import Context
from flor_plugins.recipe import check_recipe
from tests.replaying import Project, rows_of

RECIPES = Path(__file__).parents[1] / "recipes"
PIXELS = 32


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's module; it and what it imports from beside it are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        known = set(sys.modules)
        import layoutlmv3

        yield layoutlmv3
        for name in (
            "layoutlmv3",
            "court_forms",
            "form_tags",
            "form_windows",
            "made_up",
            "prepared",
        ):
            if name not in known:
                del sys.modules[name]


@pytest.fixture(scope="module")
def forms(recipe: Any) -> list[Path]:
    return [
        one
        for one in recipe.court_forms.list_forms()
        if one.stem in ("sca_fc_103", "sca_fc_104", "lis_release")
    ]


@pytest.fixture(scope="module")
def pages(recipe: Any, forms: list[Path]) -> list[Any]:
    return [
        page for form in forms for page in recipe.court_forms.fill(form, filling=0, pixels=PIXELS)
    ]


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    return {metric.name: metric for metric in load(RECIPES / "hooks" / "layoutlmv3.py").metrics}


def entities(page: Any, kind: str) -> list[str]:
    """The texts of a page's entities of a kind, in reading order."""
    whole = " ".join(f"{word.tag}|{word.text}" for word in page.words)
    found = re.findall(rf"B-{kind}\|\S+(?: I-{kind}\|\S+)*", whole)
    return [" ".join(part.split("|", 1)[1] for part in one.split()) for one in found]


def test_every_answer_is_read_back_from_the_drawn_page(
    recipe: Any, forms: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def answer(person: Any, name: str, width: float) -> str:
        written.append(f"{name[0]}{len(written)}")  # short: it fits into every field
        return written[-1]

    monkeypatch.setattr(recipe.court_forms.Person, "answer", answer)
    for form in forms:
        for page in recipe.court_forms.fill(form, filling=0, pixels=PIXELS):
            assert Counter(entities(page, "ANSWER")) == Counter(written), (form, page.number)
            written.clear()
    assert not written


def test_what_is_printed_is_read_and_tagged_alike_whatever_is_filled_in(
    recipe: Any, forms: list[Path], pages: list[Any]
) -> None:
    others = [
        page for form in forms for page in recipe.court_forms.fill(form, filling=1, pixels=PIXELS)
    ]
    for page, other in zip(pages, others, strict=True):
        printed, answers = (
            [
                Counter(
                    (w.text, w.box, w.tag[2:]) for w in one.words if ("ANSWER" in w.tag) == typed
                )
                for one in both
            ]
            for both, typed in (((page, other), False), ((page, other), True))
        )
        assert printed[0] == printed[1] and answers[0] != answers[1]
        assert not torch.equal(page.picture, other.picture)


def test_a_person_answers_the_same_question_the_same(recipe: Any) -> None:
    names = ["p_name", "p_dob", "other_detail", "p_name"]
    first, again, other = (
        [recipe.made_up.Person(key, blank=0).answer(n, 300) for n in names] for key in "aab"
    )
    assert first == again != other and first[0] == first[3]
    assert re.fullmatch(r"\d\d/\d\d/\d{4}", first[1])


def test_questions_of_a_real_form_are_its_labels(pages: list[Any]) -> None:
    page = next(one for one in pages if one.form == "sca_fc_103" and one.number == 1)
    labels = {
        "PETITIONER:",
        "RESPONDENT:",
        "Case No.",
        "Street Address",
        "Phone Number",
        "Date of Birth",
        "Firm:",
    }
    assert labels <= set(entities(page, "QUESTION"))
    assert any("IDENTIFYING INFORMATION" in one for one in entities(page, "HEADER"))


def words(tags: Any, *placed: tuple[str, float, float], **more: Any) -> list[Any]:
    """Words of 6 points a letter and 10 points height, from their text, left and bottom edge."""
    return [
        tags.Word(
            text, tags.Box(left, bottom, left + 6 * len(text), bottom + 10), 10.0, False, **more
        )
        for text, left, bottom in placed
    ]


def tagged(tags: Any, printed: list[Any], fields: list[Any], typed: list[Any] = ()) -> str:
    return " ".join(f"{one.text}/{one.tag}" for one in tags.tag(printed, list(typed), fields))


def test_labels_are_found_on_the_left_above_and_below(recipe: Any) -> None:
    tags = recipe.form_tags
    left = tags.Field(0, "a", tags.Box(100, 100, 200, 112))
    printed = words(
        tags, ("Enough.", -10, 100), ("Full", 36, 100), ("name:", 64, 100), ("Aside", 230, 100)
    )
    assert tagged(tags, printed, [left]) == "Enough./O Full/B-QUESTION name:/I-QUESTION Aside/O"
    typed = words(tags, ("Ann", 105, 101), ("Lee", 130, 101), field=left)
    assert tagged(tags, printed, [left], typed).endswith(
        "name:/I-QUESTION Ann/B-ANSWER Lee/I-ANSWER Aside/O"
    )

    column = [tags.Field(i, "a", tags.Box(100, 100 - 14 * i, 200, 112 - 14 * i)) for i in range(2)]
    table = words(tags, ("Date", 110, 114), ("Long", 40, 60), ("ago", 110, 60))
    assert tagged(tags, table, column) == "Date/B-QUESTION Long/O ago/O"
    signature = words(tags, ("Signature", 110, 89))
    assert tagged(tags, signature, [left]) == "Signature/B-QUESTION"
    assert tagged(tags, words(tags, ("Signature", 110, 60)), [left]) == "Signature/O"


def test_large_lines_and_bold_capitals_are_headers(recipe: Any) -> None:
    tags = recipe.form_tags
    plain = words(
        tags, *((text, 50, 100 - 20 * i) for i, text in enumerate(["one", "two", "IN", "CAPITALS"]))
    )
    bold = [
        tags.Word(text, tags.Box(50, y, 90, y + 10), 10.0, True)
        for text, y in (("BOLD", 200), ("Bold", 180))
    ]
    large = [tags.Word("Title", tags.Box(50, 300, 90, 314), 14.0, False)]
    assert tagged(tags, [*plain, *bold, *large], []) == (
        "Title/B-HEADER BOLD/B-HEADER Bold/O one/O two/O IN/O CAPITALS/O"
    )


def test_windows_hold_every_word_once_with_its_tag_and_place(recipe: Any, pages: list[Any]) -> None:
    windows, tags = recipe.form_windows, recipe.TAGS
    tokenizer = windows.train_tokenizer(pages)
    held = windows.cut(pages, tokenizer, 60)
    begins = held["labels"] != windows.IGNORED
    assert held["ids"].shape == begins.shape == (len(held["pages"]), 60)
    assert (held["ids"][:, 0] == 0).all() and ((held["ids"] == 2).sum(dim=1) == 1).all()
    for row, page in enumerate(pages):
        mine = held["pages"] == row
        is_word = begins[mine]
        assert [tags[one] for one in held["labels"][mine][is_word]] == [
            word.tag for word in page.words
        ]
        text = tokenizer.decode(held["ids"][mine][held["ids"][mine] > 2].tolist())
        assert text.split() == [word.text for word in page.words]
        left, top, right, bottom = held["boxes"][mine][is_word].unbind(dim=1)
        assert (left <= right).all() and (top < bottom).all() and top[0] < top[-1]
        assert held["boxes"].min() >= 0 and held["boxes"].max() <= 1000


def naive_spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """Entities from a grouping of neighbours: another way than the recipe's and the hook's."""
    group, groups = 0, []
    for index, tag in enumerate(tags):
        group += tag[:1] != "I" or index == 0 or tags[index - 1][2:] != tag[2:]
        groups.append((group, index, tag))
    parts = [
        [(index, tag) for _, index, tag in one]
        for _, one in groupby(groups, key=lambda one: one[0])
    ]
    return {(part[0][1][2:], part[0][0], part[-1][0] + 1) for part in parts if part[0][1] != "O"}


@given(st.lists(st.integers(0, 6), max_size=12))
def test_recipe_and_hook_find_the_same_entities(
    recipe: Any, hooks: dict[str, Any], numbers: list[int]
) -> None:
    tags = [recipe.TAGS[one] for one in numbers]
    module = sys.modules[hooks["f1_by_label"].function.__module__]
    assert (
        set(recipe.spans(np.array(numbers, dtype=int)))
        == set(module.spans(tags))
        == naive_spans(tags)
    )


class Parrot:
    """A model that says what it is given, batch by batch."""

    def __init__(self, logits: torch.Tensor, tags: tuple[str, ...]) -> None:
        self.logits, self.at = logits, 0
        self.config = SimpleNamespace(id2label=dict(enumerate(tags)))

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        part = slice(self.at, self.at + len(input_ids))
        self.at = part.stop % len(self.logits)
        return SimpleNamespace(logits=self.logits[part])


@pytest.fixture
def guesses(recipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (windows, tokens) and logits of a reader that is often right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(recipe.TAGS), (40, 30), generator=generator)
    logits = torch.randn(40, 30, len(recipe.TAGS), generator=generator)
    logits += 2 * torch.nn.functional.one_hot(labels, len(recipe.TAGS))
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.3, -100, labels), logits


def test_metrics_are_those_of_an_independent_count(
    recipe: Any, hooks: dict[str, Any], guesses: tuple[torch.Tensor, torch.Tensor]
) -> None:
    labels, logits = guesses
    chosen, is_word, tags = logits.argmax(dim=-1), labels >= 0, np.array(recipe.TAGS)
    sets = [
        {
            (row, *one)
            for row in range(len(labels))
            for one in naive_spans(list(tags[found[row][is_word[row]]]))
        }
        for found in (labels, chosen)
    ]
    right = Counter(kind for _, kind, *_ in sets[0] & sets[1])
    total = Counter(kind for found in sets for _, kind, *_ in found)
    live = recipe.entity_scores(EvalPrediction(chosen.numpy(), labels.numpy()))
    assert 0.2 < live["f1"] < 0.9
    assert live["f1"] == pytest.approx(2 * right.total() / total.total())
    assert live["precision"] == pytest.approx(right.total() / len(sets[1]))
    assert live["recall"] == pytest.approx(right.total() / len(sets[0]))

    parts = [{"input_ids": one, "labels": one} for one in labels.split(16)]
    ctx = Context(
        model=Parrot(logits, recipe.TAGS), device="cpu", make_val_dataloader=lambda: parts
    )
    kinds = ("HEADER", "QUESTION", "ANSWER")
    assert hooks["f1_by_label"](ctx) == pytest.approx(
        {kind: 2 * right[kind] / total[kind] for kind in kinds}
    )
    true, said = ([tag[2:] or "O" for tag in tags[found[is_word]]] for found in (labels, chosen))
    assert (
        hooks["kind_confusion"](ctx) == confusion_matrix(true, said, labels=["O", *kinds]).tolist()
    )
    sure, hits = (
        logits.double().softmax(-1).amax(-1)[is_word].numpy(),
        (chosen == labels)[is_word].numpy(),
    )
    places = np.digitize(sure, np.arange(1, 10) / 10)
    gaps = [
        abs(sure[places == i].mean() - hits[places == i].mean()) * (places == i).mean()
        for i in set(places)
    ]
    assert hooks["calibration_error"](ctx) == pytest.approx(sum(gaps))


def test_missing_package_is_named(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(recipe.court_forms, "distribution", missing)
    with pytest.raises(
        MissingDependency, match=r"LAWVFamilyLaw.*pip install 'flor-plugins\[recipes\]'"
    ):
        recipe.court_forms.list_forms()


def test_recipe_has_no_mistake() -> None:
    assert check_recipe(RECIPES / "layoutlmv3.yaml") == []


def test_full_size_is_that_of_layoutlmv3_base(recipe: Any) -> None:
    size = recipe.SCALES["full"]
    with torch.device("meta"):
        model = recipe.build_model(size, size.layers)
    assert sum(one.numel() for one in model.parameters()) == 125_333_127


@pytest.mark.slow
def test_full_size_takes_a_step(recipe: Any, forms: list[Path]) -> None:
    size = recipe.SCALES["full"]
    filled = [
        page
        for form in forms
        for page in recipe.court_forms.fill(form, filling=0, pixels=size.pixels)
    ]
    tokenizer = recipe.form_windows.train_tokenizer(filled)
    data = recipe.Windows(recipe.form_windows.cut(filled, tokenizer, size.length))
    model = recipe.build_model(size, size.layers)
    loss = model(**torch.utils.data.default_collate([data[0], data[1]])).loss
    loss.backward()
    assert 0 < loss.item() < 10
    used = [one for one in model.parameters() if one.grad is not None]
    assert len(used) > 190 and all(one.grad.isfinite().all() for one in used)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replay_finds_what_was_recorded(tmp_path: Path) -> None:
    """The F1 of all entities lies between the labels' own, and every word is in the
    confusion once.
    """
    project = Project(tmp_path / "project", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    shutil.copytree(RECIPES, project.root / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    text = (RECIPES / "layoutlmv3.yaml").read_text()
    one = re.sub(
        r"versions:\n(  - .*\n)+", "versions:\n  - {name: short, epochs: 2, layers: 1}\n", text
    )
    project.write("recipes/layoutlmv3.yaml", one)
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recipe")
    project.flor("replay", "recipes/layoutlmv3.yaml", "--yes", timeout_s=500)

    assert {one["verdict"] for one in project.verdicts()} == {"exact"}
    names = ("eval_f1", "f1_by_label", "kind_confusion", "calibration_error")
    found = [
        rows_of(flor.dataframe(name, store=project.store.root), "short", name) for name in names
    ]
    recorded, by_label, confusion, error = found
    assert [len(one) for one in found] == [2, 2, 2, 2]
    for position, f1 in recorded.items():
        assert min(by_label[position].values()) <= f1 <= max(by_label[position].values())
        assert np.shape(confusion[position]) == (4, 4) and 0 <= error[position] <= 1
    assert len({np.sum(one) for one in confusion.values()}) == 1
