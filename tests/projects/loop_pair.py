"""Processes train one model in a hand-written loop, with DistributedDataParallel or accelerate.

torchrun --nproc_per_node 2 loop_pair.py NAME ddp|accelerate
"""

import os
import random
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import flor_plugins as flor

NAME, HOW = sys.argv[1:3]


class Points(Dataset):
    def __init__(self):
        self.x = torch.randn(44, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(8) + 0.1 * random.random(), int(self.x[i].sum() > 0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2)
        )
        self.own = 0.0  # of this process

    def forward(self, x):
        if self.training:
            self.own = 0.5 * self.own + float(x.sum())
        return self.body(x) * (1 + 1e-3 * self.own)


def prepared():
    """Model, optimizer, loader and what is called at the beginning of an epoch."""
    torch.manual_seed(3)
    net, data = Net(), Points()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    if HOW == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        loader = DataLoader(data, batch_size=4, shuffle=True)
        return (*accelerator.prepare(net, optimizer, loader), lambda epoch: None)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        sampler = DistributedSampler(data)
        loader = DataLoader(data, batch_size=4, sampler=sampler)
        return nn.parallel.DistributedDataParallel(net), optimizer, loader, sampler.set_epoch
    return net, optimizer, DataLoader(data, 4, shuffle=True), lambda epoch: None


def main():
    torch.set_num_threads(1)
    net, optimizer, loader, begin = prepared()
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(10 + rank)
    mean = 0.0
    flor.checkpoints(net, optimizer, name=NAME, every_n_steps=4)
    for epoch in flor.loop("epoch", range(3)):
        begin(epoch)
        for x, y in flor.loop("step", loader):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = 0.9 * mean + 0.1 * loss.item()
            flor.log("loss", loss)
            flor.log("mean", mean)
            print(f"LOSS {rank} {loss.item().hex()}\n", end="", flush=True)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else a process may be aborted as it exits
