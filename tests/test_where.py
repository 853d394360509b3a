from __future__ import annotations

import ast
import datetime
from typing import Any

import numpy
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import WhereError
from flor_plugins.store.query.where import WhereExpression

N = float("nan")
FRAME = pandas.DataFrame(
    {
        "run": ["r1", "r1", "r2", "r2"],
        "name": pandas.Series(["bert", "bert", "gpt", None], dtype="str"),
        "epoch": pandas.array([1, 2, 1, None], dtype="Int64"),
        "lr": [0.001, 0.01, N, 0.1],
        "model.lr": [1.0, 2.0, 3.0, 4.0],
        "cohen's kappa": [0.1, 0.2, N, 0.4],
        "train/acc": [0.5, 0.6, 0.7, 0.8],
        "done": pandas.array([True, False, None, True], dtype="boolean"),
        "cm": pandas.Series([numpy.eye(2), N, numpy.eye(2), N], dtype=object),
        "tags": pandas.Series([("a", "b"), ("a",), (), N], dtype=object),
        "missing": pandas.Series([N] * 4, dtype=object),
        "mixed": pandas.Series([1, 2.5, N, 4], dtype=object),
        "__name__": [1, 2, 3, 4],
        "naïve µ": [1, 2, 3, 4],
    }
).set_axis([10, 11, 12, 13])


def rows(text: str) -> list[int]:
    mask = WhereExpression.parse(text).mask(FRAME)
    assert mask.dtype == bool and list(mask.index) == [10, 11, 12, 13]
    return [place for place, found in enumerate(mask) if found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr < 0.05", [0, 1]),
        ("lr < 0.01 and cm.isna()", []),
        ("lr <= 0.01 and cm.isna()", [1]),
        ("0.001 < lr < 0.1", [1]),
        ("not lr < 0.05", [2, 3]),
        ("~(lr < 0.05)", [2, 3]),
        ("(lr < 0.05) & (epoch == 2) | (name == 'gpt')", [1, 2]),
        ("lr != 0.01", [0, 2, 3]),
        ("epoch != 1", [1, 3]),
        ("name != 'bert'", [2, 3]),
        ("epoch == 1", [0, 2]),
        ("epoch > 1", [1]),
        ("name == 'bert'", [0, 1]),
        ("name in ['gpt', 'x']", [2]),
        ("name not in ('gpt',)", [0, 1, 3]),
        ("epoch in {1, 7}", [0, 2]),
        ("epoch.isin([2])", [1]),
        ("lr in [-1, 0.1]", [3]),
        ("lr.between(0.01, 0.1)", [1, 3]),
        ("lr.between(lr, model.lr)", [0, 1, 3]),
        ("model.lr >= 3", [2, 3]),
        ("`cohen's kappa` > 0.1 and `model.lr` < 3", [1]),
        ("`cohen's kappa`.isna()", [2]),
        ("`train/acc` > 0.65", [2, 3]),
        ("`naïve µ` > 2 and lr > 0", [3]),
        ("'µ`' != name and `naïve µ` == 1", [0]),
        ("model.lr / 2 + 1 == 2", [1]),
        ("-lr > -0.01", [0]),
        ("model.lr ** 2 % 2 == 0 and model.lr // 2 == 1", [1]),
        ("2 * 3 == 6", [0, 1, 2, 3]),
        ("9 ** 9 < 0", []),
        ("True", [0, 1, 2, 3]),
        ("done", [0, 3]),
        ("not done", [1, 2]),
        ("done == True", [0, 3]),
        ("cm.notna()", [0, 2]),
        ("'a' in tags", [0, 1]),
        ("'b' not in tags", [1, 2, 3]),
        ("'er' in name", [0, 1]),
        ("name.str.startswith('b')", [0, 1]),
        ("name.str.endswith('t')", [0, 1, 2]),
        ("name.str.contains('^g.t')", [2]),
        ("lr.str.startswith('b')", []),
        ("missing.isna()", [0, 1, 2, 3]),
        ("missing < 1 or missing > 'a' or missing == 1 or missing", []),
        ("missing * 2 < 1", []),
        ("mixed > 1", [1, 3]),
        ("lr > missing", []),
        ("  lr <\n 0.01 ", [0]),
        ("__name__ > 3", [3]),
        ("name > 'c'", [2]),
    ],
)
def test_an_expression_holds_where_pandas_says_so(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


def test_names_are_the_columns_that_are_read() -> None:
    where = WhereExpression.parse(
        "lr < 1 and `cohen's kappa`.isna() or model.lr in [1] and lr > model.str.startswith('x')"
    )
    assert where.names == ("lr", "cohen's kappa", "model.lr", "model")
    assert WhereExpression.parse("1 < 2").names == ()


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("", 0, "empty"),
        ("   ", 0, "empty"),
        ("lr <", 4, "not an expression"),
        ("(lr < 1", 0, "not an expression"),
        ("lr < 1 # and more", 7, "comment"),
        ("lr = 1", 3, "not an expression"),
        ("lr < 1; lr", 6, "not an expression"),
        ("`lr", 0, "not closed"),
        ("lr < ``", 5, "empty"),
        ('__import__("os").system("x")', 0, "call"),
        ('lr < 1 and __import__("os")', 11, "call"),
        ("µ > 1 and print(1)", 10, "call"),
        ("x and (lambda: 1)", 7, "lambda"),
        ("lr.map(len)", 0, "call"),
        ("lr.isna(1)", 0, "call"),
        ("lr.isna(inplace=True)", 0, "call"),
        ("().__class__.__bases__", 0, "dot"),
        ("(1).real > 0", 0, "dot"),
        ("lr.isna().__class__", 0, "dot"),
        ("lr[0] > 1", 0, "subscript"),
        ("[x for x in lr]", 0, "not understood"),
        ("(y := 1) > 0", 1, "assignment"),
        ("1 if lr else 2", 0, "if"),
        ("f'{lr}' == 'a'", 0, "f-string"),
        ("lr is None", 6, "`is`"),
        ("lr == None", 6, "None"),
        ("lr == ...", 6, "constant"),
        ("lr == b'x'", 6, "constant"),
        ("lr == 1j", 6, "constant"),
        ("lr @ lr > 1", 0, "operator"),
        ("lr << 2 > 1", 0, "operator"),
        ("lr in [lr]", 7, "only numbers"),
        ("lr in [None]", 7, "only numbers"),
        ("lr in model", 6, "list of constants"),
        ("lr == [1]", 6, "list"),
        ("name.str.contains(lr)", 0, "needs one text"),
        ("name.str.upper() == 'A'", 0, "call"),
        ("*lr", 0, "not"),
        ("await lr", 0, "not"),
        ("lr, lr", 0, "not understood"),
    ],
)
def test_everything_else_is_refused_with_its_place(text: str, place: int, why: str) -> None:
    with pytest.raises(WhereError, match=why) as caught:
        WhereExpression.parse(text)
    lines = str(caught.value).splitlines()
    assert lines[2].index("^") - 4 == place
    assert len(lines) == 4


