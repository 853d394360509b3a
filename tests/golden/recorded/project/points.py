"""Data and a net whose arithmetic is exact, so that every machine computes the same bits.

All numbers are small multiples of powers of two: no sum and no product is rounded, and so the order of a sum
and the kernel that computes it do not matter. The random numbers are integers of torch's own generator; those of
torch.nn.Dropout come from MKL where torch was built with it, and differ elsewhere.
"""

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

ROWS = [[1, 0, 0, 0], [0, 1, 0, -1], [0, 0, -1, 0], [1, 0, 0, 1]]


class Points(Dataset):
    """Eight of four features with one target each. The type of the numbers is torch's default type."""

    def __init__(self, shift=0):
        numbers = [[value * sign for value in row] for sign in (1, -1) for row in ROWS]
        self.x = torch.tensor(numbers, dtype=torch.get_default_dtype())
        self.labels = torch.arange(8, dtype=torch.get_default_dtype()) * 4 - 16 + shift

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i]}


class Net(torch.nn.Module):
    """A line without bias, behind a dropout of one half; gives the mean squared error."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 1, bias=False)
        self.line.weight.data[:] = torch.tensor([1.0, -2.0, 0.5, 4.0])

    def forward(self, x, labels):
        if self.training:
            x = x * 2 * torch.randint(0, 2, x.shape)
        logits = self.line(x)[:, 0]
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def loaders():
    """For training in a random order, and for validation."""
    return DataLoader(Points(), 2, shuffle=True), DataLoader(Points(2), 4)


def seed(number):
    """Seed torch. Nothing draws from the generators of Python and NumPy: they get states that are short in a file."""
    torch.manual_seed(number)
    words = [1] + [0] * 623
    random.setstate((3, (*words, 624), None))
    np.random.set_state(("MT19937", words, 624))
