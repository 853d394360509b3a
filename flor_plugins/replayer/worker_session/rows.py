"""The rows that a replay stores: values by what gave them, and what was looked for in vain,
maybe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flor_plugins.records import Grade, Position, ReplayPass, Row
from flor_plugins.store.metrics.reserved_names import ASKED


def is_asked(one: ReplayPass, position: Position) -> bool:
    """Were values of single updates asked for there?"""
    return one.steps is None or position.step in one.steps or position in one.positions


def rows_of(
    row: Row,
    values: Mapping[str, Any],
    looked_for: Iterable[str],
    digest: Callable[[str], str | None],
    grade: Grade,
) -> Iterator[Row]:
    """One row for each source of the values.

    looked_for: only running the code tells whether it logs these there.
    """
    found: dict[str | None, dict[str, Any]] = {}
    for name, value in values.items():
        found.setdefault(digest(name), {})[name] = value
    for name in looked_for:
        found.setdefault(digest(name), {}).setdefault(ASKED, []).append(name)
    for source, its in found.items():
        yield replace(row, values=its, verdict=grade, hook=source)
