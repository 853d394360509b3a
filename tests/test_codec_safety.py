from __future__ import annotations

import datetime as dt
import json
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from codec_cases import JSON, TAGS, Counts, Text
from hypothesis import given, settings
from hypothesis import strategies as st

from flor_plugins.errors import EncodingError
from flor_plugins.store.codec import LostLeaf, decode, encode


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TAGS), st.dictionaries(st.text(), JSON), JSON)
def test_a_malformed_tree_is_an_error_of_ours(tag: str, fields: dict[str, Any], node: Any) -> None:
    for tree in ({"s": fields | {"$": tag}}, {"s": node}):
        try:
            decode(tree, {})
        except EncodingError as error:
            assert "section 's'" in str(error)


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


class Angry:
    def __repr__(self) -> str:
        raise ZeroDivisionError("angry")


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda: 1, "lambda"),
        (Text("x"), "Text"),
        (object(), "builtins.object"),
        ([].append, "append"),
        (cyclic(), "holds itself"),
        (deep(), "deeper than"),
        ({1, Text("x")}, "Text"),
        (Angry(), "Angry"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (sys, "module"),
        (torch.ones(2).as_subclass(Sub), "Sub"),
        (np.array([object()]), "object"),
        (np.zeros(2, "i4,f4"), "dtype"),
        (defaultdict(Counts), "defaultdict"),
        ((one for one in ()), "generator"),
        (
            dt.datetime(
                2026,
                1,
                1,
                tzinfo=type("Zone", (dt.tzinfo,), {"utcoffset": lambda *_: dt.timedelta(0)})(),
            ),
            "zone",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_cannot_be_stored_is_lost_alone_and_named_by_its_path(value: Any, why: str) -> None:
    encoded = encode(
        {"loops": {"before": 1, "callbacks": [0, {"it": value}], "after": torch.ones(1)}}
    )
    assert len(encoded.lost) == 1
    assert encoded.lost[0].startswith("loops/callbacks.1.it") and why in encoded.lost[0]
    back = decode(json.loads(json.dumps(encoded.tree)), encoded.tensors)["loops"]
    assert back["before"] == 1 and torch.equal(back["after"], torch.ones(1))
    lost = back["callbacks"][1]["it"]
    while not isinstance(lost, LostLeaf):
        lost = next(iter(one for one in lost if one != 1))
    assert lost.why == encoded.lost[0]


def test_a_class_that_is_gone_becomes_a_lost_leaf_and_imports_nothing() -> None:
    assert "this" not in sys.modules
    tree = {
        "s": [
            {"$": "enum", "class": "this:Gone", "member": "A"},
            {"$": "enum", "class": "codec_cases:Color", "member": "GREEN"},
            {"$": "dataclass", "class": "this:Gone", "fields": {}},
            {"$": "namedtuple", "class": "codec_cases:Pair", "items": [1]},
            {"$": "reference", "name": "this:s"},
            {"$": "reference", "name": "sys:path"},
        ]
    }
    assert all(isinstance(one, LostLeaf) for one in decode(tree, {})["s"])
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "node",
    [
        {"$": "dataclass", "class": "subprocess:Popen", "fields": {"args": "true"}},
        {"$": "namedtuple", "class": "os:system", "items": ["true"]},
        {"$": "enum", "class": "os:system", "member": "true"},
        {"$": "enum", "class": "os:system", "flags": "true"},
    ],
)
def test_a_tree_cannot_choose_what_is_called(node: dict[str, Any]) -> None:
    import subprocess

    assert subprocess.Popen
    assert isinstance(decode({"s": node}, {})["s"], LostLeaf)


def test_a_missing_tensor_is_named() -> None:
    encoded = encode({"model": {"w": torch.ones(2)}})
    with pytest.raises(EncodingError, match=r"section 'model'.*'model/w'"):
        decode(encoded.tree, {})


def test_a_tensor_of_another_shape_is_refused() -> None:
    encoded = encode({"model": {"w": torch.ones(2)}})
    with pytest.raises(EncodingError, match="model/w"):
        decode(encoded.tree, {"model/w": torch.ones(3)})


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", 3, "a\nb"])
def test_a_section_that_is_no_file_name_is_refused(name: Any) -> None:
    with pytest.raises(EncodingError, match="section"):
        encode({name: 1})
