"""CLIP learns which Unicode name belongs to which emoji, with PyTorch Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import emoji_pictures
import lightning
import lightning_training
import torch
from emoji_pictures import Emoji
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import CLIPConfig, CLIPModel

START, END = -2, -1  # rows of the vocabulary, counted from its end; the words are its first ones
LARGEST_SCALE = math.log(100)  # of the logits, as in the paper


@dataclass(frozen=True)
class Tower:
    """A transformer. heads: of its attention."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Scale:
    """A size of the model and of its input. vocabulary: None for as many rows as there are words.

    passes: how often an epoch shows each emoji, each time elsewhere on another photograph.
    block: of Unicode, whose emoji are taken; None for all.
    """

    pixels: int
    patch: int
    vision: Tower
    text: Tower
    projection: int
    length: int
    vocabulary: int | None
    passes: int
    block: str | None


SCALES = {
    "tiny": Scale(32, 8, Tower(96, 2, 4), Tower(96, 2, 4), 96, 10, None, 8, emoji_pictures.THINGS),
    "full": Scale(
        224, 14, Tower(1024, 24, 16), Tower(768, 12, 12), 768, 77, 49_408, 16, None
    ),  # ViT-L/14
}

Loaders = tuple[DataLoader[tuple[Tensor, Tensor]], DataLoader[tuple[Tensor, Tensor]]]


def build_trainer(
    *,
    epochs: int = 3,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    layers: int | None = None,
    scale: str = "tiny",
    seed: int = 1,
) -> tuple[lightning.Trainer, lightning.LightningModule, Loaders]:
    """Trainer, module and the loaders (training, validation).

    layers: of each tower; None for those of the scale.
    """
    if scale == "tiny":
        torch.set_num_threads(
            1
        )  # a second thread makes so small a model slower beside another process
    size = SCALES[scale]
    emoji = [one for one in emoji_pictures.load_emoji() if size.block in (None, one.block)]
    words = list_words(emoji)
    lightning.seed_everything(seed, verbose=False)
    module = Matcher(build_config(size, len(words), layers), learning_rate=learning_rate)
    trainer = lightning_training.make_trainer(scale=scale, epochs=epochs)
    return trainer, module, load_data(size, emoji, words, batch_size)


class Matcher(lightning.LightningModule):
    """A CLIP. Its accuracy: how often a picture is nearest to its own name, of all names."""

    def __init__(self, config: CLIPConfig, *, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": learning_rate})
        self.learning_rate = learning_rate
        self.net = CLIPModel(config)
        self.seen: list[tuple[Tensor, Tensor]] = []  # embeddings of the validation so far

    def forward(self, pictures: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """pictures: (batch, 3, height, width) float32, captions: (batch, length) int64.

        Returns embeddings of length 1: pictures' and captions', each (batch, dimension).
        """
        found = self.net(input_ids=captions, pixel_values=pictures)
        return found.image_embeds, found.text_embeds

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        loss = self.contrast(*self(*batch))
        self.log("train_loss", loss)
        return loss

    def contrast(self, pictures: Tensor, captions: Tensor) -> Tensor:
        """The loss: each picture has to find its caption among those of the batch, and the
        other way round.
        """
        logits = self.net.logit_scale.clamp(max=LARGEST_SCALE).exp() * pictures @ captions.T
        own = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    def on_validation_epoch_start(self) -> None:
        self.seen = []

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        self.seen.append(self(*batch))

    def on_validation_epoch_end(self) -> None:
        pictures, captions = (torch.cat(one) for one in zip(*self.seen, strict=True))
        self.seen = []
        nearest = (pictures @ captions.T).argmax(dim=1)
        self.log(
            "val_acc", (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean()
        )

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


def build_config(size: Scale, words: int, layers: int | None = None) -> CLIPConfig:
    """Start and end of a caption are the last two rows of the vocabulary, as in OpenAI's."""
    rows = size.vocabulary or words + 2
    return CLIPConfig(
        text_config={
            **tower(size.text, layers),
            "projection_dim": size.projection,
            "vocab_size": rows,
            "max_position_embeddings": size.length,
            "bos_token_id": rows + START,
            "eos_token_id": rows + END,
            "pad_token_id": rows + END,
        },
        vision_config={
            **tower(size.vision, layers),
            "projection_dim": size.projection,
            "image_size": size.pixels,
            "patch_size": size.patch,
        },
        projection_dim=size.projection,
    )


def tower(size: Tower, layers: int | None) -> dict[str, int]:
    return {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": layers or size.layers,
        "num_attention_heads": size.heads,
    }


class Captioned(Dataset[tuple[Tensor, Tensor]]):
    """Each emoji somewhere on a piece of a photograph, with its caption.

    is_fixed: the same picture each time.
    """

    def __init__(
        self,
        emoji: list[Emoji],
        captions: Tensor,
        photographs: list[Image.Image],
        pixels: int,
        *,
        is_fixed: bool,
    ) -> None:
        self.emoji, self.captions, self.photographs = emoji, captions, photographs
        self.pixels, self.is_fixed = pixels, is_fixed

    def __len__(self) -> int:
        return len(self.emoji)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = emoji_pictures.draws(index, is_fixed=self.is_fixed)
        canvas = emoji_pictures.cut(self.photographs, self.pixels, self.pixels, random)
        side = round(self.pixels * random.uniform(0.8, 1))
        left, top = random.randint(0, self.pixels - side), random.randint(0, self.pixels - side)
        emoji_pictures.put(self.emoji[index], canvas, side, left, top)
        return emoji_pictures.to_tensor(canvas), self.captions[index]


class Passes(Sampler[int]):
    """Each index once in each pass, so that a batch seldom holds two pictures of one caption."""

    def __init__(self, length: int, passes: int) -> None:
        self.length, self.passes = length, passes

    def __len__(self) -> int:
        return self.length * self.passes

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.passes):
            yield from torch.randperm(self.length).tolist()


def load_data(size: Scale, emoji: list[Emoji], words: list[str], batch_size: int) -> Loaders:
    """Training and validation show the same emoji, on other photographs and at other places."""
    rows = size.vocabulary or len(words) + 2
    captions = write_captions(emoji, words, rows=rows, length=size.length)
    seen, unseen = emoji_pictures.load_photographs()
    training = Captioned(emoji, captions, seen, size.pixels, is_fixed=False)
    validation = Captioned(emoji, captions, unseen, size.pixels, is_fixed=True)
    return (
        DataLoader(training, batch_size, sampler=Passes(len(emoji), size.passes), drop_last=True),
        DataLoader(validation, 128),
    )


def list_words(emoji: list[Emoji]) -> list[str]:
    """All words of all names, in the order of the alphabet."""
    return sorted({word for one in emoji for word in split(one.name)})


def split(name: str) -> list[str]:
    return name.replace(":", " ").replace(",", " ").replace("-", " ").split()


def write_captions(emoji: list[Emoji], words: list[str], *, rows: int, length: int) -> Tensor:
    """(emoji, length) int64: start, the words of the name, end; the end again where nothing
    follows.
    """
    number = {word: index for index, word in enumerate(words)}
    captions = torch.full((len(emoji), length), rows + END)
    captions[:, 0] = rows + START
    for row, one in zip(captions, emoji, strict=True):
        ids = [number[word] for word in split(one.name)][: length - 2]
        row[1 : 1 + len(ids)] = torch.tensor(ids)
    return captions
