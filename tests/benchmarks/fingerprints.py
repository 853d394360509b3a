"""What the fingerprints cost a training step: python -m tests.benchmarks.fingerprints
[lightning|hf] [STEPS]

One training; its steps alternate A B A B: with the checksum of the batch, and without. Printed
is the median ratio of the step times of neighbours, so that a noisy machine disturbs both
alike."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from flor_plugins.state import batch_fingerprint as fingerprints


class Texts(Dataset):
    """Sequences of 128 tokens."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = torch.randint(0, 1000, (128,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": x, "labels": x}


class Images(Dataset):
    """3 x 64 x 64 floats."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(i)), i % 10


class Alternating:
    """Stands in for `fingerprints.checksum`: every second step does without.

    Called once per step.
    """

    def __init__(self) -> None:
        self.original = fingerprints.checksum
        self.times: list[float] = []
        self.calls = 0
        self._last: float | None = None

    def __call__(self, batch: Any) -> Any:
        now = time.perf_counter()
        if self._last is not None:
            self.times.append(now - self._last)
        self._last = now
        self.calls += 1
        return self.original(batch) if self.calls % 2 else 0

    def report(self, name: str) -> None:
        times = self.times[10:]  # the first steps warm up
        pairs = list(zip(times[::2], times[1::2], strict=False))
        ratios = [with_it / without for with_it, without in pairs]
        middle = statistics.median(ratios)
        low, high = statistics.quantiles(ratios, n=4)[::2]
        print(
            f"{name}: step with / without fingerprints: median {middle:.4f} (quartiles "
            f"{low:.4f} to {high:.4f}), "
            f"{len(pairs)} pairs of steps of {1000 * statistics.median(times):.1f} ms"
        )


def hf(steps: int, folder: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from flor_plugins.hf import FlorCallback

    config = GPT2Config(
        vocab_size=1000,
        n_positions=128,
        n_embd=128,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=8,
        max_steps=steps,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    callback = FlorCallback(store=f"{folder}/store")
    Trainer(
        GPT2LMHeadModel(config), arguments, train_dataset=Texts(8 * steps), callbacks=[callback]
    ).train()


def lightning(steps: int, folder: str) -> None:
    import lightning.pytorch as pl

    from flor_plugins.lightning import FlorCallback

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(3, 32, 3, stride=2),
                torch.nn.ReLU(),
                torch.nn.Conv2d(32, 64, 3, stride=2),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
                torch.nn.Linear(64, 10),
            )

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FlorCallback(store=f"{folder}/store")],
    )
    trainer.fit(Net(), DataLoader(Images(16 * steps), 16))


def main() -> None:
    frameworks = {"hf": hf, "lightning": lightning}
    chosen = sys.argv[1:2] if sys.argv[1:2] and sys.argv[1] in frameworks else list(frameworks)
    steps = int(sys.argv[-1]) if sys.argv[-1].isdigit() else 300
    for name in chosen:
        alternating = Alternating()
        fingerprints.checksum = alternating  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            frameworks[name](steps, folder)
        fingerprints.checksum = alternating.original
        alternating.report(name)


if __name__ == "__main__":
    main()
