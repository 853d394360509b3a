"""What nobody thought of logging while recipes/layoutlmv3.yaml was trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import flor_plugins as flor

IGNORED = -100
KINDS = ("O", "HEADER", "QUESTION", "ANSWER")
BINS = 10

Span = tuple[str, int, int]  # kind, first word, word after the last


@flor.metric(at="epoch")
def f1_by_label(ctx: flor.Context) -> dict[str, float]:
    """F1 of whole entities of each kind, over the validation forms."""
    true: set[tuple[int, Span]] = set()
    guessed: set[tuple[int, Span]] = set()
    for index, (probabilities, labels) in enumerate(windows(ctx)):
        true |= {(index, one) for one in spans(tags(ctx, labels))}
        guessed |= {(index, one) for one in spans(tags(ctx, probabilities.argmax(dim=1)))}
    return {kind: f1(*(select(found, kind) for found in (true, guessed))) for kind in KINDS[1:]}


@flor.metric(at="epoch")
def kind_confusion(ctx: flor.Context) -> list[list[int]]:
    """How often a word of each kind (row) was read as each kind (column): O, HEADER,
    QUESTION, ANSWER.
    """
    kinds = torch.tensor(
        [KINDS.index(kind_of(tag)) for _, tag in sorted(ctx.model.config.id2label.items())]
    )
    found = torch.zeros(len(KINDS) ** 2, dtype=torch.int64)
    for probabilities, labels in windows(ctx):
        guesses = kinds[probabilities.argmax(dim=1)]
        found += torch.bincount(kinds[labels] * len(KINDS) + guesses, minlength=len(found))
    return found.view(len(KINDS), len(KINDS)).tolist()


@flor.metric(at="epoch")
def calibration_error(ctx: flor.Context) -> float:
    """How far the model's certainty about a word's tag is from its being right, on average
    over BINS of certainty.
    """
    certain, right = [], []
    for probabilities, labels in windows(ctx):
        most, guesses = probabilities.max(dim=1)
        certain.append(most)
        right.append((guesses == labels).double())
    certainty, is_right = torch.cat(certain), torch.cat(right)
    bins = (certainty * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, certainty - is_right)
    return gaps.abs().sum().item() / len(certainty)


def windows(ctx: flor.Context) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Per piece of a page: probabilities (words, tags) float64 and labels (words,) int64, on
    the CPU.
    """
    for batch in ctx.val_dataloader:
        inputs = {key: value.to(ctx.device) for key, value in batch.items()}
        asked = inputs.pop("labels").cpu()
        found = ctx.model(**inputs).logits.double().softmax(dim=-1).cpu()
        for probabilities, labels in zip(found, asked, strict=True):
            is_word = labels != IGNORED
            yield probabilities[is_word], labels[is_word]


def tags(ctx: flor.Context, numbers: torch.Tensor) -> list[str]:
    return [ctx.model.config.id2label[number] for number in numbers.tolist()]


def spans(found: list[str]) -> Iterator[Span]:
    """The entities of a sequence of tags; an I- that continues nothing begins one, too, as
    in seqeval.
    """
    begins = [
        index
        for index, tag in enumerate(found)
        if tag[0] == "B"
        or (tag[0] == "I" and (index == 0 or kind_of(found[index - 1]) != kind_of(tag)))
    ]
    for begin in begins:
        end = begin + 1
        while end < len(found) and found[end] == f"I-{kind_of(found[begin])}":
            end += 1
        yield kind_of(found[begin]), begin, end


def kind_of(tag: str) -> str:
    return tag.partition("-")[2] or "O"


def select(found: set[tuple[int, Span]], kind: str) -> set[tuple[int, Span]]:
    return {one for one in found if one[1][0] == kind}


def f1(true: set[tuple[int, Span]], guessed: set[tuple[int, Span]]) -> float:
    return 2 * len(true & guessed) / max(len(true) + len(guessed), 1)
