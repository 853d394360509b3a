"""What a module-level name stands for, and how a file of a version imports another one of it."""

from __future__ import annotations

import ast
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flor_plugins.replayer.backport.names import local_names
from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    ImportNode,
    bound_name,
    statements,
    with_single_imports,
)

MAX_HOPS = 8  # of names that are imported from where they were imported


@dataclass(frozen=True, slots=True)
class NamedObject:
    """What a name stands for.

    path: the project's file that defines it; "" if it is not of the project. name: in that file
    ("" for the module itself), or the dotted name of what is imported from outside.
    """

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class ImportBinding:
    """An import of one name. node: with that name only."""

    name: str
    node: ImportNode

    @property
    def module(self) -> str:
        """The module that is imported, or imported from; "" for the package around the file."""
        node = self.node
        return (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name

    @property
    def level(self) -> int:
        """How many dots stand before the module."""
        return self.node.level if isinstance(self.node, ast.ImportFrom) else 0

    @property
    def inner(self) -> str:
        """What is imported, as if it were a module itself."""
        return ".".join(filter(None, (self.module, self.node.names[0].name)))


def imports(version: CodeVersion, path: str) -> list[ImportBinding]:
    """Return all that a file imports at module level, name by name."""
    return [
        ImportBinding(bound_name(node.names[0]), node)
        for node in with_single_imports(statements(version.trees[path].body))
        if isinstance(node, ImportNode)
    ]


def has_star(version: CodeVersion, path: str) -> bool:
    """Whether a file imports any number of names."""
    return any(binding.name == "*" for binding in imports(version, path))


def module_names(version: CodeVersion, path: str) -> set[str]:
    """Return the names that a file defines or imports."""
    return local_names(version.trees[path].body)


def resolve(version: CodeVersion, path: str, name: str, hops: int = MAX_HOPS) -> NamedObject | None:
    """Return what a module-level name of a file stands for; None if the file does not define it."""
    if path not in version.trees or name not in module_names(version, path):
        return None
    for binding in reversed(imports(version, path)):
        if binding.name == name:
            return _imported(version, path, binding, hops)
    return NamedObject(path, name)


def _imported(version: CodeVersion, path: str, binding: ImportBinding, hops: int) -> NamedObject:
    alias = binding.node.names[0]
    if isinstance(binding.node, ast.Import):
        module = alias.name if alias.asname else binding.name
        file = module_path(version, path, module, 0)
        return NamedObject(file, "") if file else NamedObject("", module)
    if file := module_path(version, path, binding.inner, binding.level):
        return NamedObject(file, "")
    file = module_path(version, path, binding.module, binding.level)
    if not file:
        return NamedObject("", binding.inner)
    further = resolve(version, file, alias.name, hops - 1) if hops else None
    return further or NamedObject(file, alias.name)


def module_path(version: CodeVersion, path: str, module: str, level: int) -> str:
    """Return the project's file that an import in `path` means.

    "" if it means a package from outside.
    """
    folders = list(_ancestors(posixpath.dirname(path)))
    roots = [*folders, *_top_folders(version)]
    if level:
        roots = [folders[min(level, len(folders)) - 1]]
    inner = module.replace(".", "/")
    for root in roots:
        for file in (f"{inner}.py", f"{inner}/__init__.py") if inner else ("__init__.py",):
            if (full := posixpath.join(root, file)) in version.texts:
                return full
    return ""


def _ancestors(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
    yield ""


def _top_folders(version: CodeVersion) -> list[str]:
    """Return the folders at the top: src/ is a usual one."""
    return sorted({path.partition("/")[0] for path in version.texts if "/" in path})


def import_text(version: CodeVersion, path: str, target: NamedObject, name: str) -> str:
    """Return the statement by which a file gets a thing of the project.

    It is relative or not, as the version's files do it.
    """
    alias = (
        "" if name == (target.name or _dotted(target.path).rpartition(".")[2]) else f" as {name}"
    )
    if any(binding.level for binding in imports(version, path)):
        module = _relative(path, target.path)
    else:
        root = _import_root(version, path, target.path) or "."
        module = _dotted(posixpath.relpath(target.path, root))
    if target.name:
        return f"from {module} import {target.name}{alias}"
    package, _, last = module.rpartition(".")
    package += "." if module.startswith(".") and package.strip(".") == "" else ""
    return f"from {package} import {last}{alias}" if package else f"import {last}{alias}"


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _relative(path: str, to: str) -> str:
    folder, dots = posixpath.dirname(path), "."
    while folder and not to.startswith(folder + "/"):
        folder, dots = posixpath.dirname(folder), dots + "."
    return dots + _dotted(posixpath.relpath(to, folder or "."))


def _import_root(version: CodeVersion, path: str, to: str) -> str:
    """Return the folder that absolute imports begin at.

    The version's other imports show it; else it is the importing file's own.
    """
    seen: Counter[str] = Counter()
    for file in version.trees:
        for binding in imports(version, file):
            module = binding.module
            imported = "" if binding.level else module_path(version, file, module, 0)
            if imported:
                inner = len(module.split(".")) + imported.endswith("/__init__.py")
                seen["/".join(imported.split("/")[:-inner])] += 1
    folder = posixpath.dirname(path)
    is_package = f"{folder}/__init__.py" in version.texts
    choices = [root for root, _ in seen.most_common()] + ([] if is_package else [folder])
    return next((root for root in choices if not root or to.startswith(root + "/")), "")


def leads_to(version: CodeVersion, start: str, end: str) -> bool:
    """Whether importing `start` imports `end`."""
    seen = [start]
    for file in seen:
        for binding in imports(version, file) if file in version.trees else ():
            for module in (binding.module, binding.inner):
                imported = module_path(version, file, module, binding.level)
                if imported and imported not in seen:
                    seen.append(imported)
    return end in seen
