"""README and the pages of flor_plugins/docs: their blocks, run as a reader would run them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.cli.help import DOCS
from tests.replaying import Project

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RUN_ID = re.compile(r"\b\d{8}-\d{6}-\d{3}-[0-9a-f]{6}\b")
_VID = re.compile(r"\b[0-9a-f]{12}\b")
_VERDICTS = {"exact", "close", "diverged", "unverified"}
_SECONDS = (5, 6)  # columns of a schedule


@dataclass(frozen=True)
class Block:
    """A block of code of a page. language: python, bash, text or json."""

    page: str
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """`train.py` where the block begins with `# train.py`."""
        name = re.match(r"# (\w+\.py)\n", self.text)
        return name[1] if name else None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page.name, *match) for match in _BLOCK.findall(text)]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def flor_commands(block: Block) -> Iterator[list[str]]:
    """Every flor-... command of a bash block, as words; the program's folder is left out."""
    for line in block.text.splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words and Path(words[0]).name.startswith("flor"):
                yield [Path(words[0]).name, *words[1:]]


def run_line(project: Project, line: str) -> str:
    """Run `python FILE` or `flor-hf ...`, and return what it prints to stdout."""
    program, *words = shlex.split(line, comments=True)
    start = {"python": project.python, "flor-hf": project.flor}[program]
    return start(*words).stdout


def is_printed(expected: str, printed: str) -> bool:
    """Whether the lines were printed, in this order; `...` stands for any lines.

    Ids, commits and seconds differ from one run to the next. Other numbers may differ a little:
    another processor rounds otherwise.
    """
    lines = iter(printed.splitlines())
    for part in re.split(r"^\.\.\.\n", expected, flags=re.MULTILINE):
        first, *rest = part.strip("\n").splitlines() or [""]
        if first and not any(_is_same(first, line) for line in lines):
            return False
        if not all(_is_same(wanted, next(lines, "")) for wanted in rest):
            return False
    return True


def _is_same(wanted: str, line: str) -> bool:
    ours, theirs = _words(wanted), _words(line)
    is_schedule = bool(ours) and ours[-1] in _VERDICTS
    return len(ours) == len(theirs) and all(
        one == other or _is_near(one, other, any_number=is_schedule and column in _SECONDS)
        for column, (one, other) in enumerate(zip(ours, theirs, strict=True))
    )


def _words(line: str) -> list[str]:
    return _VID.sub("VID", _RUN_ID.sub("RUN", line)).split()


def _is_near(one: str, other: str, any_number: bool) -> bool:
    try:
        return any_number or math.isclose(float(one), float(other), rel_tol=1e-3)
    except ValueError:
        return False
