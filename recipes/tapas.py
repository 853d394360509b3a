"""TAPAS learns to answer questions about tables, with the Hugging Face Trainer."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import hf_training
import numpy as np
import pandas as pd
import prepared
import table_questions
import torch
import transformers
from table_questions import KINDS, OPERATORS, Question
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    TapasConfig,
    TapasForQuestionAnswering,
    TapasTokenizer,
    Trainer,
    set_seed,
)
from transformers.models.tapas.tokenization_tapas import BasicTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]"]
VOCABULARY = 1_600  # at most
TRAINING, VALIDATION = 4_000, 400  # questions
# What TAPAS calls the parts of a right answer; Trainer hands them to `compute_metrics`, in this
# order.
ANSWER = ["labels", "aggregation_labels", "float_answer", "numeric_values", "numeric_values_scale"]


@dataclass(frozen=True)
class Scale:
    """A size of the model and of its tables.

    vocabulary: rows of the embedding, of which the texts use VOCABULARY. row_spread: a factor
    on the embeddings of the row numbers. rows, columns: at most, the key among them. places:
    numbers that a row, column or rank can have."""

    hidden_size: int
    layers: int
    heads: int
    length: int
    vocabulary: int
    initializer_range: float
    row_spread: float
    dropout: float
    rows: int
    columns: int
    places: int


SCALES = {
    "tiny": Scale(
        hidden_size=64,
        layers=3,
        heads=4,
        length=72,
        vocabulary=VOCABULARY,
        initializer_range=0.1,  # at .02 so small a model learns nothing in three epochs
        row_spread=4.0,
        dropout=0.0,
        rows=5,
        columns=3,
        places=8,
    ),
    "full": Scale(  # TAPAS-base
        hidden_size=768,
        layers=12,
        heads=12,
        length=512,
        vocabulary=30_522,
        initializer_range=0.02,
        row_spread=1.0,
        dropout=0.1,
        rows=20,
        columns=6,
        places=256,
    ),
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
        # a second thread makes so small a model slower beside another process
        torch.set_num_threads(1)
    size = SCALES[scale]
    training, validation = load_questions(size)
    set_seed(seed)  # before the model: Trainer seeds only after its weights are drawn
    return Trainer(
        model=build_model(size, hidden_size or size.hidden_size),
        args=hf_training.arguments(
            "tapas",
            scale=scale,
            epochs=epochs,
            batch_size=batch_size,
            per_device_eval_batch_size=64,
            learning_rate=learning_rate,
            warmup_steps=40,
            label_names=ANSWER,
            # the kind of a question is for metrics; the model passes it over
            remove_unused_columns=False,
            seed=seed,
        ),
        train_dataset=Questions(training),
        eval_dataset=Questions(validation),
        compute_metrics=compute_accuracy,
    )


def build_model(size: Scale, hidden_size: int) -> TapasForQuestionAnswering:
    model = TapasForQuestionAnswering(
        TapasConfig(
            vocab_size=size.vocabulary,
            hidden_size=hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=2 * size.length,
            type_vocab_sizes=(3, size.places, size.places, 2, size.places, size.places, 10),
            max_num_rows=min(64, size.places),
            max_num_columns=min(32, size.places),
            initializer_range=size.initializer_range,
            hidden_dropout_prob=size.dropout,
            attention_probs_dropout_prob=size.dropout,
            num_aggregation_labels=len(OPERATORS),
        )
    )
    with torch.no_grad():
        # Closer together, rows are told apart by so small a model only after six epochs.
        model.tapas.embeddings.token_type_embeddings_2.weight.mul_(size.row_spread)
    return model


class Questions(Dataset[dict[str, Tensor]]):
    """Questions with their tables and answers, encoded; one row of each tensor is a question."""

    def __init__(self, encoded: dict[str, Tensor]) -> None:
        self.encoded = {
            key: value if value.is_floating_point() else value.long()
            for key, value in encoded.items()
        }

    def __len__(self) -> int:
        return len(self.encoded["kind"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.encoded.items()}


def compute_accuracy(found: EvalPrediction) -> dict[str, float]:
    """Share of the questions with the right answer: the very cells, or, of a sum, average or
    count, the number.
    """
    (logits, operator_logits), answer = found.predictions, found.label_ids
    labels, operators, numbers, values, sizes = answer
    is_chosen, operator = logits > 0, operator_logits.argmax(axis=1)
    cells = (is_chosen / sizes).sum(axis=1)  # a cell's tokens are chosen together
    total = np.where(is_chosen, values / sizes, 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        number = np.choose(operator, [np.full_like(total, np.nan), total, total / cells, cells])
    is_right = np.where(
        operators == OPERATORS.index("NONE"),
        (operator == operators) & (is_chosen == labels).all(axis=1),
        np.isclose(number, numbers, rtol=1e-5, atol=0),
    )
    return {"accuracy": float(is_right.mean())}


def load_questions(size: Scale) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoded questions for training and for validation, made on first use and cached."""
    name = f"questions-{size.length}-{size.rows}-{size.columns}-{digest()}.safetensors"
    held = prepared.tensors(prepared.folder("tapas") / name, lambda: make_questions(size))
    parts = {
        key.removeprefix("training."): value
        for key, value in held.items()
        if key.startswith("training.")
    }
    return parts, {key.removeprefix("validation."): held[f"validation.{key}"] for key in parts}


