"""Statements as text: taken from one file and put into another one, with what stands inside
strings untouched.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.syntax import first_line


@dataclass(frozen=True, slots=True)
class SplicedText:
    """A text that goes before statement `index` of a block of a file; of several at one
    place in their order.
    """

    path: str
    body: list[ast.stmt]
    index: int
    text: str


def taken(source: str, node: ast.stmt) -> str:
    """The text of a statement, its decorators included, moved to the left margin; without
    trailing newline.
    """
    lines = [line.rstrip("\r\n") for line in split(source)]
    start, end = first_line(node) - 1, node.end_lineno or node.lineno
    before = lines[start][: node.col_offset] if start == node.lineno - 1 else ""
    after = lines[end - 1].encode()[node.end_col_offset or 0 :].decode().strip()
    if before.strip() or (after and not after.startswith("#")):  # shares its line with others
        return ast.get_source_segment(source, node) or ast.unparse(node)
    inside = _inside_strings([node])
    return "\n".join(
        line if number in inside else line[node.col_offset :]
        for number, line in enumerate(lines[start:end], start=start + 1)
    )


def _inside_strings(nodes: Iterable[ast.AST]) -> set[int]:
    """The lines that begin inside a string."""
    return {
        number
        for node in nodes
        for one in ast.walk(node)
        if isinstance(one, ast.Constant | ast.JoinedStr)
        for number in range(one.lineno + 1, (one.end_lineno or one.lineno) + 1)
    }


def put_in(source: str, puts: Iterable[SplicedText]) -> str:
    """A file with texts put in.

    Raises CannotCarry where statements share a line, so that nothing fits between them.
    """
    newline = "\r\n" if "\r\n" in source else "\n"
    lines = split(source)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    by_line: dict[int, list[str]] = {}
    for put in puts:
        line, indent = _line(lines, put)
        inside = _inside_strings(ast.parse(put.text).body)
        text = [
            one if number in inside or not one else indent + one
            for number, one in enumerate(put.text.split("\n"), start=1)
        ]
        by_line.setdefault(line, []).extend(
            one + newline for one in _spaced(text, put, lines, line)
        )
    for line in sorted(by_line, reverse=True):
        lines[line:line] = by_line[line]
    return "".join(lines)


def split(text: str) -> list[str]:
    """The lines as Python counts them, each with its end: a form feed ends none."""
    return re.findall(r".*?(?:\r\n|\n|\r)|.+\Z", text, re.DOTALL)


def _spaced(text: list[str], put: SplicedText, lines: list[str], line: int) -> list[str]:
    """Empty lines around a function or class, as they are usual."""
    node = ast.parse(put.text).body[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return text
    indented = bool(put.body and put.body[0].col_offset)
    gap = [""] * (1 if indented else 2)
    if line < len(lines) and lines[line].strip():
        return [*text, *gap]
    return [*gap, *text]


def _line(lines: list[str], put: SplicedText) -> tuple[int, str]:
    """Before which line (from 0) a text goes, and how far to the right."""
    if not put.body:
        return len(lines), ""
    first = put.body[0]
    start = lines[first_line(first) - 1].encode()[: first.col_offset].decode()
    above = put.body[put.index - 1] if put.index else None
    below = put.body[put.index] if put.index < len(put.body) else None
    shares = above is not None and below is not None and below.lineno == above.end_lineno
    if start.strip() or shares:
        raise CannotCarry(
            f"a statement was to be put into line {first.lineno if start.strip() else above.end_lineno} of {put.path}, "  # type: ignore[union-attr]
            "where several statements stand on one line, so that nothing can be put between "
            "them. Use a hook there."
        )
    return (above.end_lineno or 0) if above is not None else first_line(first) - 1, start


def patch(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What `git diff` would print: a unified diff of the files in `new` against those in `old`."""
    parts = []
    for path, text in sorted(new.items()):
        was = old.get(path)
        head = f"diff --git a/{path} b/{path}\n" + ("new file mode 100644\n" if was is None else "")
        name = "/dev/null" if was is None else f"a/{path}"
        lines = difflib.unified_diff(split(was or ""), split(text), name, f"b/{path}")
        body = "".join(
            line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
            for line in lines
        )
        parts.append(head + body if body or was is None else "")
    return "".join(parts)
