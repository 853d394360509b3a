"""What nobody thought of logging while recipes/bert.yaml was trained."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch.nn.utils import get_total_norm

import flor_plugins as flor


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


@flor.metric(at="step")
def update_ratio(ctx: flor.Context) -> Generator[None, None, torch.Tensor]:
    """Norm of the update over norm of the weights, over all trainable parameters."""
    weights = [p for p in ctx.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    yield
    moved = [p.detach() - old for p, old in zip(weights, before, strict=True)]
    return get_total_norm(moved) / get_total_norm(before)
