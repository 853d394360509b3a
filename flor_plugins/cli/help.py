"""`help`: the pages of flor_plugins/docs, in the terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from flor_plugins.cli import tables
from flor_plugins.errors import FlorError

DOCS = Path(__file__).parents[1] / "docs"

_ENTRY = re.compile(r"^- \[(\w+)\]\(\1\.md\): (.+)$", re.MULTILINE)


def topics() -> dict[str, str]:
    """Return each topic with its line, in the order of the index."""
    return dict(_ENTRY.findall(_page("index")))


def show_help(topic: str | None) -> int:
    """Print the page of a topic, or the list of topics. FlorError where there is no such page."""
    known = topics()
    if topic is None:
        rows = [{"topic": name, "about": about} for name, about in known.items()]
        tables.table(rows, ["topic", "about"], as_json=False, as_csv=False)
        return 0
    name = topic.lower().replace("-", "_")
    if name not in known:
        from flor_plugins.recipe.document import nearest

        raise FlorError(
            f"help has no topic {topic!r} (a verb is explained by flor-hf VERB --help)"
            f"{nearest(name, known)}"
        )
    _print_page(_page(name))
    return 0


def _page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def _print_page(text: str) -> None:
    """A terminal gets rendered Markdown, anything else the Markdown itself."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
