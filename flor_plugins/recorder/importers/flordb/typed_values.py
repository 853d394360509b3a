"""What FlorDB kept as text, as the value that it was.

Dates and whatever else is no literal stay text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_WORDS = {"True": True, "False": False, "None": None}
_NOT_FINITE = ("nan", "inf", "-inf")
# Inside of a list or a dict also what JSON writes.
_NAMES = {"true": True, "false": False, "null": None, "NaN": float("nan"), "Infinity": float("inf")}
_LONGEST = 1_000_000  # a literal beyond this is kept as text


def value_of(text: object) -> object:
    """The bool, int, float, list or dict that `text` is the `str` (or the JSON) of; else the text.

    None for None.

    What is no text is taken as it is: JSON has its own types.
    """
    if not isinstance(text, str):
        return None if text is None else plain(text)
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < 4000 and _INTEGER.fullmatch(text):
        return int(text)
    if text in _NOT_FINITE or _FLOAT.fullmatch(text):
        return float(text)
    if text[:1] in "[({" and text[-1:] in "])}" and len(text) <= _LONGEST:
        return _literal(text)
    return text


def plain(value: object) -> object:
    """Return a value as a journal keeps it.

    Tuples and sets become lists, keys become text, and so does what JSON can't express.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return [plain(one) for one in sorted(value, key=repr)]
    return value if isinstance(value, bool | int | float | str) else str(value)


def _literal(text: str) -> object:
    """Literals only; nothing is called or looked up.

    `nan` and `inf` inside are what `str` makes of such floats.
    """
    try:
        tree = ast.parse(text, mode="eval")
        return plain(ast.literal_eval(_Floats().visit(tree)))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


class _Floats(ast.NodeTransformer):
    """The names that stand for floats, true, false and null, as constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in _NOT_FINITE:
            return ast.copy_location(ast.Constant(float(node.id)), node)
        return ast.copy_location(ast.Constant(_NAMES[node.id]), node) if node.id in _NAMES else node
