"""What nobody thought of logging while recipes/tapas.yaml was trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import flor_plugins as flor

# as recipes/tapas.py numbers them
KINDS = (
    "look_up",
    "reverse_look_up",
    "extreme",
    "count",
    "sum_or_average",
)
OPERATORS = ("NONE", "SUM", "AVERAGE", "COUNT")


@flor.metric(at="epoch")
def accuracy_by_kind(ctx: flor.Context) -> dict[str, float]:
    """Share of right answers among the validation questions of each kind."""
    right, asked = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    for batch, logits, operators in readings(ctx):
        right += torch.bincount(
            batch["kind"], weights=is_right(batch, logits, operators), minlength=len(KINDS)
        )
        asked += torch.bincount(batch["kind"], minlength=len(KINDS))
    return dict(zip(KINDS, (right / asked).tolist(), strict=True))


@flor.metric(at="epoch")
def operator_recall(ctx: flor.Context) -> dict[str, float]:
    """Of the questions that need an operator, the share for which the model chose it; NONE:
    the answer is a cell.
    """
    chosen, needed = torch.zeros(len(OPERATORS)), torch.zeros(len(OPERATORS))
    for batch, _, operators in readings(ctx):
        labels = batch["aggregation_labels"]
        chosen += torch.bincount(labels[operators == labels], minlength=len(OPERATORS))
        needed += torch.bincount(labels, minlength=len(OPERATORS))
    return dict(zip(OPERATORS, (chosen / needed).tolist(), strict=True))


def readings(ctx: flor.Context) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Batches of the validation questions with logits: (batch, length) and operators:
    (batch,); all on the CPU.
    """
    for batch in ctx.val_dataloader:
        found = ctx.model(**{key: value.to(ctx.device) for key, value in batch.items()})
        answers = {key: value.cpu() for key, value in batch.items()}
        yield answers, found.logits.cpu(), found.logits_aggregation.argmax(dim=1).cpu()


def is_right(batch: dict[str, Tensor], logits: Tensor, operators: Tensor) -> Tensor:
    """(batch,) float32: 1 where the model gave the very cells, or, of a sum, average or
    count, the number.
    """
    # a cell of several tokens counts once
    is_chosen, sizes = (
        logits > 0,
        batch["numeric_values_scale"],
    )
    cells = (is_chosen / sizes).sum(dim=1)
    total = torch.where(is_chosen, batch["numeric_values"] / sizes, 0).sum(dim=1)
    given = torch.stack([torch.full_like(total, torch.nan), total, total / cells, cells])
    number = given.gather(0, operators[None])[0]
    return torch.where(
        batch["aggregation_labels"] == OPERATORS.index("NONE"),
        (operators == OPERATORS.index("NONE")) & (is_chosen == batch["labels"]).all(dim=1),
        torch.isclose(number, batch["float_answer"], rtol=1e-5, atol=0),
    ).float()
