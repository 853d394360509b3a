"""What nobody thought of logging while recipes/resnet152.yaml was trained."""

from __future__ import annotations

import torch

import flor_plugins as flor

DIGITS = 10


@flor.metric(at="epoch")
def cf_matrix(ctx: flor.Context) -> list[list[int]]:
    """How often each digit (row) was read as each digit (column), over the validation data."""
    return confusion(ctx).tolist()


@flor.metric(at="epoch")
def accuracy(ctx: flor.Context) -> float:
    """Share of the validation data that was read rightly."""
    found = confusion(ctx)
    return found.trace().item() / found.sum().item()


def confusion(ctx: flor.Context) -> torch.Tensor:
    """(digit, reading) int64, on the CPU."""
    found = torch.zeros(DIGITS * DIGITS, dtype=torch.int64)
    for images, labels in ctx.val_dataloader:
        readings = ctx.model(images.to(ctx.device)).argmax(dim=1).cpu()
        found += torch.bincount(labels.cpu() * DIGITS + readings, minlength=DIGITS * DIGITS)
    return found.view(DIGITS, DIGITS)
