"""LayoutLMv3 learns to read filled court forms, with the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import court_forms
import form_tags
import form_windows
import hf_training
import made_up
import numpy
import prepared
import torch
from court_forms import Page
from form_tags import TAGS
from form_windows import IGNORED, PADDING, PIECES
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    LayoutLMv3Config,
    LayoutLMv3ForTokenClassification,
    Trainer,
    set_seed,
)

HELD_OUT = 5  # every fifth page is validation; other pages of the same form may be training
PARTS = ("train_", "validation_")


@dataclass(frozen=True)
class Scale:
    """A size of the model and of its pictures. length: tokens of a window. vocabulary: rows, of
    which PIECES are used.

    fillings: how often each training form is filled. coordinate, shape: widths of the parts of
    a place's embedding; four of the one and two of the other make hidden_size."""

    hidden_size: int
    layers: int
    heads: int
    coordinate: int
    shape: int
    length: int
    pixels: int
    vocabulary: int
    fillings: int


SCALES = {
    "tiny": Scale(128, 3, 4, 20, 24, 160, 112, PIECES, 2),
    "full": Scale(768, 12, 12, 128, 128, 512, 224, 50_265, 8),  # LayoutLMv3-base
}


def build_trainer(
    *,
    epochs: int = 3,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    layers: int | None = None,
    scale: str = "tiny",
    seed: int = 1,
) -> Trainer:
    """A Trainer that is ready to train. layers: None for those of the scale."""
    if scale == "tiny":
        # a second thread makes so small a model slower beside another process
        torch.set_num_threads(1)
    size = SCALES[scale]
    train, validation = load_windows(size)
    set_seed(seed)  # before the model: Trainer seeds only after its weights are drawn
    return Trainer(
        model=build_model(size, layers or size.layers),
        args=hf_training.arguments(
            "layoutlmv3",
            scale=scale,
            epochs=epochs,
            batch_size=batch_size,
            per_device_eval_batch_size=16,
            learning_rate=learning_rate,
            warmup_steps=20,
            seed=seed,
        ),
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=entity_scores,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
    )


def build_model(size: Scale, layers: int) -> LayoutLMv3ForTokenClassification:
    return LayoutLMv3ForTokenClassification(
        LayoutLMv3Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.hidden_size,
            max_position_embeddings=size.length + 2,  # positions are counted from <pad>'s number on
            coordinate_size=size.coordinate,
            shape_size=size.shape,
            input_size=size.pixels,
            num_labels=len(TAGS),
            id2label=dict(enumerate(TAGS)),
            label2id={tag: index for index, tag in enumerate(TAGS)},
        )
    )


class Windows(Dataset[dict[str, Tensor]]):
    """Pieces of pages, each with its page's picture. held: as form_windows.cut made it."""

    def __init__(self, held: dict[str, Tensor]) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held["ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.held["ids"][index]
        return {
            "input_ids": ids,
            "attention_mask": (ids != PADDING.id).long(),
            "bbox": self.held["boxes"][index],
            "pixel_values": self.held["pictures"][self.held["pages"][index]].float() / 127.5 - 1,
            "labels": self.held["labels"][index],
        }


def entity_scores(found: EvalPrediction) -> dict[str, float]:
    """Precision, recall and F1 of entities: right are those of the right kind from the first
    word to the last.
    """
    pairs = list(zip(found.label_ids, found.predictions, strict=True))
    true = {
        (index, *one)
        for index, (labels, _) in enumerate(pairs)
        for one in spans(labels[labels != IGNORED])
    }
    guessed = {
        (index, *one)
        for index, (labels, guess) in enumerate(pairs)
        for one in spans(guess[labels != IGNORED])
    }
    right = len(true & guessed)
    return {
        "precision": right / max(len(guessed), 1),
        "recall": right / max(len(true), 1),
        "f1": 2 * right / max(len(true) + len(guessed), 1),
    }


def spans(tags: numpy.ndarray) -> Iterator[tuple[str, int, int]]:
    """The entities of a sequence of words: kind, first word, word after the last. tags:
    (words,) int.

    As in seqeval: an I- tag that continues nothing begins an entity, too.
    """
    kind, start = "", 0
    for index, tag in enumerate([*(TAGS[one] for one in tags), "O"]):
        mark, _, this = tag.partition("-")
        if kind and (mark != "I" or this != kind):
            yield kind, start, index
            kind = ""
        if this and not kind:
            kind, start = this, index


def load_windows(size: Scale) -> tuple[Windows, Windows]:
    """The filled forms: training, validation. Prepared on first use and cached."""
    path = (
        prepared.folder("layoutlmv3")
        / f"windows-{size.length}-{size.pixels}-{size.fillings}-{digest()}.safetensors"
    )
    held = prepared.tensors(path, lambda: prepare(size))
    parts = [
        {key.removeprefix(part): one for key, one in held.items() if key.startswith(part)}
        for part in PARTS
    ]
    return Windows(parts[0]), Windows(parts[1])


def prepare(size: Scale) -> dict[str, Tensor]:
    train: list[Page] = []
    validation: list[Page] = []
    for filling in range(size.fillings):
        for index, page in enumerate(fill_all(filling, size.pixels)):
            if index % HELD_OUT != HELD_OUT - 1:
                train.append(page)
            elif filling == 0:
                validation.append(page)
    tokenizer = form_windows.train_tokenizer(train)
    return {
        part + key: one
        for part, pages in zip(PARTS, (train, validation), strict=True)
        for key, one in form_windows.cut(pages, tokenizer, size.length).items()
    }


def fill_all(filling: int, pixels: int) -> Iterator[Page]:
    for form in court_forms.list_forms():
        yield from court_forms.fill(form, filling=filling, pixels=pixels)


def digest() -> str:
    """Changes with all that the prepared windows depend on: the forms, the code, the
    packages that fill and draw.
    """
    modules = [court_forms, form_tags, form_windows, made_up]
    code = [
        Path(str(path)).read_text(encoding="utf-8")
        for path in (__file__, *(one.__file__ for one in modules))
    ]
    versions = [
        version(name) for name in (*court_forms.SOURCES, "faker", "pypdfium2", "tokenizers")
    ]
    return prepared.digest(*code, *versions)
