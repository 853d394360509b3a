"""What nobody thought of logging while recipes/yolos.yaml was trained."""

from __future__ import annotations

from typing import Any

import flor_plugins as flor

SIZES = ("small", "medium", "large")


@flor.metric(at="epoch")
def ap_by_size(ctx: flor.Context) -> dict[str, float]:
    """Average precision on small, medium and large objects of the validation pictures.

    COCO's bounds, 32x32 and 96x96 pixels, taken in a picture of 160 pixels and scaled to the
    height of these: squares of a fifth and of three fifths of it. In COCO's own pictures (about
    480 high) the bounds are smaller shares; at 64 pixels a small object would be one of 4,
    which shows nothing."""
    evaluation = ctx.model.evaluate(*detect(ctx))
    return {size: evaluation.precision(size) for size in SIZES}


@flor.metric(at="epoch")
def recall_by_count(ctx: flor.Context) -> dict[str, float]:
    """Share of the objects that some box meets by half or more, for pictures of one object,
    of two, and so on.
    """
    truth, found = detect(ctx)
    recalls = {}
    for count in sorted({len(one.boxes) for one in truth}):
        pairs = [pair for pair in zip(truth, found, strict=True) if len(pair[0].boxes) == count]
        recalls[str(count)] = ctx.model.evaluate(*zip(*pairs, strict=True)).recall(overlap=0.5)
    return recalls


def detect(ctx: flor.Context) -> tuple[list[Any], list[Any]]:
    """The objects of the validation pictures, and what the model finds in them."""
    truth: list[Any] = []
    found: list[Any] = []
    for pictures, objects in ctx.val_dataloader:
        truth += ctx.model.read(objects)
        found += ctx.model(pictures.to(ctx.device))
    return truth, found
