"""A `where` expression: parsed once, checked node by node, never run as code.

Understood: and or not & | ~, comparisons (chained), in, + - * / // % **, names, dotted names
(`model.lr` is the column "model.lr"), names in backticks (any text), constants, .isna() .notna()
.isin([...]) .between(a, b) .str.startswith("x") .str.endswith("x") .str.contains("x").
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from flor_plugins.errors import WhereError
from flor_plugins.store.query import where_operations

if TYPE_CHECKING:
    import pandas

Evaluate = Callable[["pandas.DataFrame"], Any]
LISTS = (ast.List, ast.Tuple, ast.Set)
ADVICE = (
    "A where knows and/or/not, comparisons, in, arithmetic, column names, constants, and .isna() "
    + (".notna() .isin([...]) .between(a, b) .str.startswith(x) .str.endswith(x) .str.contains(x).")
)


@dataclass(frozen=True, slots=True)
class WhereExpression:
    """A parsed expression. names: the columns it reads, in the order in which they first appear."""

    text: str
    names: tuple[str, ...]
    _evaluate: Evaluate = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> WhereExpression:
        """Check `text`; WhereError shows the expression and the place of the first mistake."""
        parser = _Parser(text)
        try:
            evaluate = parser.condition(parser.tree())
        except RecursionError:
            parser.fail(
                0, "the expression is nested too deeply", "Use `x in [...]` in place of many `or`."
            )
        return cls(text, tuple(dict.fromkeys(parser.names)), evaluate)

    def mask(self, frame: pandas.DataFrame) -> pandas.Series:
        """True where the expression holds, with the frame's index.

        As in pandas with NaN: a comparison with a missing value is False, whatever the
        column's type, but for `!=`, which is True. Text in `contains` is a regular expression.
        WhereError for a column that the frame lacks, and where the types do not fit.
        """
        return where_operations.spread(self._evaluate(frame), frame)

    @property
    def parts(self) -> tuple[WhereExpression, ...]:
        """What `and` joins at the top, or itself: it holds nowhere where one of them does not."""
        parser = _Parser(self.text)
        tree = parser.tree()
        found = []
        for node in (
            tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        ):
            parser.names = []
            evaluate = parser.condition(node)
            found.append(WhereExpression(self.text, tuple(dict.fromkeys(parser.names)), evaluate))
        return tuple(found)


class _Parser:
    """Turns each node into a function of the frame; what has no case here is refused."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        # The same length as the text, so that a node's column is its place in the text.
        self.source, self.quoted = _unquote(text, self.fail)

    def tree(self) -> ast.expr:
        body = self.source.lstrip()
        if not body:
            self.fail(0, "the expression is empty")
        self.shift = len(self.source) - len(body)
        self.bytes = body.encode("utf-8", "replace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "\d" in a pattern is fine here
                return ast.parse(body, mode="eval").body
        except SyntaxError as error:
            # offset 0: something is missing at the end
            place = self.shift + error.offset - 1 if error.offset else len(self.source.rstrip())
            self.fail(place, f"this is not an expression ({error.msg})")
        except (ValueError, RecursionError, MemoryError) as error:
            self.fail(0, f"this can't be parsed ({error})")

    def at(self, node: ast.expr) -> int:
        """The place of a node in the text, in characters (ast counts bytes)."""
        return self.shift + len(self.bytes[: node.col_offset].decode("utf-8", "replace"))

    def fail(self, place: int, why: str, advice: str = ADVICE) -> NoReturn:
        raise WhereError(f"{why}, in\n    {_one_line(self.text)}\n    {' ' * place}^\n{advice}")

    def condition(self, node: ast.expr) -> Evaluate:
        """True or False per row."""
        match node:
            case ast.BoolOp(op=op, values=parts):
                name = "and" if isinstance(op, ast.And) else "or"
                return self.call(node, where_operations.LOGIC[name], *map(self.condition, parts))
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as op, right=right):
                name = "and" if isinstance(op, ast.BitAnd) else "or"
                return self.call(
                    node, where_operations.LOGIC[name], self.condition(left), self.condition(right)
                )
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return self.call(node, where_operations.negate, self.condition(operand))
        # & and | bind more tightly than comparisons, so that their operands are often not what
        # was meant.
        return self.call(node, where_operations.as_condition, self.value(node))

    def value(self, node: ast.expr) -> Evaluate:
        """A column or a constant."""
        match node:
            case ast.Name() | ast.Attribute():
                return self.column(node)
            case ast.Constant(value=bool() | int() | float() | str() as constant):
                return lambda frame: constant
            case ast.Constant(value=None):
                self.fail(self.at(node), "None is not a value", "Write x.isna() or x.notna().")
            case ast.BinOp(left=left, op=op, right=right) if (
                type(op).__name__ in where_operations.ARITHMETIC
            ):
                function = where_operations.ARITHMETIC[type(op).__name__]
                return self.call(node, function, self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                function = where_operations.SIGNS[type(op).__name__]
                return self.call(node, function, self.value(operand))
            case ast.Compare():
                return self.comparison(node)
            case ast.Call(func=ast.Attribute() as method, args=arguments, keywords=[]):
                return self.method(node, method, arguments)
            case ast.BoolOp() | ast.UnaryOp() | ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                return self.condition(node)
            case ast.Call():
                self.fail(self.at(node), "this call is not understood")
        self.fail(self.at(node), f"{_KINDS.get(type(node).__name__, 'this')} is not understood")

    def column(self, node: ast.expr) -> Evaluate:
        name = self.dotted(node)
        self.names.append(name)
        place = self.at(node)

        def read(frame: pandas.DataFrame) -> Any:
            if name not in frame.columns:
                self.fail(place, f"there is no column {name!r}", _close(name, list(frame.columns)))
            return frame[name]

        return read

    def dotted(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return self.quoted.get(self.at(node), name)
            case ast.Attribute(value=ast.Name() | ast.Attribute() as value, attr=attr):
                return f"{self.dotted(value)}.{attr}"
        self.fail(
            self.at(node), "a dot is only understood in a column's name and before a known method"
        )

    def comparison(self, node: ast.Compare) -> Evaluate:
        sides, parts = [node.left, *node.comparators], []
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            name = type(op).__name__
            if name in ("In", "NotIn"):
                parts.append(self.membership(node, left, right, is_in=name == "In"))
            elif name in where_operations.COMPARISONS:
                function = where_operations.COMPARISONS[name]
                parts.append(self.call(node, function, self.value(left), self.value(right)))
            else:
                self.fail(
                    self.at(right),
                    "`is` is not understood",
                    "Write x.isna(), x.notna() or x == value.",
                )
        return (
            parts[0] if len(parts) == 1 else self.call(node, where_operations.LOGIC["and"], *parts)
        )

    def membership(
        self, node: ast.expr, left: ast.expr, right: ast.expr, *, is_in: bool
    ) -> Evaluate:
        if isinstance(right, LISTS):
            constants = self.constants(right)
            found = self.call(node, partial(where_operations.is_in, constants), self.value(left))
        elif isinstance(left, ast.Constant):
            found = self.call(node, where_operations.holds, self.value(left), self.value(right))
        else:
            self.fail(
                self.at(right),
                "`in` needs a list of constants",
                'Write x in [1, 2] or "a" in tags.',
            )
        return found if is_in else self.call(node, where_operations.negate, found)

    def method(self, node: ast.Call, method: ast.Attribute, arguments: list[ast.expr]) -> Evaluate:
        match method:
            case ast.Attribute(value=target, attr="isna" | "notna" as name) if not arguments:
                return self.call(node, where_operations.METHODS[name], self.value(target))
            case ast.Attribute(value=target, attr="isin") if len(arguments) == 1 and isinstance(
                arguments[0], LISTS
            ):
                constants = self.constants(arguments[0])
                return self.call(
                    node, partial(where_operations.is_in, constants), self.value(target)
                )
            case ast.Attribute(value=target, attr="between") if len(arguments) == 2:
                ends = map(self.value, arguments)
                return self.call(node, where_operations.between, self.value(target), *ends)
            case ast.Attribute(value=ast.Attribute(value=target, attr="str"), attr=name) if (
                name in where_operations.TEXT
            ):
                if len(arguments) == 1 and isinstance(text := _constant(arguments[0]), str):
                    return self.call(
                        node, partial(where_operations.text, name, text), self.value(target)
                    )
                self.fail(
                    self.at(node), f".str.{name} needs one text", f'Write x.str.{name}("abc").'
                )
        self.fail(self.at(node), "this call is not understood")

    def constants(self, node: ast.List | ast.Tuple | ast.Set) -> list[Any]:
        constants = []
        for element in node.elts:
            constant = _constant(element)
            if constant is None:
                self.fail(self.at(element), "a list may hold only numbers and texts")
            constants.append(constant)
        return constants

    def call(self, node: ast.expr, function: Callable[..., Any], *parts: Evaluate) -> Evaluate:
        """Apply, and say where, if the types of the columns do not fit."""
        place = self.at(node)

        def evaluate(frame: pandas.DataFrame) -> Any:
            values = [part(frame) for part in parts]
            try:
                return where_operations.quietly(function, *values)
            except (
                TypeError,
                ValueError,
                ArithmeticError,
                AttributeError,
                where_operations.PatternError,
            ) as error:
                why = (
                    f"this can't be computed ({type(error).__name__}: "
                    f"{_one_line(str(error))[:200]})"
                )
                self.fail(
                    place,
                    why,
                    "Compare numbers with numbers and text with text; join conditions with `and`.",
                )

        return evaluate


def _unquote(text: str, fail: Callable[[int, str], NoReturn]) -> tuple[str, dict[int, str]]:
    """Replace names in backticks by underscores of the same length; returns them by place."""
    source, quoted, place = list(_one_line(text)), {}, 0
    while place < len(text):
        char = text[place]
        if char in "'\"":
            place = _end_of_string(text, place)
        elif char == "`":
            end = text.find("`", place + 1)
            if end < 0 or end == place + 1:
                fail(
                    place, "a backtick is not closed" if end < 0 else "a name in backticks is empty"
                )
            quoted[place] = text[place + 1 : end]
            source[place : end + 1] = "_" * (end + 1 - place)
            place = end + 1
        elif char == "#":  # would hide the rest, and what it hides would not be refused
            fail(place, "a comment is not understood")
        else:
            place += 1
    return "".join(source), quoted


def _end_of_string(text: str, place: int) -> int:
    quote, place = text[place], place + 1
    while place < len(text) and text[place] != quote:
        place += 2 if text[place] == "\\" else 1
    return place + 1


def _one_line(text: str) -> str:
    return "".join(" " if char.isspace() else char for char in text)


def _constant(node: ast.expr) -> Any:
    """A number or a text, with its sign; None for anything else."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def _close(name: str, columns: list[str]) -> str:
    close = [
        column for column in columns if column.endswith("/" + name)
    ] or difflib.get_close_matches(name, columns, n=3)
    if not close:
        return f"The columns are: {', '.join(columns)}."
    return (
        f"Did you mean {' or '.join(one if one.isidentifier() else f'`{one}`' for one in close)}?"
    )


_KINDS = {
    "Lambda": "a lambda",
    "Subscript": "a subscript",
    "NamedExpr": "an assignment",
    "IfExp": "an if",
    "JoinedStr": "an f-string",
    "Constant": "this kind of constant",
    "List": "a list outside of `in` and isin",
    "BinOp": "this operator",
}
