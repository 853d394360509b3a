"""What nobody thought of logging while recipes/resnet152.yaml was trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import flor_plugins as flor

DIGITS = 10
BINS = 15  # of the confidence, as in Guo et al. 2017


@flor.metric(at="epoch")
def cf_matrix(ctx: flor.Context) -> list[list[int]]:
    """How often each digit (row) was read as each digit (column), over the validation data."""
    return confusion(ctx).tolist()


@flor.metric(at="epoch")
def accuracy(ctx: flor.Context) -> float:
    """Share of the validation data that was read rightly."""
    found = confusion(ctx)
    return found.trace().item() / found.sum().item()


@flor.metric(at="epoch")
def calibration_error(ctx: flor.Context) -> float:
    """Expected calibration error (Guo et al. 2017): the mean gap between confidence and
    accuracy, 0 at best.

    The confidence is the probability of the digit that was read. The gap is that of the
    validation data in a bin of the confidence, weighted by how many fall into it."""
    gaps, total = torch.zeros(BINS, dtype=torch.float64), 0
    for logits, labels in readings(ctx):
        confidence, digits = logits.double().softmax(dim=1).max(dim=1)
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin holds its upper edge
        gaps += torch.bincount(
            bins, weights=(digits == labels).double() - confidence, minlength=BINS
        )
        total += len(labels)
    return gaps.abs().sum().item() / total


def confusion(ctx: flor.Context) -> torch.Tensor:
    """(digit, reading) int64, on the CPU."""
    found = torch.zeros(DIGITS * DIGITS, dtype=torch.int64)
    for logits, labels in readings(ctx):
        found += torch.bincount(labels * DIGITS + logits.argmax(dim=1), minlength=DIGITS * DIGITS)
    return found.view(DIGITS, DIGITS)


def readings(ctx: flor.Context) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The validation data by batches: logits (batch, digit) float32, labels (batch,) int64;
    on the CPU.
    """
    for images, labels in ctx.val_dataloader:
        yield ctx.model(images.to(ctx.device)).cpu(), labels.cpu()
