"""How the house is built: layers, what is imported when, sizes, and what is never used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flor_plugins
from flor_plugins.recipe import check_recipe
from tests.house_table import House

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flor_plugins"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

HEAVY = (
    "torch",
    "pandas",
    "numpy",
    "lightning",
    "transformers",
    "pyarrow",
    "duckdb",
    "rich",
    "typer",
)
RUNS_CODE_WHEN_LOADED = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 50


def fresh(code: str, cwd: Path) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str, cwd: Path, modules: tuple[str, ...]) -> list[str]:
    """Which of `modules` are loaded after `code`."""
    return fresh(
        f"{code}\nimport sys\nprint(*[m for m in {modules!r} if m in sys.modules])", cwd
    ).split()


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def test_imports_point_downward_and_only_adapters_import_their_framework():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    assert loaded("import flor_plugins", tmp_path, HEAVY) == []


def test_decorating_a_metric_loads_neither_torch_nor_a_framework(tmp_path):
    code = "import flor_plugins as flor\n@flor.metric\ndef acc(ctx): return 1.0"
    assert loaded(code, tmp_path, ("torch", "lightning", "transformers")) == []


def test_the_command_line_loads_no_framework_before_a_verb_needs_it(tmp_path):
    modules = tuple(name for name in HEAVY if name not in ("typer", "rich"))
    assert loaded("import flor_plugins.cli.app", tmp_path, modules) == []


def test_listing_runs_loads_no_torch_no_trainer_and_no_pandas(tmp_path):
    code = (
        "import flor_plugins.cli.read\n"
        "from flor_plugins.store.layout import Store\n"
        "from flor_plugins.store.runs import list_runs\n"
        "from pathlib import Path\n"
        "assert list_runs(Store(Path('store'))) == []"
    )
    assert loaded(code, tmp_path, ("torch", "pandas", "lightning", "transformers")) == []


@pytest.mark.parametrize("name", flor_plugins.__all__)
def test_a_public_name_leads_to_something(name):
    assert callable(getattr(flor_plugins, name))
    assert name in dir(flor_plugins)


def test_an_unknown_public_name_is_refused_with_those_that_exist():
    with pytest.raises(AttributeError, match="dataframe"):
        _ = flor_plugins.datafram


def test_every_file_of_the_house_is_short_has_short_functions_and_loads_nothing_that_runs_code():
    """pickle and its kin run code when they load, and so do torch.load(weights_only=False) and
    numpy.load(allow_pickle=True)."""
    assert len(FILES) > 100
    assert [fault for path in FILES for fault in faults(path)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 351, ["351 lines"]),
        ("x = 1\n" * 350, []),
        # the longer of two functions with one name, wherever it stands
        ("def act():\n" + " 1\n" * 50 + "def act():\n 1\n", ["act (line 1) has 51 lines"]),
        ("class A:\n def act(): 1\n def act():\n" + "  1\n" * 50, ["act (line 3) has 51 lines"]),
        ("import os, pickle.sub", ["imports pickle"]),
        ("def act():\n from shelve import open", ["imports shelve"]),
        ("torch.load(path, weights_only=False)", ["line 1: weights_only=False"]),
        ("numpy.load(path,\n allow_pickle=True)", ["line 1: allow_pickle=True"]),
        ("torch.load(path, weights_only=True)", []),
    ],
)  # fmt: skip
def test_a_fault_of_a_file_is_found(text: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert faults(path) == [f"{path}: {fault}" for fault in found]


def faults(path: Path) -> list[str]:
    """What is wrong with a file of the package."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), len(text.splitlines())
    found = [f"{lines} lines"] if lines > MAX_FILE_LINES else []
    roots = sorted({name.partition(".")[0] for name in imports(tree)} & RUNS_CODE_WHEN_LOADED)
    found += [f"imports {name}" for name in roots]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{node.name} (line {node.lineno}) has {length} lines")
        if isinstance(node, ast.Call) and "load" in ast.unparse(node.func).rpartition(".")[2]:
            found += [f"line {node.lineno}: {given}" for given in _unsafe(node)]
    return [f"{path}: {fault}" for fault in found]


def _unsafe(call: ast.Call) -> list[str]:
    given = [ast.unparse(keyword) for keyword in call.keywords]
    return [one for one in given if one in ("weights_only=False", "allow_pickle=True")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_of_ours_has_no_mistake(path):
    assert check_recipe(path) == []


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"bert.yaml", "resnet152.yaml"}


@pytest.mark.xdist_group("a group")
def test_tests_of_one_group_run_in_one_worker(request):
    """pytest-xdist does not say so where it can't put tests together: fixtures are made twice."""
    assert request.node.nodeid.endswith("@a group") or not hasattr(request.config, "workerinput")


def test_the_house_stays_as_it_was_built():
    """The measures that tests/house_table.py prints, held to what was reached."""
    house = House(ROOT)
    assert house.circles == []
    assert house.upward == []
    assert house.long_lines == []
    assert house.fan_out[0] <= 20, house.fan_out
    assert len(house.meanings) <= 8, house.meanings
    assert len(house.large_classes) <= 5, house.large_classes


def test_the_walks_through_the_house_name_files_that_there_are():
    page = (PACKAGE / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\d+\. `([\w/]+\.py)`", page, flags=re.MULTILINE)
    assert len(rooms) > 60
    assert [room for room in rooms if not (PACKAGE / room).is_file()] == []
