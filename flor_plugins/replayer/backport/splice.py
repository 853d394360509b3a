"""Take statements as text from one file and put them into another one.

What stands inside strings is untouched.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.syntax import Definition, first_line


@dataclass(frozen=True, slots=True)
class SplicedText:
    """A text that goes before statement `index` of a block of a file.

    Several texts at one place keep their order.
    """

    path: str
    body: list[ast.stmt]
    index: int
    text: str


def taken(source: str, node: ast.stmt) -> str:
    """Return the text of a statement, its decorators included, moved to the left margin.

    It has no trailing newline.
    """
    lines = [line.rstrip("\r\n") for line in split(source)]
    start, end = first_line(node) - 1, node.end_lineno or node.lineno
    before = lines[start][: node.col_offset] if start == node.lineno - 1 else ""
    after = lines[end - 1].encode()[node.end_col_offset or 0 :].decode().strip()
    if before.strip() or (after and not after.startswith("#")):  # shares its line with others
        return ast.get_source_segment(source, node) or ast.unparse(node)
    inside = _inside_strings(node)
    return "\n".join(
        line if number in inside else line[node.col_offset :]
        for number, line in enumerate(lines[start:end], start=start + 1)
    )


def _inside_strings(tree: ast.AST) -> set[int]:
    """Return the lines that begin inside a string."""
    return {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
        for number in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }


def put_in(source: str, puts: Iterable[SplicedText]) -> str:
    """Return a file with texts put in.

    Raises CannotCarry where statements share a line, so that nothing fits between them.
    """
    newline = "\r\n" if "\r\n" in source else "\n"
    lines = split(source)
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    by_line: dict[int, list[str]] = {}
    for put in puts:
        number, indent = _line(lines, put)
        tree = ast.parse(put.text)
        inside = _inside_strings(tree)
        text = [
            line if row in inside or not line else indent + line
            for row, line in enumerate(put.text.split("\n"), start=1)
        ]
        if isinstance(tree.body[0], Definition):  # empty lines around it, as they are usual
            gap = [""] * (1 if indent else 2)
            is_followed = number < len(lines) and bool(lines[number].strip())
            text = [*text, *gap] if is_followed else [*gap, *text]
        by_line.setdefault(number, []).extend(line + newline for line in text)
    for number in sorted(by_line, reverse=True):
        lines[number:number] = by_line[number]
    return "".join(lines)


def split(text: str) -> list[str]:
    """Return the lines as Python counts them, each with its end: a form feed ends none."""
    return re.findall(r".*?(?:\r\n|\n|\r)|.+\Z", text, re.DOTALL)


def _line(lines: list[str], put: SplicedText) -> tuple[int, str]:
    """Return before which line (from 0) a text goes, and how far to the right."""
    if not put.body:
        return len(lines), ""
    first = put.body[0]
    indent = lines[first_line(first) - 1].encode()[: first.col_offset].decode()
    above_end = put.body[put.index - 1].end_lineno or 0 if put.index else None
    below = put.body[put.index] if put.index < len(put.body) else None
    shares = below is not None and below.lineno == above_end
    if indent.strip() or shares:
        raise CannotCarry(
            f"a statement was to be put into line {first.lineno if indent.strip() else above_end} "
            f"of {put.path}, "
            "where several statements stand on one line, so that nothing can be put between "
            "them. Use a hook there."
        )
    return first_line(first) - 1 if above_end is None else above_end, indent


def patch(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return what `git diff` would print: a unified diff of the files in `new` against `old`."""
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
