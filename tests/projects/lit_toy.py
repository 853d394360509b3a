"""A tiny Lightning training with dropout, shuffling, augmentation, batch norm and validation."""

import argparse
import random

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch.utils.data import DataLoader, Dataset

from flor_plugins.lightning import FlorCallback


class Points(Dataset):
    def __init__(self, n, augment):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 8, generator=generator)
        self.y = (self.x.sum(1) > 0).long()
        self.augment = augment

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].clone()
        if self.augment:
            x += torch.randn(8) * 0.1 + float(np.random.rand()) * 0.1 + random.random() * 0.1
        return x, self.y[i]


class Net(pl.LightningModule):
    def __init__(self, lr=0.01, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(width, 2),
        )
        self.acc = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.seen = 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        out = self(x)
        loss = torch.nn.functional.cross_entropy(out, y)
        self.seen += len(x)
        self.acc(out, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_loss", torch.nn.functional.cross_entropy(self(x), y))

    def test_step(self, batch, index):
        x, y = batch
        self.log("test_loss", torch.nn.functional.cross_entropy(self(x), y))

    def on_train_epoch_end(self):
        self.log("late", float(self.seen))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr * 3, total_steps=100
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data(workers=0):
    train = DataLoader(Points(60, True), 8, shuffle=True, num_workers=workers)
    return train, DataLoader(Points(24, False), 8)


def trainer(callbacks, epochs=3, **settings):
    fixed = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(max_epochs=epochs, callbacks=callbacks, **{**fixed, **settings})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--name", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(7)
    model = Net(args.lr, args.width)
    fit = trainer([FlorCallback(args.name)], args.epochs, accumulate_grad_batches=args.accumulate)
    fit.fit(model, *data())
    fit.test(model, data()[1], verbose=False)
    print("AFTER FIT")


if __name__ == "__main__":
    main()
