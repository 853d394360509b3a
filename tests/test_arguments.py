"""`flor.arg`: which value it gives, as what, and where it is recorded."""

from __future__ import annotations

import sys
from contextvars import Context
from typing import Any

import pytest

import flor_plugins as flor
from flor_plugins.errors import FlorError
from flor_plugins.hooks import arg


def given(monkeypatch: pytest.MonkeyPatch, words: str, *asked: Any) -> Any:
    """`flor.arg(*asked)` in a script that was started with these words."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words.split()])
    return Context().run(lambda: flor.arg(*asked))


@pytest.mark.parametrize(
    ("words", "default", "value"),
    [
        ("", 0.1, 0.1),
        ("--x 0.5", 0.1, 0.5),
        ("--x=0.5", 0.1, 0.5),
        ("--x 1 --x 2", 7, 2),
        ("--kwargs x=5e-4 y=3", 0.1, 5e-4),
        ("--kwargs y=3 x=8 --other x=9", 1, 8),
        ("train x=9", 1, 1),
        ("--xy 3", 1, 1),
        ("-x 3", 1, 1),
        ("--x -2", 1, -2),
        ("--x a=b", "c", "a=b"),
        ("--x", False, True),
        ("--x --y 1", False, True),
        ("--x no", True, False),
        ("--x [1,2]", (3,), (1, 2)),
        ("--x {'a':1}", {}, {"a": 1}),
        ("--x 3", None, 3),
        ("--x word", None, "word"),
    ],
)
def test_command_line_gives_a_value_like_the_default(monkeypatch, words, default, value):
    found = given(monkeypatch, words, "x", default)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "default"), [("--x much", 1), ("--x 0.5", 1), ("--x=maybe", True), ("--x 3", [1])]
)
def test_text_that_does_not_fit_is_refused_with_both(monkeypatch, words, default):
    text = words.replace("=", " ").split()[1]
    with pytest.raises(FlorError, match=rf"flor.arg\('x', .*was given '{text}'"):
        given(monkeypatch, words, "x", default)


def test_argument_without_a_value_says_how_to_give_one(monkeypatch):
    assert given(monkeypatch, "--x 3", "x") == 3
    with pytest.raises(FlorError, match="--lr VALUE"):
        given(monkeypatch, "", "lr")


def test_arguments_of_the_script_stay_its_own(monkeypatch):
    given(monkeypatch, "--x 3 file", "x", 1)
    assert sys.argv == ["train.py", "--x", "3", "file"]


def test_recorded_value_counts_more_than_the_command_line(monkeypatch):
    def replayed() -> list[Any]:
        arg.recorded({"seed": 4, "sizes": [1, 2], "rate": 1})
        return [
            flor.arg("seed", 9),
            flor.arg("sizes", (3,)),
            flor.arg("rate", 0.5),
            flor.arg("new", "here"),
        ]

    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "5"])
    found = Context().run(replayed)
    assert found == [4, (1, 2), 1.0, "here"] and type(found[2]) is float


def test_process_that_goes_on_with_a_run_has_its_values(monkeypatch):
    monkeypatch.setenv(arg.VARIABLE, '{"seed": 12}')
    assert given(monkeypatch, "", "seed", 1) == 12
