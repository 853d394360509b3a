"""`doctor` and `recipe check`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

from flor_plugins.recipe import check_recipe, load_recipe
from flor_plugins.store.layout import Store, find_store
from flor_plugins.store.runs import list_runs

_PACKAGES = (
    "torch",
    "safetensors",
    "pandas",
    "pyarrow",
    "duckdb",
    "gitpython",
    "lightning",
    "transformers",
)


def recipe_check(file: Path) -> int:
    """Print every mistake; exit status 1 if there is one."""
    mistakes = check_recipe(file)
    if not mistakes:
        mistakes = _where_mistakes(file)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    if not mistakes:
        print(f"{file}: fine")
    return 1 if mistakes else 0


def _where_mistakes(file: Path) -> list[str]:
    from flor_plugins.errors import WhereError
    from flor_plugins.store.query.where import WhereExpression

    text = load_recipe(file).replay.where
    try:
        WhereExpression.parse(text) if text else None
    except WhereError as error:
        lines = file.read_text(encoding="utf-8").splitlines()
        number = next((i for i, line in enumerate(lines, 1) if "where:" in line), 1)
        return [f"{file}:{number}: {error}"]
    return []


def doctor(as_json: bool) -> int:
    """One line per check; exit status 1 if one fails."""
    store = find_store()
    checks = [*_store_checks(store), _git_check(), _isolation_check(store), *_package_checks()]
    if as_json:
        print(
            json.dumps(
                [{"check": c, "ok": ok, "found": found} for c, ok, found in checks], indent=1
            )
        )
    else:
        for check, ok, found in checks:
            print(f"{'ok  ' if ok else 'MEND'}  {check}: {found}")
    return 0 if all(ok for _, ok, _ in checks) else 1


def _store_checks(store: Store) -> list[tuple[str, bool, str]]:
    if not store.root.exists():
        return [("store", True, f"{store.root} is made at the first recording")]
    runs = list_runs(store)
    partial = list(store.runs.glob("*/checkpoints/.partial-*"))
    checks = [("store", os.access(store.root, os.W_OK), f"{store.root}, {len(runs)} runs")]
    if partial:
        found = (
            f"{len(partial)} unfinished ones of killed runs are never read; flor-hf gc removes them"
        )
        checks.append(("checkpoints", True, found))
    for run in runs:
        if run.code is None:
            checks.append(
                (f"run {run.name}", False, "its code was not recorded: it can't be replayed")
            )
    return checks


def _git_check() -> tuple[str, bool, str]:
    git = shutil.which("git")
    return "git", git is not None, git or "not found: install git, code snapshots need it"


def _isolation_check(store: Store) -> tuple[str, bool, str]:
    """Return which way of keeping a replay from the user's files is in force here.

    And why it is not a better one.
    """
    from flor_plugins.errors import ReplayError
    from flor_plugins.replayer.sandbox.isolation import SAID, in_force

    kept = tuple(folder for folder in (store.runs, store.replays) if folder.is_dir())
    try:
        kind, reason = in_force(store.root.parent, kept)
    except ReplayError as error:
        return "isolation", False, str(error)
    return "isolation", True, f"{kind}: {SAID[kind]}{f' ({reason})' if reason else ''}"


def _package_checks() -> list[tuple[str, bool, str]]:
    """The two frameworks are optional, but one of them must be there."""
    checks = []
    for name in _PACKAGES:
        optional = name in ("lightning", "transformers")
        try:
            checks.append((name, True, metadata.version(name)))
        except metadata.PackageNotFoundError:
            extra = {"lightning": "lightning", "transformers": "hf"}.get(name)
            checks.append(
                (name, optional, f"not installed{f' (flor-plugins[{extra}])' if extra else ''}")
            )
    if not any(importlib.util.find_spec(name) for name in ("lightning", "transformers")):
        checks.append(
            (
                "framework",
                False,
                "none: pip install 'flor-plugins[lightning]' or 'flor-plugins[hf]'",
            )
        )
    return checks
