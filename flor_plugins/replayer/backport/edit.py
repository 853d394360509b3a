"""The edit in the working tree: what it puts into the newest recorded version that it came from."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from flor_plugins.errors import EditRefused
from flor_plugins.replayer.backport.imports import leads_to
from flor_plugins.replayer.backport.names import binds, reads
from flor_plugins.replayer.backport.review import logged_by, review
from flor_plugins.replayer.backport.splice import taken
from flor_plugins.replayer.backport.syntax import (
    DEFINITIONS,
    CodeVersion,
    first_line,
    is_docstring,
    one_by_one,
)
from flor_plugins.replayer.backport.tree_diff import AddedStatement, ForbiddenChange, compare

InsertionKind = Literal["log", "import", "assignment", "helper", "method", "class"]


@dataclass(frozen=True, slots=True)
class Insertion:
    """One statement that the edit puts in.

    path: file, "/"-separated, beneath the top of the repository, as in the working tree.
    scope: names of the enclosing classes and functions, outermost first; () for the module.
    text: its source, dedented, without trailing newline. line: its first line in the edited file.
    before, after: the statements around it in its block that the base has, as `ast.unparse` writes
    them; of before the nearest comes last, of after first.
    block: headers of the compound statements around it inside the scope, outermost first.
    binds, reads: names that it defines, and takes from around it; attributes of self as "self.x".
    metrics: names that it logs; with "*" where a part is known only when it runs.
    """

    path: str
    scope: tuple[str, ...]
    kind: InsertionKind
    text: str
    line: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    block: tuple[str, ...]
    binds: frozenset[str]
    reads: frozenset[str]
    metrics: tuple[str, ...]
    is_new_file: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """What leads from the newest recorded version (base) to the working tree (edited): path to
    text.

    digest: sha256 of the insertions, wherever they stand in their files; in hex digits. label:
    what the base is called."""

    base: Mapping[str, str]
    edited: Mapping[str, str]
    insertions: tuple[Insertion, ...]
    metrics: tuple[str, ...]
    digest: str
    label: str


def edit_of(base: Mapping[str, str], edited: Mapping[str, str], base_label: str) -> Edit:
    """The edit between two states of the python files, if all that it does is log.

    base_label: what the base is called in messages. Docstrings, comments and layout are no
    difference. New files count where the edit imports them. Raises EditRefused, which lists
    every change that would change the training with file, line, and both texts; also for a file
    of the working tree that is not Python."""
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
        body = [one for one in one_by_one(now.trees[path].body) if not is_docstring(one)]
        added += [AddedStatement(path, (), (), one, (), ()) for one in body]
    refused += review(was, now, added)
    if refused:
        raise EditRefused(_told(refused, base_label))
    insertions = tuple(_insertion(one, now, is_new=one.path in files) for one in added)
    kept = {path: text for path, text in edited.items() if path in base or path in files}
    metrics = tuple(dict.fromkeys(name for one in insertions for name in one.metrics))
    return Edit(dict(base), kept, insertions, metrics, _digest(insertions), base_label)


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
    """New files that the edit imports, directly or through others; any other new file is not
    part of it.
    """
    new = [path for path in sorted(now.trees) if path not in was.texts]
    touched = {one.path for one in added}
    return [path for path in new if any(leads_to(now, start, path) for start in touched)]


def _told(refused: list[ForbiddenChange], base_label: str) -> str:
    lines = [f"  {one}" for one in sorted(refused, key=lambda one: (one.path, one.line))]
    changes = f"{len(refused)} changes" if len(refused) > 1 else "one change"
    return (
        f"the edit in the working tree was to be asked of recorded versions (it was compared "
        f"with {base_label}), and "
        f"{changes} of it would change the training, or can't be seen not to:\n"
        + "\n".join(lines)
        + "\n"
        "Commit it and train a new run, or take it out."
    )


def _insertion(one: AddedStatement, now: CodeVersion, *, is_new: bool) -> Insertion:
    return Insertion(
        path=one.path,
        scope=one.scope,
        kind=_kind(one),
        text=_text(one, now.texts[one.path]),
        line=first_line(one.node),
        before=one.before,
        after=one.after,
        block=one.block,
        binds=frozenset(binds(one.node)),
        reads=frozenset(reads(one.node)),
        metrics=logged_by(one, now),
        is_new_file=is_new,
    )


def _kind(one: AddedStatement) -> InsertionKind:
    match one.node:
        case ast.Import() | ast.ImportFrom():
            return "import"
        case ast.ClassDef():
            return "class"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return "method" if one.is_in_class else "helper"
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            return "assignment"
    return "log"


def _text(one: AddedStatement, source: str) -> str:
    """As written; written anew where that is not a statement by itself (one name of an import)."""
    if isinstance(one.node, ast.Import | ast.ImportFrom):
        return ast.unparse(one.node)
    text = taken(source, one.node)
    try:
        same = ast.dump(ast.parse(text)) == ast.dump(ast.Module([one.node], []))
    except SyntaxError:
        same = False
    return text if same else ast.unparse(one.node)


def _digest(insertions: Iterable[Insertion]) -> str:
    """Comments, layout, and lines do not count; what is put in, and where, does."""
    parts = [
        [one.path, one.scope, one.block, one.before[-1:], one.after[:1], _bare(one.text)]
        for one in insertions
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _bare(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and len(node.body) > 1 and is_docstring(node.body[0]):
            del node.body[0]
    return ast.unparse(tree)
