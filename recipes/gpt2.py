"""GPT-2 learns to go on writing Python's own help texts, with the Hugging Face Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import help_topics
import hf_training
import torch
from help_topics import PIECES
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

BETWEEN = "<|endoftext|>"  # stands before each topic
SPECIAL = {"bos_token": BETWEEN, "eos_token": BETWEEN, "unk_token": BETWEEN}


@dataclass(frozen=True)
class Scale:
    """A size of the model. vocabulary: rows of the embedding, of which the text uses PIECES.

    eval_batch_size: in sequences; their logits, (eval_batch_size, length, vocabulary), must fit
    into memory."""

    hidden_size: int
    layers: int
    heads: int
    length: int
    vocabulary: int
    initializer_range: float
    eval_batch_size: int


SCALES = {
    "tiny": Scale(
        128, 2, 2, 64, PIECES, 0.04, 32
    ),  # .04: at .02 so small a model learns little in three epochs
    "full": Scale(
        768, 12, 12, 1024, 50_257, 0.02, 8
    ),  # GPT-2, the smallest of the four that were released
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
    train, validation = load_chunks(load_tokenizer(), size.length)
    set_seed(seed)  # before the model: Trainer seeds only after its weights are drawn
    return Writer(
        model=build_model(size, hidden_size or size.hidden_size),
        args=hf_training.arguments(
            "gpt2",
            scale=scale,
            epochs=epochs,
            batch_size=batch_size,
            per_device_eval_batch_size=size.eval_batch_size,
            learning_rate=learning_rate,
            warmup_steps=20,
            prediction_loss_only=True,
            seed=seed,
        ),
        train_dataset=Chunks(train),
        eval_dataset=Chunks(validation),
    )


class Writer(Trainer):
    """Logs the perplexity of the validation text beside its loss."""

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        # Not in `evaluate`: that has logged its metrics when it returns.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = torch.tensor(output.metrics[f"{metric_key_prefix}_loss"], dtype=torch.float64)
        output.metrics[f"{metric_key_prefix}_perplexity"] = loss.exp().item()
        return output


def build_model(size: Scale, hidden_size: int) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.length,
            n_embd=hidden_size,
            n_layer=size.layers,
            n_head=size.heads,
            initializer_range=size.initializer_range,
            bos_token_id=0,  # BETWEEN is the first piece
            eos_token_id=0,
        )
    )
    # transformers finds no loss for this class name and takes this one anyway; but then Trainer
    # divides by all tokens of a batch, not by those that are predicted: training losses would
    # be 1/64 smaller than those of `evaluate`.
    model.loss_type = "ForCausalLM"
    return model


class Chunks(Dataset[dict[str, Tensor]]):
    """Pieces of text, (chunks, length) int64; the model itself shifts the labels by one."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary of the text."""
    return help_topics.load_tokenizer(
        __file__, help_topics.load_passages(), SPECIAL, lowercase=False
    )


def load_chunks(tokenizer: PreTrainedTokenizerFast, length: int) -> tuple[Tensor, Tensor]:
    """The text as (chunks, length) int64, one piece after the other: training, validation."""
    texts = help_topics.load_passages()
    return help_topics.load_chunks(__file__, texts, length, lambda: cut(texts, tokenizer, length))


def cut(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
    first = tokenizer.bos_token_id
    ids = list(
        chain.from_iterable(
            [first, *tokenizer.encode(one, add_special_tokens=False)] for one in texts
        )
    )
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
