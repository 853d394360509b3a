"""MethodWrapper takes off what it has put on, and nothing of anybody else's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from flor_plugins.state.method_wrapper import MethodWrapper


class Trainer:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def evaluate(self, what: str = "all") -> str:
        self.heard.append("evaluate")
        return f"evaluated {what}"


def wrapped(trainer: Trainer, name: str = "ours") -> MethodWrapper:
    wrapper = MethodWrapper()
    wrapper.before(trainer, "evaluate", trainer.heard.append, name)
    return wrapper


def put_on(trainer: Trainer, name: str, *, with_wraps: bool) -> Callable[..., str]:
    """Wrap as somebody else does: a profiler, a tracker."""
    inner = trainer.evaluate

    def theirs(*args: Any, **kwargs: Any) -> str:
        trainer.heard.append(name)
        return inner(*args, **kwargs)

    made = functools.wraps(inner)(theirs) if with_wraps else theirs
    trainer.evaluate = made  # type: ignore[method-assign]
    return made


def test_after_undo_nothing_is_left_on_the_object() -> None:
    trainer = Trainer()
    wrapper = MethodWrapper()
    wrapper.around(trainer, "evaluate", lambda original, what: original(what.upper()))
    wrapper.after(trainer, "evaluate", trainer.heard.append, "after")
    assert trainer.evaluate("test") == "evaluated TEST" and trainer.heard == ["evaluate", "after"]
    wrapper.undo()
    assert trainer.evaluate("test") == "evaluated test"
    assert vars(trainer) == {"heard": ["evaluate", "after", "evaluate"]}


def test_a_function_of_the_object_itself_is_put_back() -> None:
    trainer = Trainer()
    own = put_on(trainer, "own", with_wraps=False)
    wrapper = wrapped(trainer)
    wrapper.undo()
    assert vars(trainer)["evaluate"] is own


@pytest.mark.parametrize("with_wraps", [False, True], ids=["assigned", "functools.wraps"])
def test_a_wrapper_that_somebody_put_on_ours_stays_and_ours_only_passes_on(
    with_wraps: bool,
) -> None:
    trainer = Trainer()
    wrapper = wrapped(trainer)
    theirs = put_on(trainer, "theirs", with_wraps=with_wraps)
    wrapper.undo()
    assert trainer.evaluate("x") == "evaluated x" and trainer.heard == ["theirs", "evaluate"]
    assert vars(trainer)["evaluate"] is theirs


def test_a_wrapper_below_theirs_goes_once_theirs_is_gone_and_another_of_ours_is_undone() -> None:
    trainer = Trainer()
    first = wrapped(trainer, "first")
    with mock.patch.object(trainer, "evaluate", wraps=trainer.evaluate):
        first.undo()
    second = wrapped(trainer, "second")
    second.undo()
    assert trainer.evaluate() == "evaluated all"
    assert vars(trainer) == {"heard": ["evaluate"]}


@pytest.mark.parametrize("outer_first", [False, True], ids=["inner first", "outer first"])
def test_two_of_ours_on_one_method_can_be_undone_in_any_order(outer_first: bool) -> None:
    trainer = Trainer()
    inner, outer = wrapped(trainer, "inner"), wrapped(trainer, "outer")
    pair = [outer, inner] if outer_first else [inner, outer]
    pair[0].undo()
    trainer.evaluate()
    assert trainer.heard == ["inner" if outer_first else "outer", "evaluate"]
    pair[1].undo()
    assert list(vars(trainer)) == ["heard"]


@pytest.mark.parametrize("undone_inside", [False, True], ids=["after the block", "in the block"])
def test_what_a_context_manager_puts_on_comes_off_with_it(undone_inside: bool) -> None:
    trainer = Trainer()
    wrapper = wrapped(trainer)
    with mock.patch.object(trainer, "evaluate", lambda: "patched"):
        assert trainer.evaluate() == "patched"
        if undone_inside:
            wrapper.undo()
            assert trainer.evaluate() == "patched"
    if not undone_inside:
        trainer.evaluate()
        assert trainer.heard == ["ours", "evaluate"]
        wrapper.undo()
    trainer.heard.clear()
    assert trainer.evaluate() == "evaluated all" and trainer.heard == ["evaluate"]


def test_a_function_that_replaced_ours_stays() -> None:
    trainer = Trainer()
    wrapper = wrapped(trainer)
    trainer.evaluate = lambda: "mine"  # type: ignore[method-assign, assignment, misc]
    wrapper.undo()
    assert trainer.evaluate() == "mine"


def test_undo_of_a_method_that_somebody_took_away_does_nothing() -> None:
    trainer = Trainer()
    wrapper = wrapped(trainer)
    del trainer.evaluate
    wrapper.undo()
    assert list(vars(trainer)) == ["heard"]


def test_a_copy_of_a_wrapped_object_can_be_made() -> None:
    trainer = Trainer()
    wrapper = wrapped(trainer)
    copied = copy.deepcopy(trainer)
    assert copied.evaluate() == "evaluated all"
    wrapper.undo()
    assert copied.evaluate() == "evaluated all"