@pytest.mark.parametrize(
    "text", ["(" * 500 + "lr" + ")" * 500, "not " * 5000 + "lr", "lr" + "+1" * 20000 + ">0"]
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(WhereError):
        WhereExpression.parse(text).mask(FRAME)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("lr", 0),
        ("lr and done", 0),
        ("done and lr > 1 & epoch == 2", 14),
        ("not name", 4),
        ("name < 3", 0),
        ("lr < 'a'", 0),
        ("cm > 1", 0),
        ("1 + 'a' == 2", 0),
        ("name.str.contains('(')", 0),
        ("1 / 0 > lr", 0),
        ("9.0 ** 9 ** 9 > lr", 0),
        ("(1).isna()", 0),
        ("1 < 'a'", 0),
        ("name * 2 == 'x'", 0),
    ],
)
def test_types_that_do_not_fit_are_refused_with_their_place(text: str, place: int) -> None:
    with pytest.raises(WhereError, match="can't be computed") as caught:
        WhereExpression.parse(text).mask(FRAME)
    assert str(caught.value).splitlines()[2].index("^") - 4 == place


def test_a_column_that_is_missing_is_named_with_close_matches() -> None:
    with pytest.raises(WhereError, match=r"no column 'nmae'(.|\n)*Did you mean name"):
        WhereExpression.parse("lr < 1 and nmae == 'x'").mask(FRAME)
    with pytest.raises(WhereError, match=r"Did you mean `train/acc`\?"):
        WhereExpression.parse("acc < 1").mask(FRAME)


def test_an_empty_frame_gives_an_empty_mask() -> None:
    for text in (
        "lr < 1",
        "done",
        "missing",
        "cm.isna()",
        "'a' in tags",
        "name.str.contains('x')",
        "True",
    ):
        mask = WhereExpression.parse(text).mask(FRAME.iloc[:0])
        assert mask.dtype == bool and len(mask) == 0


def test_datetimes_compare_with_text() -> None:
    frame = pandas.DataFrame({"at": [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 6, 1)]})
    assert list(WhereExpression.parse("at > '2026-03-01'").mask(frame)) == [False, True]


def test_a_null_byte_is_refused() -> None:
    with pytest.raises(WhereError):
        WhereExpression.parse("a\x00b")


@given(st.text("lr`'\"()<>=&|~ .1+*,[]:isnaotd#\\\n") | st.text())
def test_any_text_is_parsed_or_refused_but_nothing_else_happens(text: str) -> None:
    try:
        where = WhereExpression.parse(text)
    except WhereError as error:
        assert "^" in str(error)
        return
    assert all(isinstance(name, str) for name in where.names)


expressions = st.recursive(
    st.sampled_from(["lr < 0.05", "epoch == 1", "name == 'bert'", "cm.isna()", "(`model.lr` > 2)"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        ),
        inner.map(lambda one: f"(not {one})"),
    ),
    max_leaves=6,
)


@given(expressions)
def test_logic_is_that_of_python_row_by_row(text: str) -> None:
    plain = ast.parse(
        text.replace("`model.lr`", "model_lr").replace("cm.isna()", "cm_na"), mode="eval"
    )
    code = compile(plain, "<test>", "eval")
    expected: list[int] = []
    for place in range(4):
        cells: dict[str, Any] = {name: FRAME[name].iloc[place] for name in ("lr", "epoch", "name")}
        cells = {name: None if cell is pandas.NA else cell for name, cell in cells.items()}
        cells |= {
            "model_lr": FRAME["model.lr"].iloc[place],
            "cm_na": bool(FRAME["cm"].isna().iloc[place]),
        }
        if eval(code, {}, cells):
            expected.append(place)
    assert rows(text) == expected
