"""What gives each metric that is asked for: a hook, the edit of the working tree, or a
method that is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.errors import HookError
from flor_plugins.hooks.hook_files import DeclaredHook
from flor_plugins.hooks.source_digest import joined
from flor_plugins.records import MethodPatch, Strategy
from flor_plugins.replayer.method_patching import patches
from flor_plugins.replayer.planning.recorded_values import HookDigests

if TYPE_CHECKING:
    from flor_plugins.replayer.backport.request import LoggingEdit

WAYS: tuple[Strategy, ...] = ("state", "validate", "train")
_REASONS: dict[Strategy, str] = {
    "state": "needs only the weights: restore, call",
    "validate": "needs the validation loop: restore, run it",
    "train": (
        "needs the updates, or weights that were not saved: restore the checkpoint before, run on"
    ),
}


@dataclass(frozen=True, slots=True)
class MetricSources:
    """The metrics by their ways. whole: those that only whole epochs give. hooks: what their
    sources are known by.

    edited: those that the working tree's edit logs; kept: and that depend on all steps before.
    patched: those that a replaced method logs."""

    ways: Mapping[str, Strategy]
    whole: frozenset[str]
    hooks: HookDigests
    edited: frozenset[str] = frozenset()
    patched: frozenset[str] = frozenset()
    kept: frozenset[str] = field(default=frozenset())

    def without(self, names: Collection[str]) -> MetricSources:
        """The others."""
        return replace(
            self, ways={name: way for name, way in self.ways.items() if name not in names}
        )

    def reason(self, way: Strategy, names: Iterable[str]) -> str:
        """Why that way, for some of its metrics."""
        names = list(names)
        parts = [_REASONS[way]]
        if edited := [name for name in names if name in self.edited]:
            parts.append(
                f"{', '.join(edited)} logged by the edit of the working tree, carried to each "
                f"version"
            )
        if self.kept & set(names):
            parts[0] = (
                "needs all updates: the edit keeps something from step to step, so that it "
                "begins with the run"
            )
        if patched := [name for name in names if name in self.patched]:
            parts.append(f"{', '.join(patched)} logged by a method that is replaced")
        return "; ".join(parts)


def given(
    metrics: Sequence[str],
    hooks: Sequence[DeclaredHook],
    files: Sequence[Path],
    edit: LoggingEdit | None = None,
    methods: Sequence[MethodPatch] = (),
) -> MetricSources:
    """Which source gives each metric: a function of its name, else a method, else the edit,
    else a callback.

    Raises HookError for a metric that none of them gives.
    """
    own = {found.name for found in hooks if found.kind == "metric"}
    patched = frozenset(
        name for name in metrics if name not in own and patches.may_log(methods, name)
    )
    edited = (
        frozenset(name for name in metrics if edit is not None and name in edit.ways)
        - own
        - patched
    )
    hooked = [name for name in metrics if name not in edited | patched]
    ways = _ways(hooked, hooks, files)
    known = known_by(hooked, hooks)
    if edit is not None:
        for name in edited:
            ways[name] = edit.ways[name]
        known |= dict.fromkeys(edited, (edit.edit.digest,))
    for name in patched:
        ways[name] = patches.way_of(methods)
    known |= dict.fromkeys(patched, (patches.digest_of(methods),))
    kept = edited if edit is not None and edit.is_kept else frozenset()
    ordered: dict[str, Strategy] = {name: ways[name] for name in metrics}
    return MetricSources(ordered, frozenset(set(metrics) - own), known, edited, patched, kept)


def known_by(
    metrics: Sequence[str], hooks: Sequence[DeclaredHook]
) -> dict[str, tuple[str | None, ...]]:
    """metric to the digests that its hook goes by: its own, and the file's, which it went by at
    first.

    A metric without a function of its own goes by all callbacks and compute_metrics together;
    at first, by nothing."""
    of_own = {
        found.name: (found.digest, found.file_digest) for found in hooks if found.kind == "metric"
    }
    others = joined(found.file_digest for found in hooks if found.kind != "metric")
    return {name: of_own.get(name, (others, None)) for name in metrics}


def without_hook(metrics: Sequence[str], hooks: Sequence[DeclaredHook]) -> list[str]:
    """The metrics that have no function of their own."""
    own = {found.name for found in hooks if found.kind == "metric"}
    return [name for name in metrics if name not in own]


def _ways(
    metrics: Sequence[str], hooks: Sequence[DeclaredHook], files: Sequence[Path]
) -> dict[str, Strategy]:
    """The way of each metric.

    One that no @flor.metric has may come from a callback or compute_metrics.
    """
    named: dict[str, Strategy] = {
        found.name: found.way for found in hooks if found.kind == "metric"
    }
    others: list[Strategy] = [found.way for found in hooks if found.kind != "metric"]
    ways: dict[str, Strategy] = {}
    for name in metrics:
        if name in named:
            ways[name] = named[name]
        elif others:
            ways[name] = max(others, key=WAYS.index)
        else:
            known = ", ".join(named) or "none"
            listed = ", ".join(map(str, files)) or "no hook file was given"
            raise HookError(
                f"no hook computes {name!r}; hooks found: {known} (in {listed}), and the "
                f"working tree does not log it "
                f"beyond what was recorded. Write `@flor.metric(at='epoch')` on `def "
                f"{name}(ctx)`, and name its file "
                "with hooks= or --hook, or log it in the training code"
            )
    return ways
