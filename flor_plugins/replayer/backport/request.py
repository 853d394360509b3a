"""The edit of the working tree as a request uses it.

Does it log what is asked for, and what is it in each version?
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flor_plugins.errors import CannotCarry
from flor_plugins.records import BackportedEdit, Run, Strategy
from flor_plugins.replayer.backport.backport import Backport, carry
from flor_plugins.replayer.backport.edit import Edit
from flor_plugins.replayer.backport.insertion import Insertion
from flor_plugins.replayer.backport.logged_names import names_in, patterns_of
from flor_plugins.replayer.backport.names import binds
from flor_plugins.replayer.backport.review import moment
from flor_plugins.replayer.backport.snapshots import (
    SnapshotSources,
    base_of,
    edit_since,
    is_from,
    settings_changed,
    working_sources,
)
from flor_plugins.replayer.backport.syntax import CodeVersion, parsed_files
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs


@dataclass(frozen=True, slots=True)
class LoggingEdit:
    """An edit that logs what was asked for.

    ways: metric to how it is reached. logged: to the names under which the edit may log it.
    is_kept: what it logs depends on all steps before (`keeps_state`).
    """

    edit: Edit
    ways: Mapping[str, Strategy]
    logged: Mapping[str, frozenset[str]]
    is_kept: bool
    _recorded: SnapshotSources = field(repr=False, compare=False)
    _carried: dict[str, Backport | str] = field(default_factory=dict, repr=False, compare=False)

    def own(self, run: Run) -> list[str]:
        """Return those of its metrics that the run's own version logs.

        What it recorded of them is all that there is.
        """
        names = _names_of(self._recorded, run)
        return [metric for metric, logged in self.logged.items() if logged <= names]

    def carried_to(self, run: Run) -> BackportedEdit:
        """Return the edit in the run's own version.

        Raises CannotCarry, where it has no certain place there.
        """
        assert run.code is not None
        if own := self.own(run):
            raise CannotCarry(
                f"its own version logs {', '.join(own)} already, and with the edit it would be "
                f"logged twice. "
                f"Ask for {', '.join(name for name in self.logged if name not in own)} alone"
            )
        vid = run.code.vid
        if vid not in self._carried:
            try:
                self._carried[vid] = carry(self.edit, self._recorded.of(run.code))
            except CannotCarry as error:
                self._carried[vid] = str(error)
        carried = self._carried[vid]
        if isinstance(carried, str):
            raise CannotCarry(carried)
        return BackportedEdit(self.edit.label, carried.sources, carried.how, carried.patch)


def find(store: Store, runs: Sequence[Run], metrics: Iterable[str]) -> LoggingEdit | None:
    """Return the edit of the working tree that logs one of the metrics at least.

    runs: those that are asked. The edit is what was added since the newest version that it came
    from, of those that do not log it themselves. None if there is none. Raises EditRefused where
    it would change the training.
    """
    root = _working_tree(runs)
    if root is None:
        return None
    logged = _patterns(metrics, names_in(parsed_files(working_sources(root)).values()))
    if not logged:
        return None
    recorded = SnapshotSources(store, root)
    bases = [
        run
        for run in list_runs(store)
        if is_from(run, root)
        # Of a version that logs one of the metrics itself the edit can't come.
        and not any(names <= _names_of(recorded, run) for names in logged.values())
    ]
    base = base_of(bases, recorded)
    edit = edit_since(base, recorded) if base is not None else None
    given = _patterns(logged, edit.metrics) if edit is not None else {}
    if base is None or edit is None or not given:
        return None
    _warn_of_settings(base, root)
    is_kept = keeps_state(edit)
    return LoggingEdit(edit, _ways(edit, given, is_kept), given, is_kept, recorded)


def _patterns(metrics: Iterable[str], names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return the metrics that may be logged under some of the names, with these."""
    patterns = {metric: patterns_of(metric, names) for metric in metrics}
    return {metric: fitting for metric, fitting in patterns.items() if fitting}


def _working_tree(runs: Sequence[Run]) -> Path | None:
    """Return the folder that the runs' code was taken from.

    Of several the one that we stand in, else the newest run's.
    """
    folders = dict.fromkeys(Path(run.code.root) for run in reversed(runs) if run.code is not None)
    roots = [folder for folder in folders if folder.is_dir()]
    here = Path.cwd().resolve()
    around = [root for root in roots if here.is_relative_to(root.resolve())]
    return max(around, key=_depth, default=next(iter(roots), None))


def _depth(folder: Path) -> int:
    return len(folder.resolve().parts)


def _names_of(recorded: SnapshotSources, run: Run) -> frozenset[str]:
    if run.code is None:
        return frozenset()
    return names_in(parsed_files(recorded.of(run.code)).values())


def _ways(edit: Edit, given: Mapping[str, frozenset[str]], is_kept: bool) -> dict[str, Strategy]:
    edited = CodeVersion(edit.edited)
    ways: dict[str, Strategy] = {}
    for metric, names in given.items():
        logging = [insertion for insertion in edit.insertions if names & set(insertion.metrics)]
        only = not is_kept and all(moment(insertion, edited) == "validate" for insertion in logging)
        ways[metric] = "validate" if only else "train"
    return ways


def keeps_state(edit: Edit) -> bool:
    """Whether an edit keeps anything from one step to the next.

    Then what it logs depends on all steps before: no checkpoint of an old version holds what it
    keeps, and its values are those of a training only from the beginning on. Attributes of objects
    count, and objects that live as long as a module or class. Rather once too often.
    """
    edited = CodeVersion(edit.edited)
    return any(_keeps_state(insertion, edited) for insertion in edit.insertions)


def _keeps_state(insertion: Insertion, edited: CodeVersion) -> bool:
    if any(name.startswith("self.") for name in binds(insertion.node)):
        return True
    scope = edited.scope(insertion.path, insertion.scope)
    if scope is None or scope.is_function or insertion.kind != "assignment":
        return False
    # Constants, and displays of them, change nowhere: an edit that changes what it has not just
    # made is refused.
    return any(isinstance(part, ast.Call) for part in ast.walk(insertion.node))


def _warn_of_settings(base: Run, root: Path) -> None:
    changed = settings_changed(base.code, root) if base.code is not None else []
    if changed:
        warnings.warn(
            f"{', '.join(changed)}: not as in run {base.name}. An edit is of code only: "
            "each version reads its own settings in a replay.",
            stacklevel=2,
        )
