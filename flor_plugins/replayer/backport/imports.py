"""What a module-level name stands for, and how a file of a version imports another one of it."""

from __future__ import annotations

import ast
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flor_plugins.replayer.backport.names import local_names
from flor_plugins.replayer.backport.syntax import CodeVersion, statements

MAX_HOPS = 8  # of names that are imported from where they were imported


@dataclass(frozen=True, slots=True)
class NamedObject:
    """What a name stands for. path: the project's file that defines it; "" if it is not of the
    project.

    name: in that file ("" for the module itself), or the dotted name of what is imported from
    outside."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class ImportBinding:
    """An import of one name. node: with that name only."""

    name: str
    node: ast.Import | ast.ImportFrom


def imports(version: CodeVersion, path: str) -> list[ImportBinding]:
    """All that a file imports at module level, name by name."""
    found = []
    for one in statements(version.trees[path].body):
        if isinstance(one, ast.Import):
            found += [
                ImportBinding(a.asname or a.name.partition(".")[0], ast.Import([a]))
                for a in one.names
            ]
        elif isinstance(one, ast.ImportFrom):
            found += [
                ImportBinding(a.asname or a.name, ast.ImportFrom(one.module, [a], one.level))
                for a in one.names
            ]
    return found


def has_star(version: CodeVersion, path: str) -> bool:
    return any(one.name == "*" for one in imports(version, path))


def module_names(version: CodeVersion, path: str) -> set[str]:
    """The names that a file defines or imports."""
    return local_names(list(version.trees[path].body))


def thing(version: CodeVersion, path: str, name: str, hops: int = MAX_HOPS) -> NamedObject | None:
    """What a module-level name of a file stands for; None if the file does not define it."""
    if path not in version.trees or name not in module_names(version, path):
        return None
    for one in reversed(imports(version, path)):
        if one.name == name:
            return _imported(version, path, one, hops)
    return NamedObject(path, name)


def _imported(version: CodeVersion, path: str, binding: ImportBinding, hops: int) -> NamedObject:
    node, alias = binding.node, binding.node.names[0]
    if isinstance(node, ast.Import):
        module = alias.name if alias.asname else alias.name.partition(".")[0]
        file = module_path(version, path, module, 0)
        return NamedObject(file, "") if file else NamedObject("", module)
    inner = ".".join(filter(None, (node.module, alias.name)))
    if file := module_path(version, path, inner, node.level):
        return NamedObject(file, "")
    file = module_path(version, path, node.module or "", node.level)
    if not file:
        return NamedObject("", inner)
    further = thing(version, file, alias.name, hops - 1) if hops else None
    return further or NamedObject(file, alias.name)


def module_path(version: CodeVersion, path: str, module: str, level: int) -> str:
    """The project's file that an import in `path` means; "" if it means a package from outside."""
    folder = posixpath.dirname(path)
    if level:
        for _ in range(level - 1):
            folder = posixpath.dirname(folder)
        roots = [folder]
    else:
        roots = list(dict.fromkeys([*_ancestors(folder), *_roots(version)]))
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


def _roots(version: CodeVersion) -> list[str]:
    """The folders at the top: src/ is a usual one."""
    return sorted({path.partition("/")[0] for path in version.texts if "/" in path})


def import_text(version: CodeVersion, path: str, of: NamedObject, name: str) -> str:
    """The statement by which a file gets a thing of the project, as the version's files do
    it: relative or not.
    """
    alias = "" if name == (of.name or _dotted(of.path).rpartition(".")[2]) else f" as {name}"
    if any(
        isinstance(one.node, ast.ImportFrom) and one.node.level for one in imports(version, path)
    ):
        module = _relative(path, of.path)
    else:
        module = _dotted(posixpath.relpath(of.path, _root(version, path, of.path) or "."))
    if of.name:
        return f"from {module} import {of.name}{alias}"
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


def _root(version: CodeVersion, path: str, to: str) -> str:
    """The folder that absolute imports begin at: as the version's other imports show, else
    the importing file's own.
    """
    seen: Counter[str] = Counter()
    for file in version.trees:
        for one in imports(version, file):
            module = (
                one.node.module if isinstance(one.node, ast.ImportFrom) else one.node.names[0].name
            )
            level = one.node.level if isinstance(one.node, ast.ImportFrom) else 0
            found = module_path(version, file, module or "", 0) if not level else ""
            if found:
                inner = len((module or "").split(".")) + found.endswith("/__init__.py")
                seen["/".join(found.split("/")[:-inner])] += 1
    folder = posixpath.dirname(path)
    is_package = f"{folder}/__init__.py" in version.texts
    choices = [root for root, _ in seen.most_common()] + ([] if is_package else [folder])
    return next((root for root in choices if not root or to.startswith(root + "/")), "")


def leads_to(version: CodeVersion, start: str, end: str) -> bool:
    """Does importing `start` import `end`?"""
    seen = [start]
    for file in seen:
        for one in imports(version, file) if file in version.trees else ():
            module = (
                one.node.module if isinstance(one.node, ast.ImportFrom) else one.node.names[0].name
            )
            level = one.node.level if isinstance(one.node, ast.ImportFrom) else 0
            tried = (module or "", ".".join(filter(None, (module, one.node.names[0].name))))
            found = (module_path(version, file, each, level) for each in tried)
            seen += [each for each in dict.fromkeys(found) if each and each not in seen]
    return end in seen
