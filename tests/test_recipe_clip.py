"""The recipe clip: pictures with their names, its loss and its metrics against other ways to
compute them.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from math import dist, exp, log
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from replaying import Project, rows_of

from flor_plugins.hooks.hook_files import load
from flor_plugins.recipe import check_recipe
from flor_plugins.store.query.dataframe import dataframe

RECIPES = Path(__file__).parents[1] / "recipes"
ONE_VERSION = "versions:\n  - {name: firstRun, epochs: 2}\nreplay:"


@pytest.fixture(scope="module")
def clip() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES)
        yield importlib.import_module("clip")


@pytest.fixture(scope="module")
def pictures(clip: ModuleType) -> ModuleType:
    return clip.emoji_pictures


@pytest.fixture(scope="module")
def emoji(pictures: ModuleType) -> list:
    return pictures.load_emoji()


@pytest.fixture(scope="module")
def hooks() -> dict:
    return {one.name: one.function for one in load(RECIPES / "hooks" / "clip.py").metrics}


def test_shipped_recipe_is_right():
    assert check_recipe(RECIPES / "clip.yaml") == []


def test_every_emoji_has_a_name_and_a_picture_of_its_own(pictures, emoji):
    assert len(emoji) > 1_000
    assert len({one.name for one in emoji}) == len(emoji)
    # a few are drawn alike
    assert len({one.picture.tobytes() for one in emoji}) > 0.95 * len(emoji)
    blocks = {one.name: one.block for one in emoji}
    assert (blocks["cat face"], blocks["grinning face"]) == (pictures.THINGS, "Emoticons")
    assert not [name for name in blocks if "modifier" in name]


def test_box_holds_just_what_can_be_seen(pictures, emoji):
    for one in emoji[::97]:
        canvas = Image.new("RGB", (100, 80), (1, 2, 3))
        left, top, right, bottom = pictures.put(one, canvas, 36, 20, 10)
        changed = (numpy.array(canvas) != (1, 2, 3)).any(axis=2)
        rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        # half the size: edges are blurred
        assert seen == pytest.approx((left, top, right, bottom), abs=2)


def test_pieces_lie_within_their_photograph(pictures):
    photograph = Image.fromarray(numpy.full((60, 90, 3), 200, numpy.uint8))
    for seed in range(20):
        piece = pictures.cut([photograph], 30, 20, Random(seed))
        assert piece.size == (30, 20) and (numpy.array(piece) == 200).all()


def test_validation_shows_the_same_pictures_each_time_and_training_others(clip):
    _, _, (training, validation) = clip.build_trainer()
    assert torch.equal(validation.dataset[3][0], validation.dataset[3][0])
    assert not torch.equal(training.dataset[3][0], training.dataset[3][0])
    again = []
    for _ in range(2):
        torch.manual_seed(5)
        again.append(training.dataset[3][0])
    assert torch.equal(*again) and again[0].shape == (3, 32, 32)
    assert -1 <= again[0].min() < again[0].max() <= 1


def test_a_pass_shows_each_emoji_once(clip):
    shown = list(clip.Passes(7, 3))
    assert len(shown) == len(clip.Passes(7, 3)) == 21
    assert all(sorted(shown[start : start + 7]) == list(range(7)) for start in (0, 7, 14))


def test_captions_are_the_words_of_the_names(clip, emoji):
    words = clip.list_words(emoji)
    rows = len(words) + 2
    captions = clip.write_captions(emoji, words, rows=rows, length=16).tolist()
    for one, ids in zip(emoji, captions, strict=True):
        assert ids[0] == rows - 2
        end = ids.index(rows - 1) if rows - 1 in ids else 16
        told = [words[number] for number in ids[1:end]]
        assert told == clip.split(one.name)[:14] and set(ids[end:]) <= {rows - 1}


def test_loss_is_that_of_transformers(clip):
    _, module, (_, validation) = clip.build_trainer(layers=1)
    pictures, captions = (one[:12] for one in next(iter(validation)))
    expected = module.net(input_ids=captions, pixel_values=pictures, return_loss=True).loss
    assert module.contrast(*module(pictures, captions)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_full_size_is_the_one_of_the_paper(clip):
    with torch.device("meta"):
        net = clip.CLIPModel(clip.build_config(clip.SCALES["full"], words=1_700))
    assert sum(one.numel() for one in net.parameters()) == 427_616_513


def test_metrics_are_what_they_are_called(hooks):
    generator = torch.Generator().manual_seed(2)
    seen, named = (
        torch.nn.functional.normalize(torch.randn(30, 4, generator=generator), dim=1)
        for _ in range(2)
    )
    named = torch.nn.functional.normalize(seen + 0.7 * named, dim=1)
    batches = [(seen[:20], named[:20]), (seen[20:], named[20:])]
    ctx = SimpleNamespace(
        model=lambda *batch: batch, val_dataloader=batches, device=torch.device("cpu")
    )
    a, b = seen.tolist(), named.tolist()

    for name, asked, answers in (("recall_image_to_text", a, b), ("recall_text_to_image", b, a)):
        away = [[dist(one, other) for other in answers] for one in asked]
        places = [sum(other < row[own] for other in row) for own, row in enumerate(away)]
        assert hooks[name](ctx) == {
            str(k): sum(place < k for place in places) / 30 for k in (1, 5, 10)
        }
    assert hooks["alignment"](ctx) == pytest.approx(
        sum(dist(*pair) ** 2 for pair in zip(a, b, strict=True)) / 30
    )
    for kind, points in (("pictures", a), ("names", b)):
        pairs = [exp(-2 * dist(points[i], points[j]) ** 2) for i in range(30) for j in range(i)]
        assert hooks["uniformity"](ctx)[kind] == pytest.approx(log(sum(pairs) / len(pairs)))


def test_points_at_one_place_are_not_uniform_at_all(hooks):
    same = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    ctx = SimpleNamespace(
        model=lambda *batch: batch, val_dataloader=[(same, same)], device=torch.device("cpu")
    )
    assert hooks["uniformity"](ctx) == {"pictures": 0.0, "names": 0.0}
    assert hooks["alignment"](ctx) == 0.0


@pytest.mark.slow
def test_recipe_is_answered_in_hindsight_as_it_was_recorded(tmp_path: Path):
    project = Project(tmp_path, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    text = (RECIPES / "clip.yaml").read_text()
    before, rest = text.split("versions:")
    project.write("recipes/clip.yaml", before + ONE_VERSION + rest.split("replay:")[1])
    project.write(".gitignore", "__pycache__/\n.flor/\ncache/\n")
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "recipes")
    project.flor("replay", "recipes/clip.yaml", "--yes", timeout_s=280)
    verdicts = project.verdicts()
    assert verdicts and {one["verdict"] for one in verdicts} == {"exact"}
    names = ["recall_image_to_text", "alignment", "val_acc"]
    frame = dataframe(project.store, *names)
    first = {name: list(rows_of(frame, "firstRun", name).values()) for name in names}
    assert [len(values) for values in first.values()] == [2, 2, 2]
    for recall, accuracy in zip(first["recall_image_to_text"], first["val_acc"], strict=True):
        assert recall["1"] == pytest.approx(accuracy, abs=1 / 632)  # rounding may break a tie