def make_questions(size: Scale) -> dict[str, Tensor]:
    """The tensors of both parts, `training.NAME` and `validation.NAME`; questions that are
    too long are left out.
    """
    shape = {"rows": size.rows, "columns": size.columns}
    asked = {
        "training": table_questions.ask(TRAINING, held_out=False, seed=0, **shape),
        "validation": table_questions.ask(VALIDATION, held_out=True, seed=1, **shape),
    }
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"  # TapasTokenizer reads none but a file
        vocabulary.write_text(
            "\n".join(make_vocabulary(asked["training"])) + "\n", encoding="utf-8"
        )
        tokenizer = TapasTokenizer(str(vocabulary))
        return {
            f"{part}.{key}": value
            for part, questions in asked.items()
            for key, value in encode(questions, tokenizer, size.length).items()
        }


def make_vocabulary(questions: Iterable[Question]) -> list[str]:
    """Single characters, then the commonest words of the tables and templates.

    Counted, not trained: the trainer of WordPieces breaks ties differently in each process.
    """
    basic = BasicTokenizer()
    counts = Counter(
        word for text in table_questions.words(questions) for word in basic.tokenize(text)
    )
    characters = sorted(set("".join(counts)) | set("0123456789"))
    pieces = [*SPECIAL, *characters, *(f"##{one}" for one in characters)]
    common = sorted(counts.keys() - set(pieces), key=lambda word: (-counts[word], word))
    return [*pieces, *common][:VOCABULARY]


def encode(
    questions: Iterable[Question], tokenizer: TapasTokenizer, length: int
) -> dict[str, Tensor]:
    """Those that fit into the length, as the model takes them.

    Whole numbers are kept as int16, others as float32.
    """
    found = [
        encode_one(one, tokenizer, length) for one in questions if fits(one, tokenizer, length)
    ]
    columns = {key: torch.stack([one[key] for one in found]) for key in found[0]}
    return {
        key: value.float() if value.is_floating_point() else value.short()
        for key, value in columns.items()
    }


def fits(question: Question, tokenizer: TapasTokenizer, length: int) -> bool:
    # CLS, SEP
    return (
        2 + sum(len(tokenizer.tokenize(text)) for text in table_questions.words([question]))
        <= length
    )


def encode_one(question: Question, tokenizer: TapasTokenizer, length: int) -> dict[str, Tensor]:
    table = question.table
    encoded = tokenizer(
        table=pd.DataFrame(list(table.rows), columns=list(table.columns), dtype=object),
        queries=question.text,
        answer_coordinates=list(question.cells),
        answer_text=[table.rows[row][column] for row, column in question.cells],
        padding="max_length",
        max_length=length,
        return_tensors="pt",
    )
    return {key: value[0] for key, value in encoded.items()} | {
        "aggregation_labels": torch.tensor(OPERATORS.index(question.operator)),
        "float_answer": torch.tensor(float("nan") if question.number is None else question.number),
        "kind": torch.tensor(KINDS.index(question.kind)),
    }


def digest() -> str:
    """Changes with all that the prepared questions depend on: the tables, this code, the
    tokenizer.
    """
    tables = [str(table_questions.load(one)) for one in table_questions.SOURCES]
    code = [Path(one).read_text(encoding="utf-8") for one in (__file__, table_questions.__file__)]
    return prepared.digest(*tables, *code, transformers.__version__, pd.__version__)
