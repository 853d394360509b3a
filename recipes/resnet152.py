"""ResNet-152 learns to read handwritten digits, with PyTorch Lightning."""

from __future__ import annotations

from dataclasses import dataclass

import lightning
import lightning_training
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import ResNetConfig, ResNetForImageClassification

# bottleneck blocks of three convolutions: with stem and classifier, 152 layers
DEPTHS = [
    3,
    8,
    36,
    3,
]
DIGITS = 10


@dataclass(frozen=True)
class Scale:
    """A size of the model and of its pictures. has_pooling: after the stem, as in the paper."""

    pixels: int
    stem: int
    widths: tuple[int, ...]
    has_pooling: bool


SCALES = {
    "tiny": Scale(24, 16, (32, 64, 128, 256), has_pooling=False),
    "full": Scale(224, 64, (256, 512, 1024, 2048), has_pooling=True),
}

Loaders = tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]


def build_trainer(
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    width: float = 1.0,
    scale: str = "tiny",
    seed: int = 1,
) -> tuple[lightning.Trainer, lightning.LightningModule, Loaders]:
    """Trainer, module and the loaders (training, validation). width: a factor on all widths."""
    if scale == "tiny":
        # a second thread makes so small a model slower beside another process
        torch.set_num_threads(1)
    lightning.seed_everything(seed, verbose=False)
    module = DigitReader(SCALES[scale], width=width, learning_rate=learning_rate)
    trainer = lightning_training.make_trainer(scale=scale, epochs=epochs)
    return trainer, module, load_data(SCALES[scale].pixels, batch_size)


class DigitReader(lightning.LightningModule):
    """A ResNet-152 with ten classes."""

    def __init__(self, scale: Scale, *, width: float, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters({"width": width, "learning_rate": learning_rate})
        self.learning_rate = learning_rate
        self.net = build_net(scale, width)

    def forward(self, images: Tensor) -> Tensor:
        """images: (batch, 1, height, width) float32. Returns logits: (batch, classes)."""
        return self.net(pixel_values=images).logits

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def build_net(scale: Scale, width: float) -> ResNetForImageClassification:
    net = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=round(width * scale.stem),
            hidden_sizes=[round(width * one) for one in scale.widths],
            depths=DEPTHS,
            layer_type="bottleneck",
            num_labels=DIGITS,
        )
    )
    if not scale.has_pooling:
        net.resnet.embedder.pooler = torch.nn.Identity()
    for stage in net.resnet.encoder.stages:
        for block in stage.layers:
            # Each block begins as the identity; else so deep a net stays near chance for epochs.
            torch.nn.init.zeros_(block.layer[-1].normalization.weight)
    return net


def load_data(pixels: int, batch_size: int) -> Loaders:
    """Real digits, (1, pixels, pixels) float32 about 0, in a shuffled and a fixed order."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = functional.interpolate(
        images, size=(pixels, pixels), mode="bilinear", align_corners=False
    )
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return (
        DataLoader(
            TensorDataset(images[rest], labels[rest]), batch_size, shuffle=True, drop_last=True
        ),
        DataLoader(TensorDataset(images[held_out], labels[held_out]), 128),
    )
