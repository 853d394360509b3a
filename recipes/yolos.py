"""YOLOS learns to find emoji in photographs, with PyTorch Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import average_precision
import emoji_pictures
import lightning
import lightning_training
import torch
from average_precision import Evaluation, Seen
from emoji_pictures import Emoji
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import YolosConfig, YolosForObjectDetection

CLASSES = 1  # an emoji
HELD_OUT = 10  # every tenth emoji is for validation
SMALLEST, LARGEST = 0.25, 0.8  # sides of an emoji as shares of the picture's height
CROWDED = 0.1  # of an emoji may be behind another

Batch = tuple[Tensor, list[dict[str, Tensor]]]
Loaders = tuple[DataLoader[Batch], DataLoader[Batch]]


@dataclass(frozen=True)
class Scale:
    """A size of the model, of its pictures and of what an epoch shows.

    objects: most in a picture.
    """

    height: int
    width: int
    patch: int
    hidden_size: int
    layers: int
    heads: int
    queries: int
    objects: int
    training: int
    validation: int


SCALES = {
    "tiny": Scale(64, 64, 16, 128, 3, 4, queries=4, objects=2, training=4_480, validation=256),
    "full": Scale(
        800, 1_328, 16, 192, 12, 3, queries=100, objects=20, training=20_000, validation=1_000
    ),
}


def build_trainer(
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    hidden_size: int | None = None,
    scale: str = "tiny",
    seed: int = 1,
) -> tuple[lightning.Trainer, lightning.LightningModule, Loaders]:
    """Trainer, module and the loaders (training, validation).

    hidden_size: None for the one of the scale.
    """
    if scale == "tiny":
        # a second thread makes so small a model slower beside another process
        torch.set_num_threads(1)
    size = SCALES[scale]
    lightning.seed_everything(seed, verbose=False)
    module = Detector(size, hidden_size or size.hidden_size, learning_rate=learning_rate)
    trainer = lightning_training.make_trainer(scale=scale, epochs=epochs)
    return trainer, module, load_data(size, batch_size)


class Detector(lightning.LightningModule):
    """A YOLOS with the set-prediction loss of DETR that transformers has."""

    def __init__(self, scale: Scale, hidden_size: int, *, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters({"hidden_size": hidden_size, "learning_rate": learning_rate})
        self.learning_rate = learning_rate
        self.height, self.width = scale.height, scale.width
        self.net = build_net(scale, hidden_size)
        self.truth: list[Seen] = []  # of the validation so far
        self.found: list[Seen] = []

    def forward(self, pictures: Tensor) -> list[Seen]:
        """pictures: (batch, 3, height, width) float32.

        Returns what each query found, picture by picture.
        """
        output = self.net(pixel_values=pictures)
        # the last class: no object
        scores, classes = output.logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        boxes = self.to_pixels(output.pred_boxes)
        return [Seen(*one) for one in zip(boxes.cpu(), classes.cpu(), scores.cpu(), strict=True)]

    def to_pixels(self, boxes: Tensor) -> Tensor:
        """From shares (middle x, middle y, width, height) to pixels (left, top, width, height)."""
        middle, sides = boxes[..., :2], boxes[..., 2:]
        return torch.cat([middle - sides / 2, sides], dim=-1) * boxes.new_tensor(
            [self.width, self.height] * 2
        )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        pictures, objects = batch
        output = self.net(pixel_values=pictures, labels=objects)
        self.log("train_loss", output.loss)
        return output.loss

    def on_validation_epoch_start(self) -> None:
        self.truth, self.found = [], []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        pictures, objects = batch
        self.truth += self.read(objects)
        self.found += self(pictures)

    def read(self, objects: list[dict[str, Tensor]]) -> list[Seen]:
        return [
            Seen(self.to_pixels(one["boxes"]).cpu(), one["class_labels"].cpu()) for one in objects
        ]

    def on_validation_epoch_end(self) -> None:
        evaluation = self.evaluate(self.truth, self.found)
        self.truth, self.found = [], []
        self.log("val_ap", evaluation.precision())
        self.log("val_ap50", evaluation.precision(overlap=0.5))

    def evaluate(self, truth: Sequence[Seen], found: Sequence[Seen]) -> Evaluation:
        return average_precision.evaluate(truth, found, CLASSES, self.height)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The rate rises for a tenth of the training, else so small a model starts badly,
        and falls to nothing.
        """
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.1,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_net(scale: Scale, hidden_size: int) -> YolosForObjectDetection:
    net = YolosForObjectDetection(
        YolosConfig(
            hidden_size=hidden_size,
            num_hidden_layers=scale.layers,
            num_attention_heads=scale.heads,
            intermediate_size=4 * hidden_size,
            image_size=[scale.height, scale.width],
            patch_size=scale.patch,
            num_detection_tokens=scale.queries,
            use_mid_position_embeddings=False,
            num_labels=CLASSES,
        )
    )
    # transformers leaves them at zero: all queries would be the same one, and all patches of
    # one place.
    torch.nn.init.normal_(net.vit.embeddings.detection_tokens, std=0.5)
    # as strong as the patches
    torch.nn.init.normal_(net.vit.embeddings.position_embeddings, std=0.3)
    return net


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pieces of photographs with emoji on them. is_fixed: the same pictures each time."""

    def __init__(
        self,
        emoji: list[Emoji],
        photographs: list[Image.Image],
        scale: Scale,
        length: int,
        *,
        is_fixed: bool,
    ) -> None:
        self.emoji, self.photographs, self.scale = emoji, photographs, scale
        self.length, self.is_fixed = length, is_fixed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The picture, and its objects as transformers wants them: boxes are shares (middle
        x, y, width, height).
        """
        random = emoji_pictures.draws(index, is_fixed=self.is_fixed)
        height, width = self.scale.height, self.scale.width
        canvas = emoji_pictures.cut(self.photographs, width, height, random)
        boxes = [
            emoji_pictures.put(random.choice(self.emoji), canvas, *place)
            for place in draw_places(random, width, height, random.randint(1, self.scale.objects))
        ]
        left, top, right, bottom = torch.tensor(boxes).T
        shares = torch.stack(
            [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=1
        )
        shares /= torch.tensor([width, height] * 2)
        return emoji_pictures.to_tensor(canvas), {
            "boxes": shares,
            "class_labels": torch.zeros(len(boxes)).long(),
        }


def draw_places(random: Random, width: int, height: int, count: int) -> list[tuple[int, int, int]]:
    """(side, left, top) of up to `count` squares, hardly one behind another; small ones as
    often as large ones.
    """
    places: list[tuple[int, int, int]] = []
    for _ in range(count):
        side = round(height * SMALLEST * (LARGEST / SMALLEST) ** random.random())
        place = side, random.randint(0, width - side), random.randint(0, height - side)
        if all(shared(place, other) <= CROWDED for other in places):
            places.append(place)
    return places


def shared(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The area that two squares share, as a share of the smaller one."""
    (side, left, top), (its_side, its_left, its_top) = one, other
    wide = min(left + side, its_left + its_side) - max(left, its_left)
    high = min(top + side, its_top + its_side) - max(top, its_top)
    return max(wide, 0) * max(high, 0) / min(side, its_side) ** 2


def load_data(scale: Scale, batch_size: int) -> Loaders:
    """Validation shows emoji and photographs that training has not seen."""
    emoji = emoji_pictures.load_emoji()
    unseen = emoji[HELD_OUT - 1 :: HELD_OUT]
    seen = [one for index, one in enumerate(emoji) if index % HELD_OUT != HELD_OUT - 1]
    photographs, others = emoji_pictures.load_photographs()
    training = Scenes(seen, photographs, scale, scale.training, is_fixed=False)
    validation = Scenes(unseen, others, scale, scale.validation, is_fixed=True)
    return (
        DataLoader(training, batch_size, shuffle=True, drop_last=True, collate_fn=collate),
        DataLoader(validation, batch_size, collate_fn=collate),
    )


def collate(examples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Pictures of one size are stacked; each keeps its own objects."""
    pictures, objects = zip(*examples, strict=True)
    return torch.stack(pictures), list(objects)
