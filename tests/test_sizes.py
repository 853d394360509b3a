"""Sizes are read as people write them, and what is printed is read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.store.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (0, 0),
        (123, 123),
        ("0", 0),
        ("123", 123),
        ("123 B", 123),
        ("50GB", 50_000_000_000),
        ("50gb", 50_000_000_000),
        ("50G", 50_000_000_000),
        (" 500 MB ", 500_000_000),
        ("1.5TiB", 3 * 2**39),
        ("2KiB", 2048),
        ("2Ki", 2048),
        (".5 kB", 500),
        ("1.", 1),
        ("1.1kB", 1100),
        ("8.2EB", 8_200_000_000_000_000_000),
        ("0.0019kB", 1),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "GB",
        "-1GB",
        "1e9",
        "50 GBs",
        "50 giga",
        "1,5GB",
        "1..5GB",
        "5iB",
        "٣GB",
        "inf",
        "9" * 99,
        -1,
        True,
        None,
        1.5,
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a size: .*50GB"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994_999, "9.99 MB"),
        (9_996_000, "10.0 MB"),
        (99_960_000, "100 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (12_500_000_000, "12.5 GB"),
        (5 * 10**21, "5000 EB"),
    ],
)
def test_sizes_are_printed_with_three_digits(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@given(st.integers(0, 10**20))
def test_a_printed_size_is_read_back_up_to_its_rounding(nbytes: int) -> None:
    assert abs(parse_size(format_size(nbytes)) - nbytes) <= 0.00501 * nbytes


@given(
    st.integers(0, 10**6),
    st.sampled_from(["", "k", "M", "g", "T", "p", "E"]),
    st.sampled_from(["", "i"]),
)
def test_every_unit_is_a_power_of_1000_or_of_1024(number: int, unit: str, binary: str) -> None:
    power = "kmgtpe".find(unit.lower()) + 1 if unit else 0
    text = f"{number}{unit}{binary if unit else ''}B"
    assert parse_size(text) == number * (1024 if binary and unit else 1000) ** power
