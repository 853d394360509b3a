"""Validation data that is loaded once for many positions: no hook can tell it from a pass of
its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset
from transformers import BatchEncoding

from flor_plugins.replayer.worker_session import batch_cache as module
from flor_plugins.replayer.worker_session.batch_cache import BatchCache
from flor_plugins.state import rng
from flor_plugins.state.tensor_trees import UncopyableBatchError, copied, is_same

SIZE, BATCH = 10, 4  # 3 batches, the last one smaller


class Points(Dataset):
    """loaded: the samples that were, in order. Its attributes stay what they are."""

    def __init__(self, noise: Callable[[], float] = lambda: 0.0) -> None:
        self.noise, self.loaded = noise, []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.loaded.append(i)
        return {"x": torch.arange(3.0) + i + self.noise(), "name": f"sample {i}"}


Action = tuple[str, int]
actions = st.lists(
    st.tuples(st.sampled_from(["iterate", "draw", "peek", "zip"]), st.integers(0, 4)),
    min_size=1,
    max_size=4,
)
LOADERS: dict[str, Callable[..., Any]] = {
    "torch": lambda data, **also: DataLoader(data, BATCH, **also),
    "accelerate": lambda data, **also: prepare_data_loader(DataLoader(data, BATCH, **also)),
    "generator": lambda data, **also: DataLoader(
        data, BATCH, generator=torch.Generator().manual_seed(3), **also
    ),
}


def hook(loader: Any, program: list[Action], seed: int) -> list[Any]:
    """What a hook sees that goes through the loader, stops early, draws and writes into what
    it gets.
    """
    rng.seed(seed)
    seen: list[Any] = []
    for kind, number in program:
        if kind == "draw":
            seen.append(torch.rand(1).item() + random.random() + float(np.random.rand()))
        elif kind == "zip":
            seen += [
                [one["x"].sum().item(), other["name"]]
                for one, other in zip(loader, loader, strict=True)
            ]
        else:
            passing = iter(loader)
            seen.append(torch.rand(1).item())
            for batch, _ in zip(passing, range(number), strict=False):
                seen += [
                    batch["x"].tolist(),
                    batch["name"],
                    torch.rand(1).item() if kind == "iterate" else 0.0,
                ]
                batch["x"].zero_()
                batch["name"].clear()
    return [*seen, torch.rand(1).item()]


def both(
    make: Callable[..., Any],
    data: Callable[[], Points],
    programs: list[list[Action]],
    positions: int | None = None,
) -> tuple[list[Any], list[Any], list[str]]:
    """What hooks see one after the other: with a pass of their own each, and with what was
    loaded once.
    """
    own, shared, said = make(data()), make(data()), []
    kept = BatchCache(said.append, positions)
    alone, together = [], []
    for seed, program in enumerate(programs):
        alone.append(hook(own, program, seed))
        kept.begin()
        together.append(hook(kept.of(shared), program, seed))
    return alone, together, said


WHOLE: list[Action] = [("iterate", 9)]


@pytest.mark.parametrize("name", LOADERS)
@settings(max_examples=25)
@given(programs=st.lists(actions, min_size=2, max_size=5))
def test_a_hook_sees_what_its_own_pass_would_show_it(
    name: str, programs: list[list[Action]]
) -> None:
    alone, together, said = both(LOADERS[name], Points, programs)
    assert together == alone
    assert said == []


def test_data_is_loaded_once_and_its_first_batch_a_second_time() -> None:
    made: list[Points] = []

    def data() -> Points:
        made.append(Points())
        return made[-1]

    alone, together, _ = both(LOADERS["torch"], data, [WHOLE] * 8)
    assert together == alone
    assert [len(one.loaded) for one in made] == [8 * SIZE, SIZE + BATCH]


def test_data_is_loaded_anew_after_so_many_positions() -> None:
    data = Points()
    kept, loader = BatchCache(print, 2), DataLoader(data, BATCH)
    for seed in range(4):
        kept.begin()
        hook(kept.of(loader), WHOLE, seed)
    assert len(data.loaded) == 2 * (SIZE + BATCH)


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.rand(1).item(), random.random, np.random.rand, np.random.default_rng(0).random],
    ids=["torch", "python", "numpy", "unseen"],
)
def test_random_data_is_loaded_for_each_hook(noise: Callable[[], float]) -> None:
    if noise.__name__ == "random" and hasattr(noise.__self__, "bit_generator"):
        # What nobody can see is told by the first batch of the second pass.
        alone = both(LOADERS["torch"], lambda: Points(np.random.default_rng(0).random), [WHOLE] * 3)
    else:
        alone = both(LOADERS["torch"], lambda: Points(noise), [WHOLE] * 3)
    assert alone[0] == alone[1]
    assert len(alone[2]) == 1 and "loaded anew" in alone[2][0]


@pytest.mark.parametrize(
    "also",
    [{"shuffle": True}, {"num_workers": 1, "persistent_workers": True}, {"sampler": [3, 1, 2]}],
)
def test_loaders_in_another_order_or_with_a_memory_take_no_part(also: dict[str, Any]) -> None:
    loader = DataLoader(Points(), BATCH, **also)
    kept = BatchCache(print)
    assert kept.of(loader) is loader
    assert kept.of(rows := [torch.ones(2)])[0] is rows[0]


@pytest.mark.parametrize(
    "noise", [lambda: 0.0, lambda: torch.rand(1).item()], ids=["same", "random"]
)
def test_what_workers_load_is_kept_when_a_second_pass_brought_the_same(
    noise: Callable[[], float],
) -> None:
    def make(data: Points) -> Any:
        return DataLoader(data, BATCH, num_workers=1)

    alone, together, said = both(make, lambda: Points(noise), [WHOLE] * 3)
    assert together == alone
    assert bool(said) is (noise() != 0.0)


def test_what_is_set_on_the_data_between_two_passes_is_seen() -> None:
    data = Points()
    kept, loader = BatchCache(print), DataLoader(data, BATCH)
    seen = []
    for shift in (0.0, 0.0, 5.0):
        if shift:
            data.noise = lambda: 5.0
        kept.begin()
        seen.append(next(iter(kept.of(loader)))["x"][0, 0].item())
    assert seen == [0.0, 0.0, 5.0]


def test_data_that_takes_too_much_memory_is_loaded_for_each_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 100)
    alone, together, [said] = both(LOADERS["torch"], Points, [WHOLE] * 3)
    assert together == alone
    assert "memory" in said


def test_what_stands_for_a_loader_is_one() -> None:
    loader = DataLoader(Points(), BATCH)
    shared = BatchCache(print).of(loader)
    assert isinstance(shared, DataLoader)
    assert (len(shared), shared.batch_size, shared.dataset) == (3, BATCH, loader.dataset)


# ---- copies


trees = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.text(),
        st.none(),
        st.binary(),
        st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.int64]).flatmap(
            lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(
                lambda shape: torch.ones(shape).to(dtype)
            )
        ),
        st.builds(lambda n: np.full((2, n), np.nan), st.integers(0, 3)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(BatchEncoding),
    ),
    max_leaves=6,
)


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | BatchEncoding):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for one in tree:
            yield from leaves(one)
    else:
        yield tree


@given(trees)
def test_a_copy_has_the_same_bits_in_other_memory(tree: Any) -> None:
    copy = copied(tree)
    assert is_same(tree, copy)
    for one, other in zip(leaves(tree), leaves(copy), strict=True):
        if isinstance(one, torch.Tensor) and one.numel():
            assert one.data_ptr() != other.data_ptr()


def test_copies_differ_when_a_bit_does() -> None:
    one = {"x": torch.tensor([0.0, 1.0])}
    assert not is_same(one, {"x": torch.tensor([-0.0, 1.0])})
    assert not is_same(one, {"x": torch.tensor([0.0, 1.0], dtype=torch.float64)})
    assert not is_same([1], (1,))


def test_what_stands_twice_stands_twice_in_the_copy() -> None:
    x = torch.ones(3)
    copy = copied({"input_ids": x, "labels": x})
    assert copy["input_ids"] is copy["labels"] and copy["labels"] is not x


@pytest.mark.parametrize(
    "tree",
    [
        object(), torch.ones(3, requires_grad=True), torch.ones(3).to_sparse(),
        torch.ones(1).expand(4),
        (x := torch.ones(4), x[1:]), np.array([object()]), torch.nn.Parameter(torch.ones(1)),
    ],
    ids=["object", "graph", "sparse", "expanded", "shared", "objects", "parameter"],
)  # fmt: skip
def test_what_a_copy_would_not_be_like_is_refused(tree: Any) -> None:
    with pytest.raises(UncopyableBatchError):
        copied(tree)
