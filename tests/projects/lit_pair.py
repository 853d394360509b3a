"""Processes train one model: dropout, shuffle, augmentation, batch norm, accumulation, sync_dist.

python lit_pair.py NAME COUNT
"""

import os
import random
import sys

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from pair_hooks import seen, share
from torch.utils.data import DataLoader, Dataset

from flor_plugins.lightning import FlorCallback

# With more than one bucket of gradients it matters from three processes on in which order they
# are added.
NAME, COUNT = sys.argv[1], int(sys.argv[2])
WIDTH = 16 if COUNT < 3 else 900
RESUME = "auto" if NAME == "resumed" else None


class Points(Dataset):
    def __init__(self, n, augment):
        self.x = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
        self.augment = augment

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].clone()
        if self.augment:
            x += torch.randn(8) * 0.1 + float(np.random.rand()) * 0.1 + random.random() * 0.1
        return x, (self.x[i].sum() > 0).long()


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, WIDTH),
            torch.nn.BatchNorm1d(WIDTH),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.Linear(WIDTH, 2),
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.right = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.own = 0.0  # of this process

    def training_step(self, batch, index):
        if os.environ.get("PAIR_DIES") == f"{self.global_rank}:{self.global_step}":
            os._exit(9)
        x, y = batch
        out = self.net(x)
        self.own = 0.5 * self.own + float(x.sum())
        loss = torch.nn.functional.cross_entropy(out, y) * (1 + 1e-3 * self.own)
        self.accuracy(out, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("own", self.own)
        bits = loss.detach().numpy().tobytes().hex()
        print(f"LOSS {self.global_rank} {self.current_epoch} {index} {bits}\n", end="", flush=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        out = self.net(x)
        self.right(out, y)
        self.log("val_loss", torch.nn.functional.cross_entropy(out, y), sync_dist=True)
        self.log("val_accuracy", self.right)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.03, 100)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def callbacks(rank):
    if NAME == "without" or (NAME == "first" and rank):
        return []
    return [FlorCallback(NAME, every_n_steps=3, metrics=[seen, share], resume=RESUME)]


def main():
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    pl.seed_everything(7 + rank, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=COUNT,
        strategy="ddp",
        accumulate_grad_batches=2,
        callbacks=callbacks(rank),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Net()
    trainer.fit(
        model, DataLoader(Points(68, True), 4, shuffle=True), DataLoader(Points(20, False), 4)
    )
    torch.save(model.state_dict(), f"out/{NAME}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else a process may be aborted as it exits
