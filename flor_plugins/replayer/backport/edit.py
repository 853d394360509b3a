"""The edit in the working tree: what it puts into the newest recorded version that it came from."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from flor_plugins.errors import EditRefused
from flor_plugins.replayer.backport.imports import leads_to
from flor_plugins.replayer.backport.insertion import Insertion, InsertionKind, InsertionPoint
from flor_plugins.replayer.backport.logged_names import logged
from flor_plugins.replayer.backport.review import review
from flor_plugins.replayer.backport.splice import taken
from flor_plugins.replayer.backport.syntax import (
    CodeVersion,
    Definition,
    ImportNode,
    first_line,
    is_docstring,
    shape,
    with_single_imports,
)
from flor_plugins.replayer.backport.tree_diff import AddedStatement, ForbiddenChange, compare


@dataclass(frozen=True, slots=True)
class Edit:
    """What leads from the newest recorded version (base) to the working tree (edited).

    base, edited: path to text. digest: sha256 of the insertions, wherever they stand in their
    files; in hex digits. label: what the base is called.
    """

    base: Mapping[str, str]
    edited: Mapping[str, str]
    insertions: tuple[Insertion, ...]
    metrics: tuple[str, ...]
    digest: str
    label: str


def edit_of(base: Mapping[str, str], edited: Mapping[str, str], base_label: str) -> Edit:
    """Return the edit between two states of the python files, if all that it does is log.

    base_label: what the base is called in messages. Docstrings, comments and layout are no
    difference. New files count where the edit imports them. Raises EditRefused, which lists
    every change that would change the training with file, line, and both texts; also for a file
    of the working tree that is not Python.
    """
    _check_syntax(edited, base)
    was, now = CodeVersion(base), CodeVersion(edited)
    added: list[AddedStatement] = []
    refused: list[ForbiddenChange] = []
    for path in sorted(was.trees):
        if path not in now.trees:
            refused.append(_gone(path, base, edited))
        elif base[path] != edited[path]:
            new, changed = compare(
                path, was.trees[path], now.trees[path], was=base[path], now=edited[path]
            )
            added += new
            refused += changed
    files = _new_files_used(was, now, added)
    for path in files:
        body = with_single_imports(now.trees[path].body)
        point = InsertionPoint(path)
        added += [AddedStatement(point, node) for node in body if not is_docstring(node)]
    refused += review(was, now, added)
    if refused:
        raise EditRefused(_refusal(refused, base_label))
    insertions = tuple(_insertion(statement, now) for statement in added)
    kept = {path: text for path, text in edited.items() if path in base or path in files}
    metrics = dict.fromkeys(name for insertion in insertions for name in insertion.metrics)
    return Edit(dict(base), kept, insertions, tuple(metrics), _digest(insertions), base_label)


def _check_syntax(edited: Mapping[str, str], base: Mapping[str, str]) -> None:
    for path, text in sorted(edited.items()):
        if base.get(path) == text:
            continue  # as recorded: an example that is broken on purpose
        try:
            ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            raise EditRefused(
                f"the edit in the working tree was to be read; {path}:{line} is not Python: "
                f"{getattr(error, 'msg', error)}. Correct that line, or take the change out."
            ) from error


def _gone(path: str, base: Mapping[str, str], edited: Mapping[str, str]) -> ForbiddenChange:
    """A moved file changes nothing in itself, but its new name is no logging edit either."""
    same = [other for other, text in edited.items() if other not in base and text == base[path]]
    what = f"the file was moved to {same[0]}" if same else "the file was removed"
    return ForbiddenChange(path, 1, what)


def _new_files_used(
    was: CodeVersion, now: CodeVersion, added: Iterable[AddedStatement]
) -> list[str]:
    """Return the new files that the edit imports, directly or through others.

    Any other new file is not part of it.
    """
    new = [path for path in sorted(now.trees) if path not in was.texts]
    touched = {statement.point.path for statement in added}
    return [path for path in new if any(leads_to(now, start, path) for start in touched)]


def _refusal(refused: Sequence[ForbiddenChange], base_label: str) -> str:
    lines = [f"  {change}" for change in sorted(refused, key=attrgetter("path", "line"))]
    changes = f"{len(refused)} changes" if len(refused) > 1 else "one change"
    return (
        f"the edit in the working tree was to be asked of recorded versions (it was compared "
        f"with {base_label}), and "
        f"{changes} of it would change the training, or can't be seen not to:\n"
        + "\n".join(lines)
        + "\n"
        "Commit it and train a new run, or take it out."
    )


def _insertion(added: AddedStatement, now: CodeVersion) -> Insertion:
    return Insertion(
        point=added.point,
        kind=_kind(added),
        text=_text(added.node, now.texts[added.point.path]),
        line=first_line(added.node),
        metrics=logged(added.node)[0],
    )


def _kind(added: AddedStatement) -> InsertionKind:
    match added.node:
        case ast.Import() | ast.ImportFrom():
            return "import"
        case ast.ClassDef():
            return "class"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return "method" if added.is_in_class else "helper"
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            return "assignment"
    return "log"


def _text(node: ast.stmt, source: str) -> str:
    """As written; written anew where that is not a statement by itself (one name of an import)."""
    if isinstance(node, ImportNode):
        return ast.unparse(node)
    text = taken(source, node)
    try:
        is_same = shape(ast.parse(text)) == shape(ast.Module([node], []))
    except SyntaxError:
        is_same = False
    return text if is_same else ast.unparse(node)


def _digest(insertions: Iterable[Insertion]) -> str:
    """Comments, layout, and lines do not count; what is put in, and where, does."""
    parts = []
    for insertion in insertions:
        point = insertion.point
        place = [point.path, point.scope, point.block, point.before[-1:], point.after[:1]]
        parts.append([*place, _without_docstrings(insertion.text)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, Definition) and len(node.body) > 1 and is_docstring(node.body[0]):
            del node.body[0]
    return ast.unparse(tree)
