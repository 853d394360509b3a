"""What a `where` computes with: columns of any type and constants, missing values as in
pandas with NaN.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

PatternError = re.error
TEXT = ("startswith", "endswith", "contains")
NUMBERS = (bool, int, float)


def spread(value: Any, frame: pandas.DataFrame) -> pandas.Series:
    """A condition as a column of numpy bools; one constant counts for every row."""
    import pandas

    if _is_column(value):
        return value.astype(bool)
    return pandas.Series(bool(value), index=frame.index, dtype=bool)


def quietly(function: Callable[..., Any], *values: Any) -> Any:
    """Compute without numpy's warnings: NaN and division by zero are values here, as in pandas."""
    import numpy

    with numpy.errstate(all="ignore"):
        return function(*values)


def as_condition(value: Any) -> Any:
    """A column of bools with missing as False; TypeError for any other column or constant."""
    import pandas

    if isinstance(value, bool):
        return value
    if _is_column(value):
        if value.dtype == bool:
            return value
        if pandas.api.types.is_bool_dtype(value.dtype):
            return value.fillna(False).astype(bool)
        cells = value.dropna()
        if all(isinstance(cell, bool) for cell in cells):  # also: all are missing
            return value.isin([True]) if len(cells) else value.notna()
    raise TypeError("this is not true or false")


def negate(value: Any) -> Any:
    return ~value if _is_column(value) else not value


def is_in(value: Any, constants: list[Any]) -> Any:
    return value.isin(constants) if _is_column(value) else value in constants


def holds(constant: Any, cells: Any) -> Any:
    """Whether each cell, a list or a text, holds the constant; False where it is missing."""
    if isinstance(cells, str):
        return str(constant) in cells
    return cells.map(lambda cell: _cell_holds(cell, constant)).astype(bool)


def between(value: Any, low: Any, high: Any) -> Any:
    return LOGIC["and"](COMPARISONS["GtE"](value, low), COMPARISONS["LtE"](value, high))


def text(name: str, value: Any, part: str) -> Any:
    """Whether each text starts with, ends with or matches `part`; False for what is no text."""
    if name == "contains":
        search = re.compile(part).search
        return value.map(lambda cell: isinstance(cell, str) and search(cell) is not None).astype(
            bool
        )
    return value.map(lambda cell: isinstance(cell, str) and getattr(cell, name)(part)).astype(bool)


def _is_column(value: Any) -> bool:
    return hasattr(value, "iloc")


def _compare(function: Callable[[Any, Any], Any], missing: bool) -> Callable[[Any, Any], Any]:
    def compare(left: Any, right: Any) -> Any:
        left, right = _untyped(left), _untyped(right)
        found = function(left, right)
        # Int64, boolean and string columns say <NA> where float64 says False (True for !=).
        return found.fillna(missing).astype(bool) if _is_column(found) else found

    return compare


def _untyped(value: Any) -> Any:
    """An all-missing column compares with anything: no value, no type."""
    if _is_column(value) and value.dtype != object and value.isna().all():
        return value.astype(object)
    return value


def _compute(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compute(left: Any, right: Any) -> Any:
        if _is_text(left) or _is_text(right):  # else 2 * name would repeat it
            raise TypeError("text has no arithmetic")
        if isinstance(left, NUMBERS) and isinstance(right, NUMBERS):
            return function(float(left), float(right))  # 9**9**9 as ints would never end
        return function(left, right)

    return compute


def _is_text(value: Any) -> bool:
    if _is_column(value) and value.dtype.kind == "O":
        return any(isinstance(cell, str) for cell in value)
    return isinstance(value, str)


def _cell_holds(cell: Any, constant: Any) -> bool:
    if isinstance(cell, str):
        return isinstance(constant, str) and constant in cell
    return constant in cell if isinstance(cell, list | tuple) else False


LOGIC: Mapping[str, Callable[..., Any]] = {
    "and": lambda *parts: reduce(operator.and_, parts),
    "or": lambda *parts: reduce(operator.or_, parts),
}
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Lt": _compare(operator.lt, False),
    "LtE": _compare(operator.le, False),
    "Gt": _compare(operator.gt, False),
    "GtE": _compare(operator.ge, False),
    "Eq": _compare(operator.eq, False),
    "NotEq": _compare(operator.ne, True),
}
ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": _compute(operator.add),
    "Sub": _compute(operator.sub),
    "Mult": _compute(operator.mul),
    "Div": _compute(operator.truediv),
    "FloorDiv": _compute(operator.floordiv),
    "Mod": _compute(operator.mod),
    "Pow": _compute(operator.pow),
}
SIGNS: Mapping[str, Callable[[Any], Any]] = {"USub": operator.neg, "UAdd": operator.pos}
METHODS: Mapping[str, Callable[[Any], Any]] = {
    "isna": lambda value: value.isna(),
    "notna": lambda value: value.notna(),
}
