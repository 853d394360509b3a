"""Data and a net whose arithmetic is exact, so that every machine computes the same bits.

All numbers are small multiples of powers of two. No sum and no product is rounded, so the order
of a sum and the kernel that computes it do not matter. The dropout draws integers, because the
draws of torch.nn.Dropout differ between machines with and without MKL.
"""

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

ROWS = [[1, 0, 0, 0], [0, 1, 0, -1], [0, 0, -1, 0], [1, 0, 0, 1]]


class Points(Dataset):
    """Eight samples of four features and a label. The dtype is torch's default dtype."""

    def __init__(self, shift=0):
        dtype = torch.get_default_dtype()
        signed = [[value * sign for value in row] for sign in (1, -1) for row in ROWS]
        self.x = torch.tensor(signed, dtype=dtype)
        self.labels = torch.arange(8, dtype=dtype) * 4 - 16 + shift

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i]}


class Net(torch.nn.Module):
    """A linear model without bias behind a dropout of one half. The loss is the mean square."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 4.0]))

    def forward(self, x, labels):
        if self.training:
            x = x * 2 * torch.randint(0, 2, x.shape)
        logits = x @ self.weight
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def loaders():
    """Return a shuffled loader for training and a loader for validation."""
    return DataLoader(Points(), 2, shuffle=True), DataLoader(Points(2), 4)


def seed(number):
    """Seed torch; give the generators of Python and NumPy, which nobody uses, short states."""
    torch.manual_seed(number)
    words = [1] + [0] * 623
    random.setstate((3, (*words, 624), None))
    np.random.set_state(("MT19937", words, 624))
