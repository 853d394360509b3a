"""What nobody thought of logging while recipes/yolos.yaml was trained."""

from __future__ import annotations

from typing import Any

import average_precision  # beside the recipe, whose folder is the first place of imports
from average_precision import Seen

import flor_plugins as flor


@flor.metric(at="epoch")
def ap_by_size(ctx: flor.Context) -> dict[str, float]:
    """Average precision on small, medium and large objects of the validation pictures.

    COCO's bounds, 32x32 and 96x96 pixels, taken in a picture of 256 pixels and scaled to the height of these:
    an eighth and three eighths of it. In COCO's own pictures (about 480 high) the bounds are smaller shares;
    at 64 pixels a small object would be one of 4, which shows nothing.
    """
    truth, found = detect(ctx)
    evaluation = average_precision.evaluate(truth, found, ctx.model.classes, ctx.model.height)
    return {size: average_precision.precision(evaluation, size) for size in average_precision.SIZES[1:]}


@flor.metric(at="epoch")
def recall_by_count(ctx: flor.Context) -> dict[str, float]:
    """Share of the objects that some box meets by half or more, for pictures of one object, of two, and so on."""
    truth, found = detect(ctx)
    counts = sorted({len(one.boxes) for one in truth})
    return {str(count): recall_at(count, truth, found, ctx.model) for count in counts}


def recall_at(count: int, truth: list[Seen], found: list[Seen], model: Any) -> float:
    pairs = [one for one in zip(truth, found, strict=True) if len(one[0].boxes) == count]
    its_truth, its_found = zip(*pairs, strict=True)
    evaluation = average_precision.evaluate(its_truth, its_found, model.classes, model.height)
    return average_precision.recall(evaluation, overlap=0.5)


def detect(ctx: flor.Context) -> tuple[list[Seen], list[Seen]]:
    """The objects of the validation pictures, and what the model finds in them."""
    truth: list[Seen] = []
    found: list[Seen] = []
    for pictures, objects in ctx.val_dataloader:
        truth += ctx.model.read(objects)
        found += ctx.model(pictures.to(ctx.device))
    return truth, found
