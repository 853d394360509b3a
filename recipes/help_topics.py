"""Python's help topics, for recipes that learn a language: real English that comes with Python,
nothing to download.

A function's `file` is the recipe's (its `__file__`): prepared data is kept under its name and
changes with its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import prepared
import tokenizers
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PIECES = 2_000
HELD_OUT = 10  # every tenth chunk is validation


def load_lines() -> list[str]:
    """The topics in the order of their names, each as one long line."""
    return [" ".join(topics[name].split()) for name in sorted(topics)]


def load_passages() -> list[str]:
    """The topics in the order of their names, a paragraph a line; what several topics have
    stands in the first.

    Many topics quote others. With repetitions, much of the validation text would be in the
    training text, too."""
    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        paragraphs = [" ".join(one.split()) for one in topics[name].split("\n\n")]
        new = [one for one in dict.fromkeys(paragraphs) if one and one not in seen]
        seen.update(new)
        found.append("\n".join(new))
    return [one for one in found if one]


def load_tokenizer(
    file: str, texts: Sequence[str], special: Mapping[str, str], *, lowercase: bool
) -> PreTrainedTokenizerFast:
    """The vocabulary of the texts, trained on first use and cached. special: its first pieces,
    by role (`unk_token`).

    Byte pairs, not WordPieces: the trainer of those breaks ties differently in each process,
    and a run must find the same vocabulary again when its cache is gone.
    """
    path = prepared.folder(Path(file).stem) / f"byte-pairs-{PIECES}-{digest(file, texts)}.json"
    held = prepared.text(
        path, lambda: train_byte_pairs(texts, list(dict.fromkeys(special.values())), lowercase)
    )
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(held), **special)


def train_byte_pairs(texts: Sequence[str], special: list[str], lowercase: bool) -> str:
    """The vocabulary as the JSON text of `tokenizers`."""
    trained = ByteLevelBPETokenizer(lowercase=lowercase, add_prefix_space=True)
    trained.train_from_iterator(
        texts, vocab_size=PIECES, special_tokens=special, show_progress=False
    )
    return trained.to_str()


def load_chunks(
    file: str, texts: Sequence[str], length: int, cut: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """What `cut` makes of the texts, (chunks, length) int64, made on first use and cached:
    training, validation.
    """
    path = (
        prepared.folder(Path(file).stem)
        / f"chunks-{PIECES}-{length}-{digest(file, texts)}.safetensors"
    )
    chunks = prepared.tensors(path, lambda: {"chunks": cut()})["chunks"]
    held_out = torch.arange(len(chunks)) % HELD_OUT == HELD_OUT - 1
    return chunks[~held_out], chunks[held_out]


def digest(file: str, texts: Sequence[str]) -> str:
    """Changes with all that the prepared files depend on: the texts, the recipe's code and
    this, `tokenizers`.
    """
    code = [Path(one).read_text(encoding="utf-8") for one in (file, __file__)]
    return prepared.digest(*texts, *code, tokenizers.__version__)
