"""Measures of the house, side by side for several versions of it.

    python -m tests.house_table [REVISION_OR_FOLDER ...]

A version is a git revision of this repository or a folder that holds `flor_plugins/` and
`pyproject.toml`; the default is the working tree.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flor_plugins"
MAX_LINE, MAX_FIELDS = 100, 10
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class House:
    """The package in `folder`, read as text; nothing of it is run."""

    folder: Path

    @cached_property
    def sources(self) -> dict[str, str]:
        """The text of each file by its path beneath the package."""
        package = self.folder / PACKAGE
        return {
            path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
            for path in sorted(package.rglob("*.py"))
        }

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """The syntax tree of each file."""
        return {path: ast.parse(source) for path, source in self.sources.items()}

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of all syntax trees."""
        return [node for tree in self.trees.values() for node in ast.walk(tree)]

    @cached_property
    def lines(self) -> list[str]:
        """All lines of all files."""
        return [line for source in self.sources.values() for line in source.splitlines()]

    @cached_property
    def fan_out(self) -> tuple[int, str]:
        """The largest number of modules and packages in one folder, and that folder."""
        entries: dict[str, set[str]] = defaultdict(set)
        for path in self.sources:
            parts = (PACKAGE, *path.split("/"))
            for depth in range(1, len(parts)):
                entries["/".join(parts[:depth])].add(parts[depth])
        counts = {folder: len(names - {"__init__.py"}) for folder, names in entries.items()}
        return max((count, folder) for folder, count in counts.items())

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Module to the modules of the package that it imports, at any depth of its code.

        What is imported for type checkers only does not count.
        """
        modules = {_module(path): path for path in self.sources}
        found: dict[str, set[str]] = {}
        for module, path in modules.items():
            names = {name for node in _executed(self.trees[path]) for name in _imported(node)}
            known = {_longest_known(name, modules) for name in names}
            found[module] = {name for name in known if name} - {module}
        return found

    @cached_property
    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other, directly or through others."""
        reachable = {module: _reachable(module, self.imports) for module in self.imports}
        groups = {
            tuple(sorted(other for other in reachable[module] if module in reachable[other]))
            for module in self.imports
            if module in reachable[module]
        }
        return [list(group) for group in sorted(groups)]

    @cached_property
    def upward(self) -> list[str]:
        """Imports from a layer to one above it or beside it, by the layers of pyproject.toml."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))
        contracts = project["tool"]["importlinter"]["contracts"]
        layers = next(each["layers"] for each in contracts if each["type"] == "layers")
        floor = {
            part.strip(): (len(layers) - height, part.strip())
            for height, layer in enumerate(layers)
            for part in layer.split("|")
        }
        wrong = []
        for module, targets in self.imports.items():
            for target in targets:
                here, there = _layer_of(module, floor), _layer_of(target, floor)
                if here and there and here != there and there[0] >= here[0]:
                    wrong.append(f"{module} -> {target}")
        return sorted(wrong)

    @cached_property
    def meanings(self) -> dict[str, list[str]]:
        """Class and alias names that more than one file defines, without leading underscores."""
        homes: dict[str, set[str]] = defaultdict(set)
        for path, tree in self.trees.items():
            for name in _defined_names(tree):
                homes[name.lstrip("_")].add(path)
        return {name: sorted(paths) for name, paths in sorted(homes.items()) if len(paths) > 1}

    @cached_property
    def fields(self) -> dict[str, int]:
        """How many fields each class has: those declared in its body and those set on self."""
        return {
            f"{path}:{node.name}": len(_fields(node))
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }

    @cached_property
    def function_lines(self) -> dict[tuple[str, int, str], int]:
        """The length of each function, nested ones included, by file, line and name."""
        return {
            (path, node.lineno, node.name): (node.end_lineno or node.lineno) - node.lineno + 1
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, Function)
        }

    def measures(self) -> dict[str, str]:
        """What the table shows of this version, row by row."""
        lengths = sorted(self.function_lines.values())
        filled = [len(line) for line in self.lines if line.strip()]
        text = "\n".join(self.sources.values())
        p50, p90 = statistics.median(lengths), lengths[int(0.9 * (len(lengths) - 1))]
        return {
            "files": f"{len(self.sources):,}",
            "lines": f"{len(self.lines):,}",
            "largest fan-out of a folder": f"{self.fan_out[0]} ({self.fan_out[1]})",
            "import circles": f"{len(self.circles)}",
            "upward arrows": f"{len(self.upward)}",
            "names with more than one meaning": f"{len(self.meanings)}",
            f"classes with more than {MAX_FIELDS} fields": f"{len(self.large_classes)}",
            "functions p50 / p90 / max lines": f"{p50:.0f} / {p90} / {lengths[-1]}",
            f"lines over {MAX_LINE} characters": f"{len(self.long_lines)}",
            "mean length of a non-blank line": f"{statistics.mean(filled):.1f}",
            "uses of Any": f"{_words(text)['Any']:,}",
            "lambdas": f"{sum(isinstance(node, ast.Lambda) for node in self.nodes)}",
            "nodes of the syntax trees": f"{len(self.nodes):,}",
        }

    @cached_property
    def large_classes(self) -> dict[str, int]:
        """Classes with more than MAX_FIELDS fields."""
        return {name: count for name, count in self.fields.items() if count > MAX_FIELDS}

    @cached_property
    def long_lines(self) -> list[str]:
        """Lines with more than MAX_LINE characters."""
        return [line for line in self.lines if len(line) > MAX_LINE]


def _words(text: str) -> Counter[str]:
    return Counter(text.replace("_", "a").translate(_NO_WORD).split())


_NO_WORD = {code: " " for code in range(128) if not chr(code).isalnum()}


def _module(path: str) -> str:
    dotted = f"{PACKAGE}/{path}".removesuffix(".py").removesuffix("/__init__")
    return dotted.replace("/", ".")


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree without the blocks that only type checkers read."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _longest_known(name: str, modules: dict[str, str]) -> str:
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name if name != PACKAGE else ""


def _reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(imports.get(module, ()))
    return found


def _layer_of(module: str, floor: dict[str, tuple[int, str]]) -> tuple[int, str] | None:
    name = module
    while name and name not in floor:
        name = name.rpartition(".")[0]
    return floor.get(name)


def _defined_names(tree: ast.Module) -> Iterator[str]:
    """Names of classes, and of aliases: CamelCase names that are assigned at the top of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        for target in targets:
            name = target.id if isinstance(target, ast.Name) else ""
            if name.lstrip("_")[:1].isupper() and not name.isupper():
                yield name


def _fields(node: ast.ClassDef) -> set[str]:
    declared = {
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    stored = {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }
    return declared | stored


def _unpacked(version: str, scratch: Path) -> Path:
    """Return a folder that holds a version: the folder itself, or a copy of a git revision."""
    if (Path(version) / PACKAGE).is_dir():
        return Path(version)
    command = ["git", "archive", version, PACKAGE, "pyproject.toml"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(scratch, filter="data")
    return scratch


def main(versions: list[str]) -> None:
    """Print the table, one column for each version."""
    with tempfile.TemporaryDirectory() as scratch:
        columns = [
            House(_unpacked(version, Path(scratch) / str(number))).measures()
            for number, version in enumerate(versions)
        ]
    print("| measure |", " | ".join(versions), "|")
    print("|---|" + "---|" * len(versions))
    for row in columns[0]:
        print(f"| {row} |", " | ".join(column[row] for column in columns), "|")


if __name__ == "__main__":
    main(sys.argv[1:] or [str(ROOT)])
