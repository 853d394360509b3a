"""A YAML file as plain values, and the line of each of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flor_plugins.errors import RecipeError
from flor_plugins.recipe.examples import example_recipe
from flor_plugins.records import JsonObject

KeyPath = tuple[int | str, ...]
RecipeMistake = tuple[KeyPath, str]


class _Loader(yaml.SafeLoader):
    """The plain scalars of YAML 1.2.

    PyYAML's 1.1 reads `off` as False, `1:3` as 63 and `5e-4` as a string.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and shape)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file that was read. content: its plain values; root: the nodes with their lines."""

    path: Path
    content: JsonObject
    root: yaml.Node

    def at(self, loc: KeyPath, text: str) -> str:
        """Return `file:line: text` for the place that `loc` leads to, as far as it does."""
        return f"{self.path}:{_line(self.root, loc)}: {text}"


def read_document(path: Path) -> Document:
    """Read a YAML file that holds one mapping. Raises RecipeError beginning `file:line:`."""
    text = _read_text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError(f"{path}:1: the recipe is empty; it begins with `version: 1`")
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(
                f"{path}:{root.start_mark.line + 1}: a recipe is a mapping of keys to values"
            )
        twice = [f"{path}:{line}: {text}" for line, text in _duplicates(root, set())]
        if twice:
            raise RecipeError("\n".join(twice))
        return Document(path, loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{path}:{line}: not YAML: {error.reason} (character {error.character!r})"
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML lets through for values that do not fit an explicit tag, and for deep nesting.
        raise RecipeError(f"{path}:1: not YAML that can be read: {error}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """What to write instead, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there is {', '.join(known) or 'none'}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = [sibling.name for sibling in path.parent.glob("*.yaml")]
        hint = nearest(path.name, near) if near else f"; an example is {example_recipe()}"
        raise RecipeError(f"{path}:1: no such file{hint}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path}:1: can't be read: {error.strerror}") from error


def _duplicates(node: yaml.Node, seen: set[int]) -> Iterator[tuple[int, str]]:
    """Keys that stand twice in one mapping: YAML would silently take the last one."""
    if id(node) in seen:  # an alias, perhaps to a node around it
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    yield (
                        line,
                        f"key {key.value!r} stands already on line {first[key.value]}; remove one",
                    )
                first.setdefault(key.value, line)
            yield from _duplicates(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _duplicates(one, seen)


def _line(node: yaml.Node, loc: KeyPath) -> int:
    line = node.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            # The last one: keys that a merge (<<) brings in stand before those that override them.
            pairs = [pair for pair in node.value if pair[0].value == str(part)]
            if not pairs:
                break
            key, node = pairs[-1]
            line = key.start_mark.line + 1
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
