"""The README says what is there: its blocks compile, its commands and formats exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from flor_plugins import cli
from flor_plugins.cli.app import app
from flor_plugins.records import Run
from flor_plugins.store.codec import arrays, names, tags
from flor_plugins.store.runs import FIELDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

COMMAND = typer.main.get_command(app)
VERBS = COMMAND.commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def our_commands() -> list[list[str]]:
    """Every flor-... command of the bash blocks, as words; the program's folder is left out."""
    found = []
    for line in "".join(blocks("bash")).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part)
            if Path(words[0]).name.startswith("flor"):
                found.append([Path(words[0]).name, *words[1:]])
    return found


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_compiles(block):
    compile(block, "README.md", "exec")


def test_names_that_python_blocks_take_from_flor_exist():
    import flor_plugins as flor

    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "flor"
            ):
                assert node.attr in flor.__all__


def test_json_blocks_are_json_lines():
    for block in blocks("json"):
        assert [json.loads(line) for line in block.splitlines()]


def test_commands_are_console_scripts_with_verbs_and_options_that_exist():
    commands = our_commands()
    assert commands
    for program, verb, *words in commands:
        assert program in PROJECT["scripts"]
        options = {name for one in VERBS[verb].params for name in one.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_files_that_commands_name_are_there():
    for words in our_commands():
        assert all((ROOT / word).is_file() for word in words if word.startswith("recipes/"))


def test_extras_that_commands_install_exist():
    assert set(re.findall(r"\.\[(\w+)\]", README)) <= set(PROJECT["optional-dependencies"])


def test_the_options_of_replay_are_all_in_its_table():
    for parameter in VERBS["replay"].params:
        for option in parameter.opts:
            assert f"`{option}" in README or option in ("-y", "recipe"), option


def test_verbs_are_all_named():
    assert set(VERBS) == {name for name in VERBS if re.search(rf"`{name}( \w+)?`", README)}


def test_the_table_of_exit_codes_is_that_of_the_command_line():
    table = re.search(r"^\| exit code .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert table is not None
    in_readme = dict(re.findall(r"^\| (\d+) \| ([\w ]+)", table[0], re.MULTILINE))
    in_code = dict(re.findall(r"(\d+) ([a-z][\w ]+?)(?: ·|\.)", cli.__doc__ or ""))
    assert in_code.keys() == in_readme.keys() == {"0", "1", "2", "3", "130"}
    for code, text in in_code.items():
        assert in_readme[code].startswith(text)


def test_every_tag_of_a_state_is_specified():
    table = README.partition("| tag | keys |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    specified = {tag for row in rows for tag in re.findall(r"`(\w+)`", row)}
    assert specified == {"tensor", *tags.UNPACK, *arrays.UNPACK, *names.UNPACK}


def test_every_field_of_run_json_is_specified():
    section = README.partition("### run.json")[2].partition("### ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert set(FIELDS) <= named
    for part in ("launch", "code", "process", "timing"):
        assert part in Run.__dataclass_fields__
