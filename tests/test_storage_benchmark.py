"""The benchmark of storage: what it counts, that it finds a weight that is not the trained
one, and that it runs.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from flor_plugins.records import Position
from flor_plugins.store import codec
from flor_plugins.store.checkpoints import save_checkpoint
from tests.benchmarks import storage
from tests.benchmarks.storage import Found, figure, hashes_of, sizes, verify, workloads

pytestmark = pytest.mark.xdist_group("benchmarks")

NAMES = ["from scratch", "fine-tuning", "frozen backbone", "LoRA"]


@pytest.fixture
def run(tmp_path):
    """Weights before the first epoch and after it; with the hashes of both."""
    hashes = {}
    for epoch in range(2):
        weights = {"a": torch.full((3,), float(epoch)), "b": torch.arange(4)}
        hashes[10 * epoch] = hashes_of(weights)
        save_checkpoint(tmp_path, Position(epoch, 10 * epoch), codec.encode({"model": weights}))
    return tmp_path, hashes


def test_weights_that_are_the_trained_ones_are_counted_by_epoch(run):
    assert verify(*run) == 1


def test_a_weight_that_differs_in_one_bit_or_is_missing_is_named(run):
    path, hashes = run
    wrong = (
        torch.ones(3)
        .view(torch.int32)
        .bitwise_xor(torch.tensor([0, 1, 0], dtype=torch.int32))
        .view(torch.float32)
    )
    with pytest.raises(AssertionError, match=r"step=10.*\['a'\]"):
        verify(path, {**hashes, 10: hashes[10] | hashes_of({"a": wrong})})
    with pytest.raises(AssertionError, match=r"step=0.*\['c'\]"):
        verify(path, {**hashes, 0: hashes[0] | hashes_of({"c": wrong})})


def test_a_hash_tells_dtype_and_shape_apart():
    one = torch.zeros(4)
    ways = {
        "flat": one,
        "square": one.reshape(2, 2),
        "integers": one.to(torch.int32),
        "again": one.clone(),
    }
    found = hashes_of(ways)
    assert found["flat"] == found["again"]
    assert len(set(found.values())) == 3


def test_all_files_of_the_checkpoints_are_counted(run):
    path, _ = run
    found = sizes(path)
    assert found.keys() == {"model", "state"}
    assert sum(found.values()) == sum(
        one.stat().st_size for one in path.rglob("*") if one.is_file()
    )


def test_a_state_is_the_weights_with_tied_ones_once_and_two_moments_of_what_is_trained():
    for one in workloads("tiny"):
        every = {weight.data_ptr(): weight.nbytes for weight in one.model.parameters()}
        trained = [weight.nbytes for weight in one.model.parameters() if weight.requires_grad]
        assert one.state_bytes == sum(every.values()) + 2 * sum(trained)
        is_tied = one.name != "frozen backbone"
        assert (len(every) < len(one.model.state_dict())) == is_tied


def test_an_aim_is_held_against_the_bytes_that_gc_leaves_for_each_epoch():
    one = next(iter(workloads("tiny")))  # its aim: 1/3.5
    found = Found(state_bytes=100, budget=0, epochs=50, written=9999, cooled=1428, all_cooled=1)
    assert figure(one, found).plain()["ratio"] == 0.2856
    assert figure(one, found).verdict == "met"
    assert figure(one, replace(found, cooled=1429)).verdict == "missed"


@pytest.mark.timeout(120)
def test_the_storage_benchmark_answers_for_four_trainings_with_all_their_epochs_exact(
    tmp_path, capfd
):
    storage.main(["--scale", "tiny", "--pairs", "3", "--folder", str(tmp_path)])
    said = capfd.readouterr()
    line = json.loads(said.out.strip().splitlines()[-1])
    assert line["benchmark"] == "storage"
    assert [one["name"] for one in line["figures"]] == NAMES
    assert [one["aim"] for one in line["figures"]] == [1 / 3.5, 1 / 4.2, 1 / 50, 1 / 50]
    for shown in line["figures"]:
        one = line["details"][shown["name"]]
        assert one["exact"] == one["epochs"] > 0
        assert one["all_cooled"] <= one["cooled"] == sum(one["parts"].values()) <= one["written"]
        ratio = one["cooled"] / (one["epochs"] * one["state_bytes"])
        assert shown["ratio"] == pytest.approx(ratio, rel=1e-3)
        assert shown["verdict"] == "inconclusive"  # so few epochs show nothing
    assert "flor:" not in said.err  # nothing went wrong while recording
    assert list(tmp_path.iterdir()) == []
