"""What nobody thought of logging while recipes/bert.yaml was trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import accumulate

import torch
from torch.nn.utils import get_total_norm

import flor_plugins as flor

# By form alone, no tagger: each word stands in the class that it mostly has in technical English.
CLOSED_CLASSES = {
    "determiners": (
        "a an the this these those each every either neither some any no all both another such"
    ),
    "pronouns": (
        "i you he she it we they me him us them my your his her its our their mine yours hers "
        "ours theirs who whom whose which what that itself themselves yourself something "
        "anything nothing one"
    ),
    "prepositions": (
        "of in to for with on at by from as into about like through after over between out "
        "against during without before under around among within across behind beyond up down "
        "off above below per via upon"
    ),
    "conjunctions": (
        "and or but nor so yet if because although though while unless until whether since when "
        "where than whereas whenever"
    ),
    "auxiliaries": (
        "am is are was were be been being have has had do does did can could will would shall "
        "should may might must cannot can't don't doesn't didn't isn't aren't wasn't won't"
    ),
}
CLASS_OF = {word: name for name, words in CLOSED_CLASSES.items() for word in words.split()}
CLASSES = (*CLOSED_CLASSES, "open_class", "numbers", "punctuation")
SPECIAL = re.compile(r"\[[A-Z]+\]")  # the text is in lower case
WORD = re.compile(r"_*[a-z0-9][a-z0-9_]*(?:'[a-z]+)?|\S")


@flor.metric(at="epoch")
def masked_accuracy(ctx: flor.Context) -> float:
    """Share of the masked tokens of the validation text that the model fills in rightly."""
    right = asked = 0
    for batch in ctx.val_dataloader:
        inputs = {key: value.to(ctx.device) for key, value in batch.items()}
        labels = inputs.pop("labels")
        guesses = ctx.model(**inputs).logits.argmax(dim=-1)
        is_asked = labels != -100
        right += int((guesses == labels)[is_asked].sum())
        asked += int(is_asked.sum())
    return right / asked


@flor.metric(at="epoch")
def accuracy_by_word_class(ctx: flor.Context) -> dict[str, float]:
    """masked_accuracy by the class of the word that a token is a part of; NaN for one of which
    nothing was masked.

    Function words are those of the lists above; open_class is every other word, names of the
    code among them. A chunk that begins or ends inside a word has only a part of it, which
    counts as a word."""
    import bert  # of the run's own code; it is on the path once the trainer is built

    tokenizer = bert.load_tokenizer()
    right, asked = Counter[str](), Counter[str]()
    for batch in ctx.val_dataloader:
        inputs = {key: value.to(ctx.device) for key, value in batch.items()}
        labels = inputs.pop("labels")
        guesses = ctx.model(**inputs).logits.argmax(dim=-1)
        is_asked = labels != -100
        plain = torch.where(is_asked, labels, inputs["input_ids"])
        for ids, *chunk in zip(
            plain.tolist(), is_asked.tolist(), (guesses == labels).tolist(), strict=True
        ):
            classes = word_classes(tokenizer.convert_ids_to_tokens(ids))
            for name, was_asked, was_right in zip(classes, *chunk, strict=True):
                asked[name] += was_asked
                right[name] += was_right
    return {name: right[name] / asked[name] if asked[name] else float("nan") for name in CLASSES}


def word_classes(tokens: Sequence[str]) -> list[str]:
    """The class of the word that each token is a part of.

    tokens: byte pairs of one chunk of lower-case text.
    """
    # In the alphabet of byte pairs Ġ is a blank, and âĢĻ the three bytes of a typographic
    # apostrophe.
    plain = [SPECIAL.sub(" ", one).replace("Ġ", " ").replace("âĢĻ", "'") for one in tokens]
    text = "".join(plain) + " "
    found = [""] * len(text)
    for match in WORD.finditer(text):
        found[match.start() : match.end()] = [word_class(match[0])] * len(match[0])
    starts = accumulate(map(len, plain), initial=0)
    return [found[start + one.startswith(" ")] for start, one in zip(starts, plain, strict=False)]


def word_class(word: str) -> str:
    """Of one match of WORD.

    It's and other contractions count as what stands before the apostrophe.
    """
    if not re.search("[a-z0-9]", word):
        return "punctuation"
    if word.replace("_", "").isdigit():
        return "numbers"
    return CLASS_OF.get(word) or CLASS_OF.get(word.partition("'")[0], "open_class")


@flor.metric(at="step")
def update_ratio(ctx: flor.Context) -> Generator[None, None, torch.Tensor]:
    """Norm of the update over norm of the weights, over all trainable parameters."""
    weights = [p for p in ctx.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    yield
    moved = [p.detach() - old for p, old in zip(weights, before, strict=True)]
    return get_total_norm(moved) / get_total_norm(before)
