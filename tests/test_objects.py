"""What objects of the user's own keep is captured and put back; what belongs to the model or
the script is not.
"""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flor_plugins.state import module, user_objects
from flor_plugins.store import codec


class Keeper:
    """Changes all that it keeps."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        self.model, self.part = model, model[0]  # type: ignore[index]
        self.views = {name: p.data for name, p in model.named_parameters()}
        self.path, self.function = str(path / "log"), print
        self._count, self.best, self.sums = 0, None, np.zeros(2)
        self.array = model[0].weight.detach().numpy()  # type: ignore[index]
        self.last: deque[float] = deque(maxlen=2)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy = copy.deepcopy(model)
        self.random, self.numbers = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def work(self) -> tuple[Any, ...]:
        self._count += 1
        self.best = self._count / 2
        self.last.append(self.best)
        self.sums[0] += self.best
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.average[name].lerp_(p, 0.5)
            for p in self.copy.parameters():
                p.add_(torch.rand((), generator=self.random) + float(self.numbers.random()))
        sums = [p.sum().item() for p in self.copy.parameters()]
        return self._count, self.best, self.sums.tolist(), list(self.last), sums


def made(path: Path) -> Keeper:
    torch.manual_seed(0)
    return Keeper(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), path)


def test_restored_object_goes_on_as_the_captured_one(tmp_path: Path) -> None:
    first = made(tmp_path / "one")
    for _ in range(3):
        first.work()
    state = user_objects.capture(first, user_objects.parts(first.model))
    assert codec.encode({"own": state}).lost == ()
    kept = copy.deepcopy(state)
    second = made(tmp_path / "two")
    for _ in range(2):  # a State may be restored twice
        user_objects.restore(second, kept)
        again = [second.work() for _ in range(3)]
    assert again == [first.work() for _ in range(3)]
    assert second.path == str(tmp_path / "two" / "log")


def test_what_belongs_to_the_model_is_not_captured_and_stays_a_view_of_it(tmp_path: Path) -> None:
    first = made(tmp_path)
    state = user_objects.capture(first, user_objects.parts(first.model))
    assert set(state["modules"]) == {"copy"}
    assert set(state["attributes"]) == {"_count", "best", "sums", "last", "average"}
    assert set(state["generators"]) == {"random", "numbers"}


def test_classes_of_frameworks_are_not_the_users() -> None:
    from transformers import EarlyStoppingCallback

    from flor_plugins.hf import FlorCallback

    assert not user_objects.is_users(EarlyStoppingCallback()) and not user_objects.is_users(
        FlorCallback()
    )
    assert user_objects.is_users(Keeper(nn.Sequential(nn.Linear(1, 1)), Path()))


def test_array_of_the_size_of_a_data_set_is_not_kept_unasked() -> None:
    size = module.LARGEST_ARRAY
    assert module.is_plain(np.empty(size, np.uint8)) and not module.is_plain(
        [np.empty(size + 1, np.uint8)]
    )
    assert not module.is_plain(np.zeros(2, object)) and not module.is_plain(
        np.zeros(2, [("a", int)])
    )
    assert module.is_plain([np.float32(1), np.bool_(True), np.str_("a")])
