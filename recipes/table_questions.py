"""Questions about real tables, with their answers: the tables of `vega_datasets`, the
questions from templates.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import Any

from vega_datasets import local_data

# numbered as in the models that were fine-tuned on WikiTableQuestions
OPERATORS = (
    "NONE",
    "SUM",
    "AVERAGE",
    "COUNT",
)
HELD_OUT = 4  # every fourth row of a source appears in validation tables only
FEWEST_ROWS = 4

Row = dict[str, str]
Cell = tuple[int, int]  # row and column, without the header


@dataclass(frozen=True)
class Source:
    """A data set. key: the column that names a row, of a `moment` if it is a date.

    texts, measures: columns by name, and what a table's header calls them.
    """

    name: str
    noun: str
    key: str
    measures: dict[str, str]
    texts: dict[str, str]
    moment: str | None = None  # a format of strftime


@dataclass(frozen=True)
class Table:
    """A few rows and columns of a source, as text.

    columns[0] is the key. is_measure: of each column.
    """

    source: Source
    columns: tuple[str, ...]
    is_measure: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, index: int) -> list[str]:
        return [row[index] for row in self.rows]


@dataclass(frozen=True)
class Question:
    """cells: those that the answer is read from. number: the answer, or None where the cells
    themselves are it.
    """

    table: Table
    kind: str
    text: str
    cells: tuple[Cell, ...]
    operator: str = "NONE"
    number: float | None = None


SECTORS = (
    "construction", "manufacturing", "wholesale_trade", "retail_trade", "utilities", "information",
    "financial_activities", "other_services", "government", "mining_and_logging",
)  # fmt: skip
SOURCES = (
    Source(
        "cars",
        "car",
        "Name",
        {
            "Miles_per_Gallon": "miles per gallon",
            "Horsepower": "horsepower",
            "Weight_in_lbs": "weight",
            "Displacement": "displacement",
            "Acceleration": "acceleration",
        },
        {"Cylinders": "cylinders", "Origin": "origin"},
    ),
    Source(
        "us-employment",
        "month",
        "month",
        {one: one.replace("_", " ") for one in SECTORS},
        {},
        "%b %Y",
    ),
    Source("stocks", "month", "date", {"price": "price"}, {"symbol": "symbol"}, "%b %Y"),
    Source(
        "seattle-weather",
        "day",
        "date",
        {
            "precipitation": "precipitation",
            "temp_max": "maximum",
            "temp_min": "minimum",
            "wind": "wind",
        },
        {"weather": "weather"},
        "%d %b %Y",
    ),
    Source("barley", "variety", "variety", {"yield": "yield"}, {"site": "site", "year": "year"}),
    Source(
        "burtin",
        "bacteria",
        "Bacteria",
        {"Penicillin": "penicillin", "Streptomycin": "streptomycin", "Neomycin": "neomycin"},
        {"Gram_Staining": "gram staining", "Genus": "genus"},
    ),
    Source(
        "crimea",
        "month",
        "date",
        {"wounds": "wounds", "disease": "disease", "other": "other causes"},
        {},
        "%b %Y",
    ),
    Source("driving", "year", "year", {"miles": "miles", "gas": "gas price"}, {}),
    Source(
        "iowa-electricity",
        "year",
        "year",
        {"net_generation": "net generation"},
        {"source": "source"},
        "%Y",
    ),
    Source(
        "ohlc",
        "day",
        "date",
        {"open": "open", "high": "high", "low": "low", "close": "close"},
        {"signal": "signal"},
        "%d %b %Y",
    ),
    Source("wheat", "year", "year", {"wheat": "wheat price", "wages": "wages"}, {}),
)


def ask(count: int, *, rows: int, columns: int, held_out: bool, seed: int) -> list[Question]:
    """That many questions, the kinds in turn, each about a new table of at most so many rows
    and columns.
    """
    rng = random.Random(seed)
    sources = [(one, split(load(one), held_out)) for one in SOURCES]
    found: list[Question] = []
    for kind in cycle(KINDS):
        if len(found) == count:
            return found
        asked = None
        while asked is None:  # not every table has an answer to every kind, or one answer
            source, its_rows = rng.choice(sources)
            asked = ASK[kind](draw(source, its_rows, rows, columns, rng), rng)
        found.append(asked)
    return found


def load(source: Source) -> list[Row]:
    """All rows of a source as the texts that a table shows, in the order of the file; those
    with a gap are left out.
    """
    raw = local_data(source.name, return_raw=True).decode("utf-8")
    is_json = raw.lstrip().startswith("[")
    rows: list[dict[str, Any]] = (
        json.loads(raw) if is_json else list(csv.DictReader(io.StringIO(raw)))
    )
    names = [source.key, *source.measures, *source.texts]
    whole = [row for row in rows if all(row.get(name) not in (None, "") for name in names)]
    return [
        {
            name: number(row[name]) if name in source.measures else str(row[name]).lower()
            for name in names
        }
        | {source.key: moment(str(row[source.key]), source.moment)}
        for row in whole
    ]


def number(value: float | str) -> str:
    """At most three decimals, and commas: without them TAPAS takes a number of four digits
    for a year.
    """
    return f"{float(value):,.3f}".rstrip("0").rstrip(".")


def moment(text: str, form: str | None) -> str:
    """A date of a file in the given form; other keys in small letters."""
    if form is None:
        return text.lower()
    for known in ("%Y-%m-%d", "%Y/%m/%d", "%b %d %Y"):
        try:
            return datetime.strptime(text, known).strftime(form).lower()
        except ValueError:
            continue
    raise ValueError(f"{text!r} is no date in any form that vega_datasets 0.9 has")


def split(rows: list[Row], held_out: bool) -> list[Row]:
    """The rows for validation, or the others; spread over the whole file."""
    return [row for index, row in enumerate(rows) if (index % HELD_OUT == HELD_OUT - 1) == held_out]


def draw(
    source: Source, rows: list[Row], most_rows: int, most_columns: int, rng: random.Random
) -> Table:
    """A table with some of the rows, no key twice, and some of the columns, in any order;
    the key comes first.
    """
    by_key = {row[source.key]: row for row in rng.sample(rows, len(rows))}
    drawn = list(by_key.values())[: rng.randint(FEWEST_ROWS, most_rows)]
    names = [*source.measures, *source.texts]
    chosen = rng.sample(names, min(len(names), rng.randint(2, most_columns - 1)))
    headers = source.measures | source.texts
    return Table(
        source,
        (source.noun, *(headers[name] for name in chosen)),
        (False, *(name in source.measures for name in chosen)),
        tuple((row[source.key], *(row[name] for name in chosen)) for row in drawn),
    )


def look_up(table: Table, rng: random.Random) -> Question:
    row, column = rng.randrange(len(table.rows)), rng.randrange(1, len(table.columns))
    form = rng.choice(["what is the {0} of {1}?", "what {0} does {1} have?", "{1}: which {0}?"])
    return Question(
        table, "look_up", form.format(table.columns[column], table.rows[row][0]), ((row, column),)
    )


def reverse_look_up(table: Table, rng: random.Random) -> Question | None:
    column, row = rng.randrange(1, len(table.columns)), rng.randrange(len(table.rows))
    values = table.column(column)
    if values.count(values[row]) > 1:
        return None
    form = rng.choice(
        ["which {0} has {1} {2}?", "{1} is {2} for which {0}?", "name the {0} with a {1} of {2}"]
    )
    text = form.format(table.source.noun, table.columns[column], values[row])
    return Question(table, "reverse_look_up", text, ((row, 0),))


def extreme(table: Table, rng: random.Random) -> Question | None:
    column = _measure(table, rng)
    if column is None:
        return None
    values = [to_number(one) for one in table.column(column)]
    word, wanted = rng.choice(
        [("highest", max), ("largest", max), ("lowest", min), ("smallest", min)]
    )
    best = wanted(values)
    if values.count(best) > 1:
        return None
    form = rng.choice(["what is the {0} {1}?", "name the {0} {1}", "{0} {1} of all rows?"])
    return Question(
        table, "extreme", form.format(word, table.columns[column]), ((values.index(best), column),)
    )


def count(table: Table, rng: random.Random) -> Question | None:
    """How many rows have a text, or a measure above or below that of another row."""
    column = rng.randrange(1, len(table.columns))
    texts = table.column(column)
    told = rng.choice(texts)
    if table.is_measure[column]:
        word, is_meant = rng.choice([("more than", float.__gt__), ("less than", float.__lt__)])
        rows = [row for row, text in enumerate(texts) if is_meant(to_number(text), to_number(told))]
        told = f"{word} {told}"
    else:
        rows = [row for row, text in enumerate(texts) if text == told]
    if not rows:
        return None
    form = rng.choice(["how many have {0} {1}?", "what is the number of rows with {0} {1}?"])
    text = form.format(table.columns[column], told)
    return Question(
        table, "count", text, tuple((row, column) for row in rows), "COUNT", float(len(rows))
    )


def sum_or_average(table: Table, rng: random.Random) -> Question | None:
    column = _measure(table, rng)
    if column is None:
        return None
    values = [to_number(one) for one in table.column(column)]
    word, operator = rng.choice(
        [("total", "SUM"), ("sum of", "SUM"), ("average", "AVERAGE"), ("mean", "AVERAGE")]
    )
    form = rng.choice(["what is the {0} {1}?", "{0} {1} of all rows?"])
    result = sum(values) / (len(values) if operator == "AVERAGE" else 1)
    cells = tuple((row, column) for row in range(len(values)))
    return Question(
        table, "sum_or_average", form.format(word, table.columns[column]), cells, operator, result
    )


ASK: dict[str, Callable[[Table, random.Random], Question | None]] = {
    "look_up": look_up,
    "reverse_look_up": reverse_look_up,
    "extreme": extreme,
    "count": count,
    "sum_or_average": sum_or_average,
}
KINDS = tuple(ASK)


def words(questions: list[Question]) -> Iterator[str]:
    """The text of each question and of each cell and header of its table."""
    for one in questions:
        yield one.text
        yield from one.table.columns
        for row in one.table.rows:
            yield from row


def to_number(text: str) -> float:
    return float(text.replace(",", ""))


def _measure(table: Table, rng: random.Random) -> int | None:
    found = [index for index, is_measure in enumerate(table.is_measure) if is_measure]
    return rng.choice(found) if found else None
