"""What nobody thought of logging while recipes/clip.yaml was trained."""

from __future__ import annotations

import torch
from torch import Tensor

import flor_plugins as flor

RANKS = (1, 5, 10)


@flor.metric(at="epoch")
def recall_image_to_text(ctx: flor.Context) -> dict[str, float]:
    """Share of the pictures whose own name is among the 1, 5, 10 names that are nearest to them."""
    pictures, captions = embed(ctx)
    return recall(pictures @ captions.T)


@flor.metric(at="epoch")
def recall_text_to_image(ctx: flor.Context) -> dict[str, float]:
    """Share of the names whose own picture is among the 1, 5, 10 pictures that are nearest
    to them.
    """
    pictures, captions = embed(ctx)
    return recall(captions @ pictures.T)


@flor.metric(at="epoch")
def alignment(ctx: flor.Context) -> float:
    """Mean squared distance between a picture and its own name; 0 is best (Wang and Isola 2020)."""
    pictures, captions = embed(ctx)
    return (pictures - captions).square().sum(dim=1).mean().item()


@flor.metric(at="epoch")
def uniformity(ctx: flor.Context) -> dict[str, float]:
    """How evenly each kind lies on the sphere: the lower, the evener; 0 where all are one
    point (same paper).
    """
    pictures, captions = embed(ctx)
    return {"pictures": spread(pictures), "names": spread(captions)}


def embed(ctx: flor.Context) -> tuple[Tensor, Tensor]:
    """Pictures and names of the validation data, each (emoji, dimension) float64, of length
    1, on the CPU.
    """
    found = [ctx.model(*(one.to(ctx.device) for one in batch)) for batch in ctx.val_dataloader]
    pictures, captions = (torch.cat(one).cpu().double() for one in zip(*found, strict=True))
    return pictures, captions


def recall(likeness: Tensor) -> dict[str, float]:
    """likeness: (asked, answers), the right answer of each on the diagonal."""
    better = (likeness > likeness.diagonal().unsqueeze(1)).sum(dim=1)
    return {str(rank): (better < rank).double().mean().item() for rank in RANKS}


def spread(points: Tensor) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different points, d their distance."""
    return torch.pdist(points).square().mul(-2).exp().mean().log().item()
