"""Processes train one model: dropout, shuffle, augmentation, batch norm, accumulation.

torchrun --nproc_per_node COUNT hf_pair.py NAME COUNT
"""

import os
import random
import sys

import numpy as np
import torch
from pair_hooks import seen, share
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from flor_plugins.hf import FlorCallback

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
        return {"x": x, "labels": (self.x[i].sum() > 0).long()}


class Net(torch.nn.Module):
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
        self.own = 0.0  # of this process

    def forward(self, x, labels):
        out = self.net(x)
        if self.training:
            self.own = 0.5 * self.own + float(x.sum())
        return {
            "loss": torch.nn.functional.cross_entropy(out, labels) * (1 + 1e-3 * self.own),
            "logits": out,
        }


class Telling(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        if os.environ.get("PAIR_DIES") == f"{self.args.process_index}:{self.state.global_step}":
            os._exit(9)
        loss = super().training_step(model, inputs, *args, **kwargs)
        bits = loss.detach().numpy().tobytes().hex()
        step, seen = self.state.global_step, inputs["x"].numpy().tobytes()[:6].hex()
        print(f"LOSS {self.args.process_index} {step} {seen} {bits}\n", end="", flush=True)
        return loss


def main():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    settings = TrainingArguments(
        "out",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
    )
    rank, model = settings.process_index, Net()
    known = NAME != "without" and (NAME != "first" or rank == 0)
    recorded = (
        [FlorCallback(NAME, every_n_steps=3, metrics=[seen, share], resume=RESUME)] if known else []
    )
    data = {"train_dataset": Points(68, True), "eval_dataset": Points(20, False)}
    trainer = Telling(model, settings, callbacks=recorded, **data)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(10 + rank)
    trainer.train()
    torch.save(model.state_dict(), f"out/{NAME}-{rank}.pt")


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else a process may be aborted as it exits
