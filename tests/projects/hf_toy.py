"""A tiny HF training: tied weights, dropout, shuffling, random augmentation, evaluation."""

import argparse
import random

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from flor_plugins.hf import FlorCallback


class Tokens(Dataset):
    def __init__(self, n, augment):
        self.x = torch.randint(0, 50, (n, 12), generator=torch.Generator().manual_seed(1))
        self.augment = augment

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].clone()
        if self.augment:
            x[torch.randint(0, 12, (1,))] = 51
            x[np.random.randint(12)] = 52
            x[random.randrange(12)] = 53
        return {"input_ids": x, "labels": x.clone()}


def build(callbacks, lr=1e-3, epochs=3, accumulate=1, **settings):
    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=54,
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    fixed = {
        "output_dir": "out",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": accumulate,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(num_train_epochs=epochs, learning_rate=lr, **(fixed | settings))
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Tokens(60, True),
        eval_dataset=Tokens(20, False),
        callbacks=callbacks,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--name", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = build([FlorCallback(args.name)], args.lr, args.epochs, args.accumulate)
    trainer.train()
    print("AFTER TRAIN")


if __name__ == "__main__":
    main()
