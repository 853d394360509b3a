"""What gives each metric: a hook, the edit of the working tree, or a replaced method."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flor_plugins.errors import HookError
from flor_plugins.hooks.hook_files import DeclaredHook
from flor_plugins.hooks.source_digest import joined
from flor_plugins.records import ReplayRequest, Run, Strategy
from flor_plugins.replayer.backport import request as backport_request
from flor_plugins.replayer.backport.request import LoggingEdit
from flor_plugins.replayer.backport.snapshots import SnapshotSources
from flor_plugins.replayer.method_patching import patches
from flor_plugins.store.layout import Store

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
    """What gives each metric.

    ways: metric to the cheapest way that reaches it. digests: metric to what its source is known
    by, today's first. whole: the metrics that only whole epochs give. edit: of the working tree,
    if it logs a metric; edited: those that it logs. patch: methods to be replaced; patched: the
    metrics that they log.
    """

    ways: Mapping[str, Strategy] = field(default_factory=dict)
    digests: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    edit: LoggingEdit | None = None
    edited: frozenset[str] = frozenset()
    patch: patches.MethodPatches | None = None
    patched: frozenset[str] = frozenset()

    @property
    def kept(self) -> frozenset[str]:
        """The edited metrics that depend on all steps before."""
        return self.edited if self.edit is not None and self.edit.is_kept else frozenset()

    def names(self, way: Strategy) -> tuple[str, ...]:
        """The metrics that are reached that way."""
        return tuple(name for name, reached in self.ways.items() if reached == way)

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


def find_sources(
    store: Store, runs: Sequence[Run], request: ReplayRequest, hooks: Sequence[DeclaredHook]
) -> MetricSources:
    """Find what gives each metric.

    That is a function of its name, else a method, else the edit, else a callback. Raises
    HookError for a metric that nothing gives, or a `patch` that can't be read; EditRefused
    where the edit would change the training.
    """
    methods = patches.read(request.patch)
    own = {hook.name: hook for hook in hooks if hook.kind == "metric"}
    others = [hook for hook in hooks if hook.kind != "metric"]
    other_ways: list[Strategy] = [hook.way for hook in others]
    unhooked = [name for name in request.metrics if name not in own]
    patched = [name for name in unhooked if patches.may_log(methods, name)]
    rest = [name for name in unhooked if name not in patched]
    edit = backport_request.find(store, runs, rest) if rest else None
    ways: dict[str, Strategy] = {}
    digests: dict[str, tuple[str | None, ...]] = {}
    for name in request.metrics:
        if name in own:
            ways[name], digests[name] = own[name].way, known_by(own[name])
        elif name in patched:
            ways[name], digests[name] = patches.way_of(methods), (patches.digest_of(methods),)
        elif edit is not None and name in edit.ways:
            ways[name], digests[name] = edit.ways[name], (edit.edit.digest,)
        elif others:
            ways[name] = max(other_ways, key=WAYS.index)
            # At first the values of callbacks were known by nothing.
            digests[name] = (joined(hook.file_digest for hook in others), None)
        else:
            raise HookError(_nothing_computes(name, own, request.hooks))
    return MetricSources(
        ways,
        digests,
        frozenset(unhooked),
        edit,
        frozenset(rest) & (frozenset() if edit is None else edit.ways.keys()),
        patches.MethodPatches(methods, SnapshotSources(store, Path.cwd())) if methods else None,
        frozenset(patched),
    )


def known_by(hook: DeclaredHook) -> tuple[str | None, ...]:
    """The digests that the values of a hook go by: its own, and the file's, as at first."""
    return hook.digest, hook.file_digest


def _nothing_computes(metric: str, known: Iterable[str], files: Sequence[Path]) -> str:
    listed = ", ".join(map(str, files)) or "no hook file was given"
    return (
        f"no hook computes {metric!r}; hooks found: {', '.join(known) or 'none'} (in {listed}), "
        f"and the working tree does not log it beyond what was recorded. Write "
        f"`@flor.metric(at='epoch')` on `def {metric}(ctx)`, and name its file with hooks= or "
        f"--hook, or log it in the training code"
    )
