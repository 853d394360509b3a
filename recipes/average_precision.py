"""Average precision as COCO defines it, computed by pycocotools; for recipes/yolos.py and
its hooks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

# of the picture's height: the sides of COCO's 32x32 and 96x96 in one of 160 pixels
SMALL, LARGE = (
    1 / 5,
    3 / 5,
)
SIZES = ("all", "small", "medium", "large")
MOST = 100  # found objects of a picture that count, as in COCO


@dataclass(frozen=True)
class Seen:
    """The objects of one picture, or what a detector found in it.

    boxes:   (objects, 4) left, top, width, height, in pixels.
    classes: (objects,) int64.
    scores:  (objects,) the detector's confidence; None for the objects themselves.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """What pycocotools found out.

    A mean over all classes that have such an object; NaN where none has. size: one of SIZES.
    overlap: intersection over union from which a box counts as found; None for the mean over
    .5, .55 .. .95.
    """

    held: COCOeval

    def precision(self, size: str = "all", overlap: float | None = None) -> float:
        """Area under the precision-recall curve."""
        return self._mean(self.held.eval["precision"][:, :, :, SIZES.index(size), 0], overlap)

    def recall(self, size: str = "all", overlap: float | None = None) -> float:
        """Share of the objects that are found by any box, whatever its score."""
        return self._mean(self.held.eval["recall"][:, :, SIZES.index(size), 0], overlap)

    def _mean(self, each: numpy.ndarray, overlap: float | None) -> float:
        """each: (overlaps, ...); -1 for a class that has no such object."""
        if overlap is not None:
            each = each[numpy.isclose(self.held.params.iouThrs, overlap)]
        known = each[each > -1]
        return float(known.mean()) if known.size else float("nan")


def evaluate(truth: Sequence[Seen], found: Sequence[Seen], classes: int, height: int) -> Evaluation:
    """Match what was found with the truth, picture by picture, for each size of SIZES.

    height: of the pictures, in pixels. pycocotools prints how far it is; nobody wants to know.
    """
    with redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": one} for one in range(len(truth))],
            "categories": [{"id": one} for one in range(classes)],
            "annotations": [
                {"id": one + 1, "iscrowd": 0, **row} for one, row in enumerate(rows(truth))
            ],
        }
        known.createIndex()
        evaluation = COCOeval(known, load(known, rows(found)), "bbox")
        evaluation.params.areaRng = areas(height)
        evaluation.params.areaRngLbl = list(SIZES)
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    return Evaluation(evaluation)


def rows(pictures: Sequence[Seen]) -> list[dict[str, object]]:
    """What pycocotools wants to know of each object."""
    made = []
    for index, one in enumerate(pictures):
        boxes, classes = one.boxes.double().tolist(), one.classes.tolist()
        scores = [1.0] * len(boxes) if one.scores is None else one.scores.double().tolist()
        for box, label, score in zip(boxes, classes, scores, strict=True):
            made.append(
                {
                    "image_id": index,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "score": score,
                }
            )
    return made


def load(known: COCO, found: list[dict[str, object]]) -> COCO:
    """COCO.loadRes can't read an empty list."""
    return known.loadRes(found) if found else COCO()


def areas(height: int) -> list[list[float]]:
    """The bounds of the sizes, in square pixels."""
    small, large, most = (SMALL * height) ** 2, (LARGE * height) ** 2, 1e10
    return [[0, most], [0, small], [small, large], [large, most]]
