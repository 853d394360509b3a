"""The edit of the working tree as a request uses it: does it log what is asked for, and what
is it in each version?
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flor_plugins.errors import CannotCarry
from flor_plugins.records import BackportedEdit, Run, Strategy
from flor_plugins.replayer.backport.backport import Backport, carry
from flor_plugins.replayer.backport.edit import Edit
from flor_plugins.replayer.backport.keeping import keeps_state
from flor_plugins.replayer.backport.logged_names import names_in, patterns_of
from flor_plugins.replayer.backport.review import moment
from flor_plugins.replayer.backport.snapshots import (
    SnapshotSources,
    base_of,
    edit_in,
    settings_changed,
    working_sources,
)
from flor_plugins.replayer.backport.syntax import CodeVersion, parsed
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs


@dataclass(frozen=True, slots=True)
class LoggingEdit:
    """An edit that logs what was asked for.

    ways: metric to how it is reached. logged: to the names under which the edit may log it.
    is_kept: what it logs depends on all steps before (`keeps_state`)."""

    edit: Edit
    ways: Mapping[str, Strategy]
    logged: Mapping[str, frozenset[str]]
    is_kept: bool
    _recorded: SnapshotSources = field(repr=False, compare=False)
    _carried: dict[str, Backport | str] = field(default_factory=dict, repr=False, compare=False)

    def own(self, run: Run) -> list[str]:
        """Those of its metrics that the run's own version logs: what it recorded of them is
        all that there is.
        """
        names = _names_of(self._recorded, run)
        return [metric for metric, logged in self.logged.items() if logged <= names]

    def carried_to(self, run: Run) -> BackportedEdit:
        """The edit in the run's own version.

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
        found = self._carried[vid]
        if isinstance(found, str):
            raise CannotCarry(found)
        return BackportedEdit(self.edit.label, found.sources, found.how, found.patch)


def find(store: Store, runs: Sequence[Run], metrics: Iterable[str]) -> LoggingEdit | None:
    """The edit of the working tree that logs one of the metrics at least; None if there is none.

    runs: those that are asked. The edit is what was added since the newest version that it came
    from, of those that do not log it themselves. Raises EditRefused where it would change the
    training."""
    root = _working_tree(runs)
    if root is None:
        return None
    here = working_sources(root)
    names = names_in(
        tree for path, text in here.items() if (tree := parsed(path, text)) is not None
    )
    logged = {metric: patterns_of(metric, names) for metric in metrics}
    logged = {metric: its for metric, its in logged.items() if its}
    if not logged:
        return None
    recorded = SnapshotSources(store, root)
    bases = [run for run in list_runs(store) if _is_without(recorded, run, logged, root)]
    edit = edit_in(store, bases, root, recorded)
    if edit is None:
        return None
    given = {metric: its for metric in logged if (its := patterns_of(metric, edit.metrics))}
    if not given:
        return None
    _warn_of_settings(base_of(store, bases, root, recorded), root)
    is_kept = keeps_state(edit)
    return LoggingEdit(edit, _ways(edit, given, is_kept), given, is_kept, recorded)


def _working_tree(runs: Sequence[Run]) -> Path | None:
    """Of the folders that the runs' code was taken from the one that we stand in, else the
    newest run's.
    """
    roots = [Path(run.code.root) for run in reversed(runs) if run.code is not None]
    roots = [root for root in dict.fromkeys(roots) if root.is_dir()]
    here = Path.cwd().resolve()
    around = [root for root in roots if here.is_relative_to(root.resolve())]
    return max(around, key=lambda root: len(root.resolve().parts), default=next(iter(roots), None))


def _is_without(
    recorded: SnapshotSources, run: Run, logged: Mapping[str, frozenset[str]], root: Path
) -> bool:
    """May the edit have come from that version? Not if it logs one of the metrics itself."""
    if run.code is None or Path(run.code.root).resolve() != root.resolve():
        return False
    names = _names_of(recorded, run)
    return not any(its <= names for its in logged.values())


def _names_of(recorded: SnapshotSources, run: Run) -> frozenset[str]:
    if run.code is None:
        return frozenset()
    texts = recorded.of(run.code)
    return names_in(
        tree for path, text in texts.items() if (tree := parsed(path, text)) is not None
    )


def _ways(edit: Edit, given: Mapping[str, frozenset[str]], is_kept: bool) -> dict[str, Strategy]:
    edited = CodeVersion(edit.edited)
    ways: dict[str, Strategy] = {}
    for metric, names in given.items():
        logging = [one for one in edit.insertions if names & set(one.metrics)]
        only = not is_kept and all(moment(one, edited) == "validate" for one in logging)
        ways[metric] = "validate" if only else "train"
    return ways


def _warn_of_settings(base: Run | None, root: Path) -> None:
    changed = (
        settings_changed(base.code, root) if base is not None and base.code is not None else []
    )
    if changed:
        warnings.warn(
            f"{', '.join(changed)}: not as in run {base.name if base else ''}. An edit is of "
            f"code only: "
            "each version reads its own settings in a replay.",
            stacklevel=2,
        )
