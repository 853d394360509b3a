"""BERT learns to fill in masked words of Python's own help texts, with the Hugging Face Trainer."""

from __future__ import annotations

from dataclasses import dataclass

import help_topics
import hf_training
import torch
from help_topics import PIECES
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
           "mask_token": "[MASK]"}  # fmt: skip
IGNORED = -100  # the label of a token that is not asked for


@dataclass(frozen=True)
class Scale:
    """A size of the model. vocabulary: rows of the embedding, of which the text uses PIECES."""

    hidden_size: int
    layers: int
    heads: int
    length: int
    vocabulary: int
    initializer_range: float


SCALES = {
    "tiny": Scale(
        96, 2, 2, 32, PIECES, 0.06
    ),  # .06: at .02 so small a model learns nothing in three epochs
    "full": Scale(768, 12, 12, 128, 30_522, 0.02),  # BERT-base
}


def build_trainer(
    *,
    epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    hidden_size: int | None = None,
    scale: str = "tiny",
    seed: int = 1,
) -> Trainer:
    """A Trainer that is ready to train. hidden_size: None for the one of the scale."""
    if scale == "tiny":
        torch.set_num_threads(
            1
        )  # a second thread makes so small a model slower beside another process
    size = SCALES[scale]
    tokenizer = load_tokenizer()
    train, validation = load_chunks(tokenizer, size.length)
    set_seed(seed)  # before the model: Trainer seeds only after its weights are drawn
    return Trainer(
        model=build_model(size, hidden_size or size.hidden_size),
        args=hf_training.arguments(
            "bert",
            scale=scale,
            epochs=epochs,
            batch_size=batch_size,
            per_device_eval_batch_size=64,
            learning_rate=learning_rate,
            warmup_steps=40,
            prediction_loss_only=True,
            seed=seed,
        ),
        data_collator=Masker(tokenizer),
        train_dataset=Chunks(train),
        eval_dataset=Chunks(
            validation, *mask(validation, tokenizer, torch.Generator().manual_seed(0))
        ),
    )


def build_model(size: Scale, hidden_size: int) -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=size.vocabulary,
            hidden_size=hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=size.length,
            initializer_range=size.initializer_range,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    )


class Chunks(Dataset[dict[str, Tensor]]):
    """Pieces of text; with labels where they were masked once and for all (validation).

    plain, masked, labels: (chunks, length) int64.
    """

    def __init__(
        self, plain: Tensor, masked: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        self.ids = plain if masked is None else masked
        self.labels = labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        found = {"input_ids": self.ids[index]}
        return found if self.labels is None else found | {"labels": self.labels[index]}


class Masker:
    """Makes a batch; masks the chunks that have no labels yet anew each time (training)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
        if "labels" not in batch:
            batch["input_ids"], batch["labels"] = mask(batch["input_ids"], self.tokenizer)
        return batch


def mask(
    ids: Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """BERT's rule: 15 % are asked for; of those 80 % read [MASK], 10 % another token, 10 % stay.

    ids: (chunks, length) int64. Returns ids and labels of the same shape.
    generator: None for torch's global one.
    """
    is_word = ids >= len(SPECIAL)  # the special tokens are the first ones of the vocabulary
    asked = (torch.rand(ids.shape, generator=generator) < 0.15) & is_word
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), PIECES, ids.shape, generator=generator)
    masked = torch.where(asked & (fate < 0.8), tokenizer.mask_token_id, ids)
    masked = torch.where(asked & (fate >= 0.9), other, masked)
    return masked, torch.where(asked, ids, IGNORED)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary of the text."""
    return help_topics.load_tokenizer(__file__, help_topics.load_lines(), SPECIAL, lowercase=True)


def load_chunks(tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[Tensor, Tensor]:
    """The text as (chunks, length) int64, each `[CLS] ... [SEP]`: training, validation."""
    texts = help_topics.load_lines()
    return help_topics.load_chunks(__file__, texts, length, lambda: cut(texts, tokenizer, length))


def cut(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
    ids = [one for text in texts for one in tokenizer.encode(text, add_special_tokens=False)]
    inner = length - 2
    starts = range(0, len(ids) - inner + 1, inner)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return torch.tensor([[first, *ids[start : start + inner], last] for start in starts])
