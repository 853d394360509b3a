"""What is asked in hindsight of the recipe of BERT: accuracy by word class."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flor_plugins.hooks.hook_files import load
from flor_plugins.hooks.metric import Context

RECIPES = Path(__file__).parents[1] / "recipes"
LENGTH = 32


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The recipe's module, with an empty cache; it and what it imports from beside it are
    forgotten afterwards.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        known = set(sys.modules)
        import bert

        yield bert
        for name in ("bert", "help_topics", "prepared"):
            if name not in known:
                del sys.modules[name]


@pytest.fixture(scope="module")
def hooks() -> dict[str, Any]:
    return {metric.name: metric for metric in load(RECIPES / "hooks" / "bert.py").metrics}


@pytest.fixture(scope="module")
def named(hooks: dict[str, Any]) -> dict[str, Any]:
    """All that the hook file defines."""
    return hooks["accuracy_by_word_class"].function.__globals__


def test_no_function_word_is_of_two_classes(named: dict[str, Any]) -> None:
    words = Counter(word for each in named["CLOSED_CLASSES"].values() for word in each.split())
    assert max(words.values()) == 1 and len(named["CLASS_OF"]) == len(words) > 100


@pytest.mark.parametrize(
    "words",
    [
        "the/determiners value/open_class of/prepositions it/pronouns",
        "if/conjunctions they/pronouns can't/auxiliaries +,/punctuation +3/numbers "
        "+./punctuation +14/numbers",
        "it\N{RIGHT SINGLE QUOTATION MARK}s/pronouns the/determiners object's/open_class",
        "__is__/open_class utf8/open_class 1_000/numbers _/punctuation is_a/open_class",
        "(/punctuation +'/punctuation +is/auxiliaries +'/punctuation +)/punctuation",
        "theatre/open_class and/conjunctions atheist/open_class",
    ],
)
def test_tokens_have_the_class_of_their_whole_word(
    bert: Any, named: dict[str, Any], words: str
) -> None:
    """words: each with its class; + for one that no blank stands before."""
    text, classes = "", list[str]()
    for word, _, name in (one.rpartition("/") for one in words.split()):
        spaced = word.removeprefix("+") if word.startswith("+") else f" {word}"
        text += spaced
        classes += [name] * len(spaced)
    encoded = bert.load_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    expected = [classes[end - 1] for _, end in encoded["offset_mapping"]]
    assert named["word_classes"](["[CLS]", *encoded.tokens(), "[SEP]"])[1:-1] == expected


def test_accuracies_by_word_class_are_those_of_the_masked_tokens(
    bert: Any, hooks: dict[str, Any], named: dict[str, Any]
) -> None:
    """A model that fills in the right token at every even id, over chunks that were masked."""
    tokenizer = bert.load_tokenizer()
    plain = bert.load_chunks(tokenizer, LENGTH)[1][:60]
    masked, labels = bert.mask(plain, tokenizer, torch.Generator().manual_seed(0))
    guesses = iter(torch.where(plain % 2 == 0, plain, 0).split(25))
    batches = [
        {"input_ids": i, "labels": k}
        for i, k in zip(masked.split(25), labels.split(25), strict=True)
    ]

    def model(input_ids: torch.Tensor) -> Any:
        logits = torch.nn.functional.one_hot(next(guesses), bert.PIECES).float()
        return SimpleNamespace(logits=logits)

    found = hooks["accuracy_by_word_class"](
        Context(model=model, device="cpu", make_val_dataloader=lambda: batches)
    )
    right: dict[str, list[bool]] = {name: [] for name in named["CLASSES"]}
    for ids, asked in zip(plain, labels != bert.IGNORED, strict=True):
        classes = named["word_classes"](tokenizer.convert_ids_to_tokens(ids))
        for place in asked.nonzero().flatten().tolist():
            right[classes[place]].append(int(ids[place]) % 2 == 0)
    assert all(right.values())
    assert found == pytest.approx({name: sum(each) / len(each) for name, each in right.items()})


def test_class_of_which_nothing_was_masked_is_nan(bert: Any, hooks: dict[str, Any]) -> None:
    ids = bert.load_chunks(bert.load_tokenizer(), LENGTH)[1][:1]
    batch = {"input_ids": ids, "labels": torch.full_like(ids, bert.IGNORED)}

    def model(input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, bert.PIECES))

    found = hooks["accuracy_by_word_class"](
        Context(model=model, device="cpu", make_val_dataloader=lambda: [batch])
    )
    assert len(found) == 8 and all(math.isnan(one) for one in found.values())
