"""What is trained: a transformer of any size with AdamW, by Lightning or the HF Trainer, and
the clock on its steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForMaskedLM, PrinterCallback, Trainer, TrainingArguments

ENDLESS = 1_000_000  # batches of an epoch that no training here comes to the end of


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and its batches.

    width: of the hidden states; words: of the vocabulary; length: tokens of a text.
    """

    layers: int
    width: int
    words: int
    batch: int
    length: int

    def build(self) -> BertForMaskedLM:
        """A new model with random weights, in training mode."""
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=self.words, hidden_size=self.width, num_hidden_layers=self.layers,
            num_attention_heads=max(self.width // 64, 2), intermediate_size=4 * self.width,
        )  # fmt: skip
        return BertForMaskedLM(config).train()


# BERT-base has 109.5 million parameters: 1.31 GB with AdamW's moments. A step of it is short:
# what a checkpoint costs is measured against short steps, where it hurts most.
LARGE = {
    "tiny": Shape(2, 64, 200, 2, 8),
    "small": Shape(4, 256, 8000, 2, 16),
    "full": Shape(12, 768, 30522, 1, 8),
}


class Tokens(Dataset):
    """`count` texts of random words, each the same whenever it is asked for."""

    def __init__(self, shape: Shape, count: int = ENDLESS) -> None:
        self.shape, self.count = shape, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = torch.randint(
            0, self.shape.words, (self.shape.length,), generator=torch.Generator().manual_seed(i)
        )
        return {"input_ids": x, "labels": x}


class Masked(pl.LightningModule):
    """The model for Lightning; logs its loss at every step."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = self.net(**batch).loss
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-5, fused=True)


class Validated(Masked):
    """... and the validation loss at every epoch."""

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("val_loss", self.net(**batch).loss)


class Clock:
    """When each training step of a model began: `with Clock(model) as clock: ...;
    clock.steps()`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.moments: list[float] = []

    def __enter__(self) -> Clock:
        self._handle = self._model.register_forward_pre_hook(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _tick(self, model: torch.nn.Module, _: Any) -> None:
        if model.training:
            self.moments.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds from the beginning of each step to that of the next: all that happens in
        between counts.
        """
        return [b - a for a, b in pairwise(self.moments)]


class Memcpy:
    """One copy of tensors into memory that was touched before; on a GPU into pinned memory
    of the host.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._from = [one.detach() for one in tensors]
        self._into = [
            torch.zeros(one.shape, dtype=one.dtype, pin_memory=one.is_cuda) for one in self._from
        ]
        self.nbytes = sum(one.nbytes for one in self._from)

    def seconds(self) -> float:
        """Of one copy: the median of five."""
        return sorted(self.once() for _ in range(5))[2]

    def once(self) -> float:
        _wait(self._from)
        begin = time.perf_counter()
        for into, one in zip(self._into, self._from, strict=True):
            into.copy_(one, non_blocking=True)
        _wait(self._from)
        return time.perf_counter() - begin


def adam_state(model: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors like those of a model and its AdamW: the parameters and two moments of each.

    Not the training's own.
    """
    return [one.detach().clone() for one in model.parameters() for _ in range(3)]


def fit(
    module: pl.LightningModule,
    train: DataLoader,
    validate: DataLoader | None = None,
    *,
    callbacks: Sequence[pl.Callback] = (),
    plugins: Sequence[Any] = (),
    folder: Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> None:
    """Train with a fresh Lightning Trainer that does nothing of its own accord.

    options: of the Trainer.
    """
    has_saver = any(isinstance(one, Checkpoint) for one in callbacks)
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=has_saver,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        plugins=list(plugins) or None,
        **options,
    )
    trainer.fit(module, train, validate)


def train(
    model: torch.nn.Module,
    shape: Shape,
    folder: Path,
    *,
    callbacks: Sequence[Any] = (),
    count: int = ENDLESS,
    validate: int = 0,
    **options: Any,
) -> None:
    """Train with a fresh HF Trainer that does nothing of its own accord.

    count: texts to train on. validate: texts to evaluate. options: of TrainingArguments.
    """
    given = {"save_strategy": "no", "use_cpu": True, **options}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=shape.batch,
        optim="adamw_torch_fused",
        learning_rate=1e-5,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
        logging_strategy="no",
        **given,
    )
    held_out = Tokens(shape, validate) if validate else None
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Tokens(shape, count),
        eval_dataset=held_out,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _wait(tensors: Sequence[torch.Tensor]) -> None:
    if tensors and tensors[0].is_cuda:
        torch.cuda.synchronize()
