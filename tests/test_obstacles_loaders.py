"""Loaders, samplers and datasets that can't be brought back are found and named; plain ones
are exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.looking import Toys, in_hf, in_lightning, load_toys, said

# Lightning warns of few workers, of few batches ...
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def toys(shared_project: Path) -> Toys:
    return load_toys(shared_project)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_lightning_training_has_no_obstacle(toys: Toys, workers: int) -> None:
    toy = toys["lit_toy"]
    assert in_lightning(toy, data=toy.data(workers)) == []


def test_persistent_workers_that_train_are_no_obstacle(toys: Toys, tmp_path: Path) -> None:
    toy = toys["lit_toy"]
    train = DataLoader(
        toy.Points(60, True), 8, shuffle=True, num_workers=1, persistent_workers=True
    )
    assert in_lightning(toy, data=(train, toy.data()[1])) == []
    settings = {
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "output_dir": str(tmp_path),
    }
    assert all("training" not in one.reason for one in in_hf(toys["hf_toy"], **settings))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_hf_training_has_no_obstacle(toys: Toys, workers: int, tmp_path: Path) -> None:
    assert in_hf(toys["hf_toy"], output_dir=str(tmp_path), dataloader_num_workers=workers) == []


class Resumed(IterableDataset):
    """Goes on where it stopped."""

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.islice(self.numbers, 40):
            yield torch.full((8,), float(number)), torch.tensor(number % 2)


class OwnIterator(IterableDataset):
    def __init__(self) -> None:
        self.number = 0

    def __iter__(self) -> OwnIterator:
        return self

    def __next__(self) -> Any:
        self.number += 1
        return torch.full((8,), float(self.number)), torch.tensor(self.number % 2)


class BeginsAgain(OwnIterator):
    def __iter__(self) -> BeginsAgain:
        self.number = 0
        return self


class FromFile(IterableDataset):
    def __init__(self, file: Path) -> None:
        self.lines = file.open()

    def __iter__(self) -> Iterator[Any]:
        for line in self.lines:
            yield torch.full((8,), float(line)), torch.tensor(int(line) % 2)


class Batches:
    """A loader that is no DataLoader, and begins again."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held

    def __iter__(self) -> Iterator[Any]:
        return iter(self.held)


def batches(toy: Any) -> Iterator[Any]:
    while True:
        yield from toy.data()[0]


def test_a_stream_that_cant_be_begun_again_is_named(toys: Toys, tmp_path: Path) -> None:
    toy = toys["lit_toy"]
    look = lambda loader: in_lightning(toy, data=(loader, toy.data()[1]))  # noqa: E731
    assert (
        said(look(DataLoader(Resumed(), 4)), "training", "Resumed (test_obstacles_", "`numbers`")
        == "partial"
    )
    assert (
        said(look(DataLoader(OwnIterator(), 4)), "training", "OwnIterator", "own iterator")
        == "partial"
    )
    assert said(look(batches(toy)), "loader for training", "generator") == "partial"
    (tmp_path / "lines.txt").write_text("\n".join(map(str, range(40))))
    from_file = FromFile(tmp_path / "lines.txt")
    assert said(look(DataLoader(from_file, 4)), "FromFile", "open file", "`lines`") == "partial"
    from_file.lines.close()
    assert look(DataLoader(BeginsAgain(), 4)) == []
    assert look(Batches(list(toy.data()[0]))) == []


def test_a_stream_of_an_hf_training_is_named(toys: Toys, tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __init__(self) -> None:
            self.source = iter(toys["hf_toy"].Tokens(60, False))

        def __iter__(self) -> Iterator[Any]:
            return self.source

    def change(trainer: Any) -> None:
        trainer.train_dataset = Stream()

    found = in_hf(toys["hf_toy"], change=change, output_dir=str(tmp_path))
    assert said(found, "training", "Stream", "`source`") == "partial"


def test_workers_that_hand_out_batches_in_any_order_are_named(toys: Toys, tmp_path: Path) -> None:
    toy = toys["lit_toy"]
    loader = DataLoader(toy.Points(60, True), 8, num_workers=2, in_order=False)
    assert (
        said(in_lightning(toy, data=(loader, toy.data()[1])), "training", "in_order=False")
        == "partial"
    )
    one_process = DataLoader(toy.Points(60, True), 8, num_workers=0, in_order=False)
    assert in_lightning(toy, data=(one_process, toy.data()[1])) == []
    settings = {
        "dataloader_num_workers": 1,
        "dataloader_in_order": False,
        "output_dir": str(tmp_path),
    }
    found = in_hf(toys["hf_toy"], **settings)
    assert [one.grade for one in found] == ["partial", "close"]


def test_persistent_workers_that_validate_are_named_unless_they_cant_draw(
    toys: Toys, tmp_path: Path
) -> None:
    toy = toys["lit_toy"]
    points = toy.Points(24, True)
    fixed = TensorDataset(points.x, points.y)
    found = {
        dataset: in_lightning(
            toy,
            data=(toy.data()[0], DataLoader(dataset, 8, num_workers=1, persistent_workers=True)),
        )
        for dataset in (points, fixed, torch.utils.data.Subset(fixed, range(16)))
    }
    assert (
        said(found.pop(points), "validation", "persistent_workers", "Points (lit_toy.py:")
        == "partial"
    )
    assert list(found.values()) == [[], []]
    settings = {
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "output_dir": str(tmp_path),
    }
    assert said(in_hf(toys["hf_toy"], **settings), "validation", "Tokens") == "partial"


def test_a_sampler_that_counts_is_named(toys: Toys) -> None:
    class Curriculum(torch.utils.data.Sampler):
        def __init__(self) -> None:
            self.rounds = 0

        def __iter__(self) -> Iterator[int]:
            self.rounds += 1
            return iter(range(16 + self.rounds))

        def __len__(self) -> int:
            return 16

    toy = toys["lit_toy"]
    loader = DataLoader(toy.Points(60, True), 8, sampler=Curriculum())
    assert (
        said(in_lightning(toy, data=(loader, toy.data()[1])), "sampler for training", "`rounds`")
        == "partial"
    )
