from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import EncodingError, StoreError
from flor_plugins.store.metrics.value_codec import LARGEST_INLINE, Media, decode_value, encode_value

leaves = st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
NOWHERE = Path("nowhere") / "media"


def same(left: Any, right: Any) -> bool:
    """Equal in value and type; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


def there_and_back(value: Any, media: Path = NOWHERE) -> Any:
    return decode_value(json.loads(json.dumps(encode_value(value, media), allow_nan=False)), media)


@given(values)
def test_every_plain_value_survives_strict_json(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_tuples_come_back_as_lists() -> None:
    assert there_and_back((1, (2.5, "x"))) == [1, [2.5, "x"]]


def test_a_dict_that_looks_like_a_tag_is_still_a_dict() -> None:
    assert there_and_back({"$": "float", "v": "nan"}) == {"$": "float", "v": "nan"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("x"), "x"),
        (numpy.longdouble(0.25), 0.25),
        (numpy.array(7), 7),
        (numpy.eye(2, dtype=numpy.int8), [[1, 0], [0, 1]]),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(True), True),
        (torch.tensor([1.5, 2.5], dtype=torch.bfloat16), [1.5, 2.5]),
        (torch.eye(2).to_sparse(), [[1.0, 0.0], [0.0, 1.0]]),
        (torch.arange(4).view(2, 2).t(), [[0, 2], [1, 3]]),
        ({"a": numpy.float64("inf"), "b": [torch.tensor(2)]}, {"a": math.inf, "b": [2]}),
    ],
)
def test_numbers_of_numpy_and_torch_become_plain(value: Any, expected: Any) -> None:
    assert same(there_and_back(value), expected)


def test_nan_inside_an_array_survives() -> None:
    assert same(there_and_back(numpy.array([1.0, math.nan, -math.inf])), [1.0, math.nan, -math.inf])


@pytest.mark.parametrize("make", [numpy.arange, torch.arange])
def test_a_large_array_goes_into_a_file_of_its_own_once(make: Any, tmp_path: Path) -> None:
    media = tmp_path / "media"
    big = make(LARGEST_INLINE + 1)
    encoded = encode_value(big, media)
    assert encoded == encode_value(big, media)
    assert [path.name for path in media.iterdir()] == [Path(encoded["path"]).name]
    back = decode_value(encoded, media)
    assert isinstance(back, Media) and back.kind == "array"
    assert numpy.array_equal(back.load(), numpy.asarray(big))


def test_media_of_one_run_are_copied_when_written_to_another(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "media", tmp_path / "b" / "media"
    value = there_and_back(numpy.zeros(LARGEST_INLINE + 1), first)
    assert there_and_back(value, first) == value
    assert numpy.array_equal(there_and_back(value, second).load(), value.load())


def test_a_dataframe_is_a_parquet_file(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
    back = there_and_back(frame, tmp_path / "media")
    assert back.kind == "table" and back.path.suffix == ".parquet"
    pandas.testing.assert_frame_equal(back.load(), frame)


def test_an_image_is_a_png_file(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), (255, 0, 10))
    back = there_and_back(image, tmp_path / "media")
    assert back.kind == "image" and back.path.read_bytes().startswith(b"\x89PNG")
    assert back.load().tobytes() == image.tobytes()


class _Own:
    pass


cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [None],
        object(),
        _Own,
        {1: 2},
        {3},
        b"x",
        1j,
        numpy.array([object()]),
        numpy.complex64(1),
        torch.tensor(1j),
        numpy.datetime64("2026-01-01"),
        lambda: 1,
        cyclic,
    ],
)
def test_what_needs_pickle_is_refused_with_advice(value: Any) -> None:
    with pytest.raises(EncodingError, match="Return "):
        encode_value(value, NOWHERE)


def test_refusal_names_the_type() -> None:
    with pytest.raises(EncodingError, match="_Own"):
        encode_value([_Own()], NOWHERE)


def test_a_path_in_a_journal_can_not_leave_the_media_folder(tmp_path: Path) -> None:
    evil = {"$": "media", "kind": "array", "path": "media/../../../etc/passwd"}
    assert decode_value(evil, tmp_path / "media").path == tmp_path / "media" / "passwd"


@pytest.mark.parametrize(
    "evil",
    [{}, {"$": "what"}, {"$": "float", "v": "1e5"}, {"$": "media", "kind": "exe", "path": "x"}],
)
def test_an_unknown_tag_is_a_store_error(evil: Any) -> None:
    with pytest.raises(StoreError, match="form that this version does not know"):
        decode_value(evil, NOWHERE)


def test_media_that_are_gone_say_where_they_were(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone\.npy"):
        Media("array", tmp_path / "gone.npy").load()


def test_a_pickle_in_place_of_an_array_is_not_loaded(tmp_path: Path) -> None:
    numpy.save(tmp_path / "evil.npy", numpy.array([_Own()], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match=r"evil\.npy"):
        Media("array", tmp_path / "evil.npy").load()


def test_encoding_imports_no_library(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from flor_plugins.store.metrics.value_codec "
        "import encode_value, EncodingError\n"
        "encode_value([1, {'a': 2.0}], Path('media'))\n"
        "try: encode_value(object(), Path('media'))\n"
        "except EncodingError: pass\n"
        "assert not {'torch', 'numpy', 'pandas', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
