"""What a `where` computes with: columns of any type and constants.

Values are missing as in pandas with NaN.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import partial, reduce
from operator import methodcaller
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

PatternError = re.error
TEXT = ("startswith", "endswith", "contains")
BinaryOperation = Callable[[Any, Any], Any]
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
    """Return the opposite of a condition."""
    return ~value if _is_column(value) else not value


def is_in(constants: list[Any], value: Any) -> Any:
    """Say whether a value, or each cell, is one of some constants."""
    return value.isin(constants) if _is_column(value) else value in constants


def holds(constant: Any, cells: Any) -> Any:
    """Whether each cell, a list or a text, holds the constant; False where it is missing."""
    if isinstance(cells, str):
        return str(constant) in cells
    return cells.map(partial(_cell_holds, constant)).astype(bool)


def between(value: Any, low: Any, high: Any) -> Any:
    """Say whether a value, or each cell, lies between two others, both included."""
    return LOGIC["and"](COMPARISONS["GtE"](value, low), COMPARISONS["LtE"](value, high))


def text(name: str, part: str, value: Any) -> Any:
    """Whether each text starts with, ends with or matches `part`; False for what is no text."""
    matches = re.compile(part).search if name == "contains" else methodcaller(name, part)

    def is_match(cell: object) -> bool:
        return isinstance(cell, str) and bool(matches(cell))

    return value.map(is_match).astype(bool)


def _is_column(value: Any) -> bool:
    return hasattr(value, "iloc")


def _compare(function: BinaryOperation, missing: bool) -> BinaryOperation:
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


def _compute(function: BinaryOperation) -> BinaryOperation:
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


def _cell_holds(constant: object, cell: object) -> bool:
    if isinstance(cell, str):
        return isinstance(constant, str) and constant in cell
    return constant in cell if isinstance(cell, list | tuple) else False


def _all_of(*parts: Any) -> Any:
    return reduce(operator.and_, parts)


def _any_of(*parts: Any) -> Any:
    return reduce(operator.or_, parts)


LOGIC: Mapping[str, Callable[..., Any]] = {
    "and": _all_of,
    "or": _any_of,
}
COMPARISONS: Mapping[str, BinaryOperation] = {
    "Lt": _compare(operator.lt, False),
    "LtE": _compare(operator.le, False),
    "Gt": _compare(operator.gt, False),
    "GtE": _compare(operator.ge, False),
    "Eq": _compare(operator.eq, False),
    "NotEq": _compare(operator.ne, True),
}
ARITHMETIC: Mapping[str, BinaryOperation] = {
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
    "isna": methodcaller("isna"),
    "notna": methodcaller("notna"),
}
