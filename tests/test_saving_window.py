"""When a training changes its tensors, and what is believed of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from flor_plugins.recorder.checkpointing.mutation_tracker import MutationTracker
from flor_plugins.recorder.checkpointing.update_window import UpdateWindow

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda of: torch.optim.SGD(of, 0.1, momentum=0.9, foreach=False),
    "foreach": lambda of: torch.optim.AdamW(of, 0.1, foreach=True),
    "fused": lambda of: torch.optim.AdamW(of, 0.1, fused=True),
    "LBFGS": lambda of: torch.optim.LBFGS(of, 0.1, max_iter=2),
    "RMSprop": lambda of: torch.optim.RMSprop(of, 0.1),
}


class Seen:
    """A weight, and what it and its gradient were each time that the window closed."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.closed: list[tuple[torch.Tensor, bool]] = []
        self.window = UpdateWindow(
            lambda: self.closed.append((self.weight.detach().clone(), self.weight.grad is not None))
        )

    def closure(self) -> torch.Tensor:
        self.weight.grad = None
        loss = (self.weight**2).sum()
        loss.backward()
        return loss


class OwnSgd(torch.optim.Optimizer):
    """Of a user: it calls its closure in the middle of its update."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for one in group["params"]:
                one.mul_(0.5)
        with torch.enable_grad():
            return closure() if closure else None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_the_window_closes_after_the_closure_of_an_optimizer_of_torch_and_before_its_update(
    name: str, how: str
) -> None:
    seen = Seen()
    optimizer: Any = OPTIMIZERS[name]([seen.weight])
    seen.window.attach([optimizer])
    if how == "positional":
        optimizer.step(seen.closure)
    else:
        optimizer.step(closure=seen.closure)
    weight, has_gradient = seen.closed[0]
    assert torch.equal(weight, torch.ones(3)) and has_gradient
    assert not torch.equal(seen.weight, torch.ones(3))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "LBFGS"])
def test_the_window_closes_before_an_update_without_closure(name: str) -> None:
    seen = Seen()
    optimizer = OPTIMIZERS[name]([seen.weight])
    seen.window.attach([optimizer])
    seen.closure()
    optimizer.step()
    assert [(one.tolist(), has) for one, has in seen.closed] == [([1.0, 1.0, 1.0], True)]
    assert not torch.equal(seen.weight, torch.ones(3))


def test_the_window_closes_before_anything_that_an_optimizer_of_the_user_does() -> None:
    seen = Seen()
    optimizer = OwnSgd([seen.weight])
    seen.window.attach([optimizer])
    optimizer.step(seen.closure)
    assert [(one.tolist(), has) for one, has in seen.closed] == [([1.0, 1.0, 1.0], False)]


def test_the_result_of_a_closure_comes_back_and_its_error_too() -> None:
    seen = Seen()
    optimizer = torch.optim.SGD([seen.weight], 0.1)
    seen.window.attach([optimizer])
    loss: Any = optimizer.step(seen.closure)
    assert loss.item() == 3.0

    def stumble() -> Any:
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError):
        optimizer.step(stumble)
    assert len(seen.closed) == 1  # nothing was changed after the second


def test_a_wrapper_is_looked_through_and_an_optimizer_is_watched_once() -> None:
    seen = Seen()
    real = torch.optim.AdamW([seen.weight], 0.1)

    class Lightning:
        optimizer = real

    class Nothing:
        pass

    class Empty:
        optimizer = None

    # made without __init__, which asks for an Accelerator: it is an Optimizer itself and holds
    # the real one
    accelerated = AcceleratedOptimizer.__new__(AcceleratedOptimizer)
    accelerated.optimizer = real
    seen.window.attach([Lightning(), accelerated, real, Nothing(), Empty(), None])
    seen.closure()
    real.step()
    assert len(seen.closed) == 1


def test_after_detach_nothing_is_called_and_nothing_is_known() -> None:
    seen = Seen()
    optimizer = torch.optim.SGD([seen.weight], 0.1)
    seen.window.attach([optimizer])
    assert seen.window.constants() == {seen.weight.data_ptr()}
    seen.window.detach()
    seen.closure()
    optimizer.step()
    assert seen.closed == [] and seen.window.constants() == set()


def test_constants_are_trained_parameters_and_optimizer_states_and_no_frozen_ones() -> None:
    trained, frozen = (
        torch.nn.Parameter(torch.ones(3), requires_grad=one) for one in (True, False)
    )
    optimizer = torch.optim.AdamW([trained, frozen], 0.1)
    window = UpdateWindow(lambda: None)
    window.attach([optimizer])
    trained.sum().backward()
    optimizer.step()
    held = optimizer.state[trained].values()
    assert window.constants() == {one.data_ptr() for one in [trained, *held]}
    trained.requires_grad_(False)
    assert trained.data_ptr() not in window.constants()


# ---- tracker

KEY = "model/w"


def save(
    tracker: MutationTracker, tensor: torch.Tensor, hash: str, constants: set[int] | None = None
) -> str:
    """One checkpoint, taken and written; returns how the tensor was treated."""
    how = tracker.copy_mode(KEY, tensor, constants or set())
    taken = tracker.taken(KEY, tensor, constants or set())
    if taken is not None:
        tracker.written({KEY: taken}, {KEY: hash})
    return how


def test_a_trained_tensor_is_copied_later_only_after_a_window_in_which_nobody_wrote_to_it() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    constants = {tensor.data_ptr()}
    assert tracker.copy_mode(KEY, tensor, constants) == "watch"
    assert tracker.copy_mode(KEY, tensor, constants) == "watch"  # what was seen is not known yet
    tracker.watched(KEY, is_unchanged=True)
    assert tracker.copy_mode(KEY, tensor, constants) == "later"


def test_a_tensor_that_was_written_to_between_updates_is_copied_at_once_ever_after() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    tracker.watched(KEY, is_unchanged=False)
    assert tracker.copy_mode(KEY, tensor, {tensor.data_ptr()}) == "now"
    tracker.watched(KEY, is_unchanged=True)
    assert tracker.copy_mode(KEY, tensor, {tensor.data_ptr()}) == "now"


def test_a_frozen_tensor_is_believed_once_its_hash_was_the_same_twice() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    assert [save(tracker, tensor, "a") for _ in range(4)] == ["now", "now", "same", "same"]
    assert tracker.known_hash(KEY) == "a"


@pytest.mark.parametrize("change", [lambda one: one.add_(1), lambda one: one.copy_(one)])
def test_a_write_that_is_counted_makes_a_tensor_unknown_again(
    change: Callable[[torch.Tensor], Any],
) -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    for _ in range(3):
        save(tracker, tensor, "a")
    change(tensor)
    assert [save(tracker, tensor, "b") for _ in range(3)] == ["now", "now", "same"]
    assert tracker.known_hash(KEY) == "b"


def test_a_tensor_that_changed_without_a_trace_is_never_believed_again() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    assert [save(tracker, tensor, one) for one in "abbbbbb"] == ["now"] * 7


def test_a_tensor_that_was_not_what_it_was_believed_to_be_is_never_believed_again() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    for _ in range(2):
        save(tracker, tensor, "a")
    assert tracker.copy_mode(KEY, tensor, set()) == "same"
    tracker.torn(KEY)
    assert [save(tracker, tensor, "a") for _ in range(4)] == ["now"] * 4
    assert tracker.copy_mode(KEY, tensor, {tensor.data_ptr()}) == "now"


def test_what_is_written_of_an_older_checkpoint_says_nothing_of_a_newer_version() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    older = [tracker.taken(KEY, tensor, set()) for _ in range(3)]
    tensor.add_(1)
    newer = tracker.taken(KEY, tensor, set())
    for one in older:
        assert one is not None
        tracker.written({KEY: one}, {KEY: "a"})
    assert tracker.copy_mode(KEY, tensor, set()) == "now"
    assert newer is not None
    tracker.written({KEY: newer}, {KEY: "b"})
    assert tracker.copy_mode(KEY, tensor, set()) == "now"
    tracker.written({KEY: newer}, {KEY: "b"})
    assert tracker.copy_mode(KEY, tensor, set()) == "same" and tracker.known_hash(KEY) == "b"


def test_what_was_known_of_a_frozen_tensor_is_forgotten_while_it_is_trained() -> None:
    tensor, tracker = torch.ones(3), MutationTracker()
    for _ in range(3):
        save(tracker, tensor, "a")
    assert save(tracker, tensor, "b", {tensor.data_ptr()}) == "watch"
    with torch.no_grad():
        tensor.data.add_(1)  # as a fused optimizer does: no version counts it
    assert [save(tracker, tensor, "c") for _ in range(3)] == ["now", "now", "same"]
    assert tracker.known_hash(KEY) == "c"


def test_a_fused_optimizer_leaves_the_versions_of_what_it_changes() -> None:
    """Why versions alone are not believed. Should it change: tracker.py says that they are not."""
    weight = torch.nn.Parameter(torch.ones(64))
    optimizer = torch.optim.AdamW([weight], 0.1, fused=True)
    weight.sum().backward()
    optimizer.step()
    version = weight._version
    optimizer.step()
    assert weight._version == version


def test_memory_that_was_freed_and_given_to_another_tensor_is_not_taken_for_the_first_one() -> None:
    tracker = MutationTracker()
    memory = np.zeros(8)
    for _ in range(
        4
    ):  # states of random generators come so: a fresh tensor each time, often at the same address
        tensor = torch.from_numpy(memory)
        assert (tensor.data_ptr(), tensor._version) == (memory.ctypes.data, 0)
        assert save(tracker, tensor, "a") == "now"
        del tensor


def test_inference_tensors_and_empty_ones_are_copied_at_once() -> None:
    tracker = MutationTracker()
    with torch.inference_mode():
        tensor = torch.ones(3)
    empty = torch.empty(0)
    for _ in range(3):
        assert tracker.copy_mode(KEY, empty, {empty.data_ptr()}) == "now"
        assert save(tracker, tensor, "a") == "now"
