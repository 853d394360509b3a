"""The recipe yolos: pictures with their boxes, and average precision against another way to
compute it.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import torch
from replaying import Project, rows_of
from torch import Tensor

from flor_plugins.hooks.hook_files import load
from flor_plugins.recipe import check_recipe
from flor_plugins.store.query.dataframe import dataframe

RECIPES = Path(__file__).parents[1] / "recipes"
ONE_VERSION = "versions:\n  - {name: firstRun, epochs: 2}\nreplay:"
HEIGHT = 64


@pytest.fixture(scope="module")
def yolos() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        yield importlib.import_module("yolos")


@pytest.fixture(scope="module")
def ap(yolos: ModuleType) -> ModuleType:
    return yolos.average_precision


@pytest.fixture(scope="module")
def scenes(yolos: ModuleType) -> tuple:
    """Training and validation data, tiny."""
    return tuple(one.dataset for one in yolos.load_data(yolos.SCALES["tiny"], 8))


@pytest.fixture(scope="module")
def hooks(yolos: ModuleType) -> dict:
    return {one.name: one.function for one in load(RECIPES / "hooks" / "yolos.py").metrics}


def seen(ap: ModuleType, *boxes: tuple[float, ...], scores: list[float] | None = None):
    """Boxes of one picture, all of one class."""
    held = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return ap.Seen(
        held, torch.zeros(len(boxes)).long(), None if scores is None else torch.tensor(scores)
    )


def test_shipped_recipe_is_right():
    assert check_recipe(RECIPES / "yolos.yaml") == []


def test_boxes_lie_where_the_picture_was_changed(yolos, scenes):
    _, validation = scenes
    for index in range(12):
        picture, objects = validation[index]
        random = Random(index)
        bare = yolos.emoji_pictures.cut(validation.photographs, 64, 64, random)
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for x, y, width, height in (objects["boxes"] * 64).tolist():
            left, right = int(x - width / 2 - 1), int(x + width / 2 + 2)
            inside[
                max(int(y - height / 2 - 1), 0) : int(y + height / 2 + 2), max(left, 0) : right
            ] = True
        changed = (picture != yolos.emoji_pictures.to_tensor(bare)).any(dim=0)
        assert changed.any() and not (changed & ~inside).any()


def test_pictures_hold_one_or_two_objects_that_can_be_told_apart(yolos, scenes):
    counts = set()
    for index in range(40):
        picture, objects = scenes[1][index]
        assert (
            picture.shape == (3, 64, 64) and ((objects["boxes"] > 0) & (objects["boxes"] < 1)).all()
        )
        assert objects["class_labels"].tolist() == [0] * len(objects["boxes"])
        counts.add(len(objects["boxes"]))
        places = yolos.draw_places(Random(index), 64, 64, 3)
        for one, (side, left, top) in enumerate(places):
            area = numpy.zeros((64, 64), bool)
            area[top : top + side, left : left + side] = True
            for its_side, its_left, its_top in places[:one]:
                hidden = area[its_top : its_top + its_side, its_left : its_left + its_side].sum()
                assert hidden <= yolos.CROWDED * min(side, its_side) ** 2
    assert counts == {1, 2}


def test_validation_has_emoji_and_photographs_of_its_own(scenes):
    training, validation = scenes
    assert not {one.name for one in training.emoji} & {one.name for one in validation.emoji}
    assert not {one.tobytes() for one in training.photographs} & {
        one.tobytes() for one in validation.photographs
    }
    assert torch.equal(validation[5][0], validation[5][0]) and not torch.equal(
        training[5][0], training[5][0]
    )


def interpolated_precision(
    truth: list[list[list[float]]], found: list[tuple[int, list[float], float]], overlap: float
):
    """COCO's 101 points of the precision-recall curve, in plain Python.

    Boxes: left, top, width, height.
    """

    def share(a: list[float], b: list[float]) -> float:
        wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        both = max(wide, 0) * max(high, 0)
        return both / (a[2] * a[3] + b[2] * b[3] - both)

    free = {(picture, one) for picture, boxes in enumerate(truth) for one in range(len(boxes))}
    total, right, curve = len(free), 0, []
    for rank, (picture, box, _) in enumerate(sorted(found, key=lambda one: -one[2]), 1):
        shares = {one: share(box, truth[one[0]][one[1]]) for one in free if one[0] == picture}
        best = max(shares, key=shares.__getitem__, default=None)
        if best is not None and shares[best] >= overlap:
            free.remove(best)
            right += 1
        curve.append((right / total, right / rank))
    points = [
        max((p for r, p in curve if r >= at - 1e-12), default=0.0)
        for at in numpy.linspace(0, 1, 101)
    ]
    return sum(points) / 101


def test_average_precision_is_the_area_under_the_curve(ap):
    generator = torch.Generator().manual_seed(4)
    truth, found = [], []
    for _ in range(25):
        corners = torch.rand(3, 2, generator=generator) * 30 + torch.tensor(
            [[0.0, 0.0], [35.0, 0.0], [0.0, 35.0]]
        )
        boxes = torch.cat([corners, 8 + 12 * torch.rand(3, 2, generator=generator)], dim=1)
        guesses = torch.cat([boxes + 2.5 * torch.randn(3, 4, generator=generator), boxes[:1] + 20])
        truth.append(ap.Seen(boxes, torch.zeros(3).long()))
        found.append(ap.Seen(guesses, torch.zeros(4).long(), torch.rand(4, generator=generator)))
    evaluation = ap.evaluate(truth, found, 1, HEIGHT)
    plain = [one.boxes.double().tolist() for one in truth]
    guesses = [
        (picture, box.tolist(), score.item())
        for picture, one in enumerate(found)
        for box, score in zip(one.boxes, one.scores, strict=True)
    ]
    each = [
        interpolated_precision(plain, guesses, overlap)
        for overlap in evaluation.held.params.iouThrs
    ]
    assert 0.2 < each[0] < 0.95
    assert evaluation.precision(overlap=0.5) == pytest.approx(each[0], abs=1e-6)
    assert evaluation.precision() == pytest.approx(sum(each) / len(each), abs=1e-6)


def test_sizes_are_told_apart_by_the_height_of_the_picture(ap):
    small, medium, large = (2.0, 2.0, 7.0, 7.0), (20.0, 2.0, 16.0, 16.0), (20.0, 20.0, 42.0, 42.0)
    truth = [seen(ap, small, medium, large)]
    only = ap.evaluate(truth, [seen(ap, large, medium, scores=[0.9, 0.8])], 1, HEIGHT)
    assert [only.precision(size) for size in ap.SIZES[1:]] == pytest.approx([0, 1, 1])
    assert only.recall() == pytest.approx(2 / 3)
    assert numpy.isnan(ap.evaluate([seen(ap, large)], [seen(ap)], 1, HEIGHT).precision("small"))


def test_nothing_found_is_precision_zero_and_nothing_is_printed(ap, capsys):
    truth = [seen(ap, (2.0, 2.0, 9.0, 9.0)), seen(ap, (5.0, 5.0, 20.0, 20.0))]
    assert ap.evaluate(truth, [seen(ap), seen(ap)], 1, HEIGHT).precision() == 0.0
    assert capsys.readouterr() == ("", "")


def test_queries_and_places_differ_before_training(yolos):
    net = yolos.build_net(yolos.SCALES["tiny"], 32)
    found = net(pixel_values=torch.zeros(1, 3, 64, 64)).pred_boxes[0]
    assert len({tuple(one) for one in found.tolist()}) == yolos.SCALES["tiny"].queries
    assert net.vit.embeddings.position_embeddings.std().item() == pytest.approx(0.3, rel=0.1)


def test_full_size_is_yolos_tiny(yolos):
    with torch.device("meta"):
        net = yolos.build_net(yolos.SCALES["full"], yolos.SCALES["full"].hidden_size)
    layer = 4 * (192 * 192 + 192) + (192 * 768 + 768) + (768 * 192 + 192) + 4 * 192
    places = 50 * 83 + 100 + 1  # patches of 800x1328 pixels, queries, and the class token
    ends = (3 * 16 * 16 * 192 + 192) + (places + 101) * 192 + 2 * 192
    heads = 4 * (192 * 192 + 192) + (192 * 2 + 2) + (192 * 4 + 4)
    assert sum(one.numel() for one in net.parameters()) == 12 * layer + ends + heads == 6_471_366


def test_hooks_ask_for_what_they_are_called(hooks, ap):
    large, small = (10.0, 10.0, 42.0, 42.0), (50.0, 50.0, 6.0, 6.0)
    boxes = {0: seen(ap, large), 1: seen(ap, large, small)}

    class Model:
        """Finds the large object of every picture."""

        def evaluate(self, truth: list, found: list):
            return ap.evaluate(truth, found, 1, HEIGHT)

        def read(self, objects: list[int]):
            return [boxes[one] for one in objects]

        def __call__(self, pictures: Tensor):
            return [seen(ap, large, scores=[0.7]) for _ in pictures]

    batch = (torch.zeros(2, 1), [0, 1])
    ctx = SimpleNamespace(model=Model(), val_dataloader=[batch], device=torch.device("cpu"))
    sizes = hooks["ap_by_size"](ctx)
    assert (
        sizes["large"] == pytest.approx(1) and sizes["small"] == 0 and numpy.isnan(sizes["medium"])
    )
    assert hooks["recall_by_count"](ctx) == {"1": 1.0, "2": 0.5}


@pytest.mark.slow
def test_recipe_is_answered_in_hindsight_as_it_was_recorded(tmp_path: Path):
    project = Project(tmp_path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    before, rest = (RECIPES / "yolos.yaml").read_text().split("versions:")
    project.write("recipes/yolos.yaml", before + ONE_VERSION + rest.split("replay:")[1])
    project.write(".gitignore", "__pycache__/\n.flor/\ncache/\n")
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recipes")
    project.flor("replay", "recipes/yolos.yaml", "--yes", timeout_s=280)
    verdicts = project.verdicts()
    assert verdicts and {one["verdict"] for one in verdicts} == {"exact"}
    frame = dataframe(project.store, "val_ap", "ap_by_size", "recall_by_count")
    sizes = rows_of(frame, "firstRun", "ap_by_size")
    recalls = rows_of(frame, "firstRun", "recall_by_count")
    assert len(sizes) == len(recalls) == len(rows_of(frame, "firstRun", "val_ap")) == 2
    assert all(
        0 <= value <= 1 for one in [*sizes.values(), *recalls.values()] for value in one.values()
    )
