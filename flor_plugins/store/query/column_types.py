"""Python values as a typed pandas column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


def typed(cells: list[Any], expected: type | None = None) -> pandas.Series:
    """boolean, Int64, float64 or str if all cells are one of these, else object; None is missing.

    Ints beside floats become floats; ints beyond 64 bit stay Python ints in an object column.
    Rectangular lists of numbers, or of texts, become arrays. expected: str, if the cells hold
    nothing else: the column then has that type even when all of it is missing.
    """
    import pandas

    kinds = {type(cell) for cell in cells}
    kinds.discard(type(None))
    if expected is str and not kinds:
        return pandas.Series([None] * len(cells), dtype=_text_type())
    if kinds == {bool}:
        return pandas.Series(pandas.array(cells, dtype="boolean"))
    if kinds == {int} and all(cell is None or -(2**63) <= cell < 2**63 for cell in cells):
        return pandas.Series(pandas.array(cells, dtype="Int64"))
    if float in kinds and kinds <= {int, float}:
        try:
            return pandas.Series(
                [_NAN if cell is None else float(cell) for cell in cells], dtype="float64"
            )
        except OverflowError:
            pass  # an int beyond what a float can say
    if kinds == {str}:
        return pandas.Series(cells, dtype=_text_type())
    return _objects(cells)


def _text_type() -> Any:
    """Return `str` where that is a type of its own (pandas 3), else object.

    A missing cell stays missing.
    """
    import pandas

    return "str" if isinstance(pandas.Series(["x"]).dtype, pandas.StringDtype) else object


def _objects(cells: list[Any]) -> pandas.Series:
    import numpy
    import pandas

    column = numpy.empty(len(cells), dtype=object)
    for index, cell in enumerate(cells):
        column[index] = _NAN if cell is None else _array(cell) if isinstance(cell, list) else cell
    return pandas.Series(column)


def _array(cell: list[Any]) -> Any:
    """The array that says the same as the list, or the list."""
    import numpy

    try:
        leaves = numpy.array(cell, dtype=object)
        kinds = {type(leaf) for leaf in leaves.ravel().tolist()}
        if kinds <= {int, float} or kinds in ({bool}, {str}):
            array = numpy.array(cell)
            return cell if array.dtype == object else array
    except (ValueError, OverflowError):
        pass  # ragged
    return cell


_NAN = float("nan")
