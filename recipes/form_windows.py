"""Filled forms as tensors for LayoutLMv3: token numbers, places, tags and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from court_forms import Page
from form_tags import TAGS, Box
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # numbered as in the published model
PIECES = 2_000
IGNORED = -100  # the label of a token that no word begins with


class Token(NamedTuple):
    """place: left, top, right, bottom, 0 to 1000 from the page's upper left corner."""

    id: int
    place: tuple[int, int, int, int] = (0, 0, 0, 0)
    label: int = IGNORED


FIRST, PADDING, LAST = (Token(SPECIAL.index(name)) for name in ("<s>", "<pad>", "</s>"))


def train_tokenizer(pages: list[Page]) -> Tokenizer:
    """Byte pairs of the words on the pages; the trainer of WordPieces breaks ties
    differently in each process.
    """
    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    words = (word.text for page in pages for word in page.words)
    trained.train_from_iterator(
        words, vocab_size=PIECES, special_tokens=list(SPECIAL), show_progress=False
    )
    return Tokenizer.from_str(trained.to_str())


def cut(pages: list[Page], tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
    """The pages as windows of whole words, each `<s> ... </s>`, filled up to the length.

    ids, labels: (windows, length) int64. boxes: (windows, length, 4) int64. pages: (windows,)
    int64, rows of pictures: (pages, 3, pixels, pixels) uint8."""
    found = [
        (row, window)
        for row, page in enumerate(pages)
        for window in windows(page, tokenizer, length - 2)
    ]
    framed = [
        [FIRST, *window, LAST, *[PADDING] * (length - 2 - len(window))] for _, window in found
    ]
    return {
        "ids": torch.tensor([[token.id for token in window] for window in framed]),
        "boxes": torch.tensor([[token.place for token in window] for window in framed]),
        "labels": torch.tensor([[token.label for token in window] for window in framed]),
        "pages": torch.tensor([row for row, _ in found]),
        "pictures": torch.stack([page.picture for page in pages]),
    }


def windows(page: Page, tokenizer: Tokenizer, room: int) -> Iterator[list[Token]]:
    """The page's tokens in pieces of at most `room`, no word in two of them; a longer word
    loses its end.
    """
    window: list[Token] = []
    for word in page.words:
        place, label = locate(word.box, page.size), TAGS.index(word.tag)
        first, *rest = tokenizer.encode(word.text).ids[:room]
        tokens = [Token(first, place, label), *(Token(one, place) for one in rest)]
        if len(window) + len(tokens) > room:
            yield window
            window = []
        window += tokens
    if window:
        yield window


def locate(box: Box, size: tuple[float, float]) -> tuple[int, int, int, int]:
    """In thousandths of the page, from its upper left corner."""
    width, height = size
    edges = (box.left / width, 1 - box.top / height, box.right / width, 1 - box.bottom / height)
    left, top, right, bottom = (min(max(round(1000 * edge), 0), 1000) for edge in edges)
    return left, top, right, bottom
