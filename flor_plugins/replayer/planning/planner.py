"""From a request to tasks: which runs, which positions, which way, what it costs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flor_plugins.errors import CannotCarry, HookError, NoCheckpoint, ReplayError, WhereError
from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import (
    BackportedEdit,
    MethodPatch,
    Plan,
    Position,
    ReplayPass,
    ReplayRequest,
    Run,
    Strategy,
    Task,
)
from flor_plugins.replayer.planning.eligibility import why_not
from flor_plugins.replayer.planning.epoch_selection import epochs_of, names_them, spread
from flor_plugins.replayer.planning.estimates import MeasuredSeconds, costed, measured
from flor_plugins.replayer.planning.metric_sources import WAYS, MetricSources, find_sources
from flor_plugins.replayer.planning.missing import RunKnowledge, missing_positions, read_knowledge
from flor_plugins.replayer.planning.training_ranges import (
    range_from_beginning,
    ranges_between_checkpoints,
    ranges_through,
)
from flor_plugins.store.layout import Store, new_id
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.query.references import RunReference
from flor_plugins.store.run_index import RunIndex, index_run

if TYPE_CHECKING:
    from flor_plugins.store.query.where import WhereExpression

MissingPositions = Mapping[Strategy, Sequence[Position]]


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of each of the runs.

    references: run_id to the one place of that run that is asked for. earlier: what replays took.
    """

    request: ReplayRequest
    references: Mapping[str, RunReference]
    earlier: MeasuredSeconds
    sources: MetricSources = field(default_factory=MetricSources)
    where: WhereExpression | None = None


def make(
    store: Store,
    runs: Sequence[Run],
    request: ReplayRequest,
    references: Mapping[str, RunReference] | None = None,
) -> Plan:
    """Plan a replay of `runs`. Nothing is run and nothing is written.

    references: run_id to the one place of that run that is asked for. Raises HookError when
    nothing computes a requested metric, EditRefused where the edit that does would change the
    training, WhereError for a wrong `where`, ReplayError for epochs that can't be understood. A
    run that can't be replayed is in `skipped` with its reason.
    """
    question = _question(store, runs, request, references or {})
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    for run in runs:
        reason = why_not(run)
        if reason is None:
            try:
                task, reason = _task(run, question)
                tasks += [task] if task.passes else []
            except NoCheckpoint as error:
                reason = str(error)
        if reason:
            skipped[run.run_id] = reason
    if len(skipped) == len(runs) > 0 and not tasks and not request.only:
        raise ReplayError("no run can be replayed: " + "; ".join(dict.fromkeys(skipped.values())))
    hooks = tuple(map(str, request.hooks))
    metrics = tuple(question.sources.ways)
    return Plan(new_id(), metrics, request.where, hooks, tuple(tasks), skipped)


def _question(
    store: Store,
    runs: Sequence[Run],
    request: ReplayRequest,
    references: Mapping[str, RunReference],
) -> _Question:
    from flor_plugins.store.query.where import WhereExpression as Expression

    earlier = measured(store.replays)
    if request.is_verification:
        return _Question(request, references, earlier)
    hooks = [hook for path in request.hooks for hook in scan(path)]
    metrics = request.metrics or tuple(hook.name for hook in hooks if hook.kind == "metric")
    if not metrics:
        raise HookError(
            "which metrics? Name them, or give a hook file that has @flor.metric functions"
        )
    sources = find_sources(store, runs, replace(request, metrics=metrics), hooks)
    where = Expression.parse(request.where) if request.where else None
    if where is not None:
        refuse_unknown(where, runs, metrics)
    return _Question(request, references, earlier, sources, where)


def refuse_unknown(where: WhereExpression, runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """A predicate over a name that nobody has logged and nobody asks for is a slip of the pen."""
    from flor_plugins.store.query.dataframe import ATTRIBUTES, metric_names

    known = {*metrics, *ATTRIBUTES, "run", "name", "epoch", "step"}
    for run in runs:
        known |= run.params.keys() | {f"params.{name}" for name in run.params}
    unseen = set(where.names) - known
    for run in reversed(runs):  # the newest has most of the names: mostly one is read
        if not unseen:
            return
        unseen -= _logged(run, metric_names(unseen))
    for run in runs if unseen else ():
        known |= _logged(run, None)
    for name in (name for name in where.names if name in unseen):
        close = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "nothing of that name was logged"
        raise WhereError(f"the predicate {where.text!r} asks for {name!r}; {hint}")


def _logged(run: Run, names: Collection[str] | None) -> set[str]:
    """What its metrics are called in a predicate. names: look for these only."""
    logged: set[str] = set()
    for _, row in read_run(run.path, names):
        logged |= row.values.keys() | {f"{row.phase}/{name}" for name in row.values}
    return logged | {f"{name}.value" for name in logged & {"run", "name", "epoch", "step"}}


def _task(run: Run, question: _Question) -> tuple[Task, str]:
    """Return what is to be done with a run; and why not all that was asked, if so.

    Where its version can't take an edit or a method, the other metrics are computed.
    """
    assert run.code is not None
    if question.request.is_verification:
        passes = _comparison(question, index_run(run))
        return Task(run.run_id, run.name, run.code.vid, tuple(passes)), ""
    sources, known = question.sources, _read(run, question)
    passes, reason = _passes(question, known, sources)
    edit, methods, refused = _changes(run, sources, passes)
    if refused:
        passes, _ = _passes(question, known, sources.without(refused))
    digests = {
        name: sources.digests[name] for replay_pass in passes for name in replay_pass.metrics
    }
    task = Task(run.run_id, run.name, run.code.vid, tuple(passes), digests, edit, methods)
    reasons = [reason, *refused.values()]
    return task, "; ".join(dict.fromkeys(reason for reason in reasons if reason))


def _changes(
    run: Run, sources: MetricSources, passes: Sequence[ReplayPass]
) -> tuple[BackportedEdit | None, tuple[MethodPatch, ...], dict[str, str]]:
    """Return what is other in the run's own code; and the metrics that it refuses, with reasons."""
    names = {name for replay_pass in passes for name in replay_pass.metrics}
    edit, methods = None, ()
    refused: dict[str, str] = {}
    if sources.edit is not None and names & sources.edited:
        own = set(sources.edit.own(run)) & names  # it logged them itself: no replay gives more
        if own == names & sources.edited:
            refused |= dict.fromkeys(own, "")
        else:
            try:
                edit = sources.edit.carried_to(run)
            except CannotCarry as error:
                why = f"the edit of the working tree can't be carried to run {run.name}: {error}"
                refused |= dict.fromkeys(sources.edited, why)
    if sources.patch is not None and names & sources.patched:
        try:
            sources.patch.check(run)
            methods = sources.patch.methods
        except CannotCarry as error:
            refused |= dict.fromkeys(sources.patched, f"run {run.name}: {error}")
    return edit, methods, refused


def _read(run: Run, question: _Question) -> RunKnowledge:
    """The journals of a run, read once: what the request and its predicate look at."""
    from flor_plugins.store.query.dataframe import metric_names

    sources, where = question.sources, question.where
    names = {*sources.ways, *metric_names(where.names if where else ()), ASKED}
    known = read_knowledge(run, names, sources.digests)
    if question.request.only:
        return replace(known, places=replace(known.places, validated=frozenset()))
    return known


def _position(places: RunIndex, question: _Question) -> Position | None:
    """The one place that was asked for, if one was.

    Raises NoCheckpoint when the run was never there.
    """
    reference = question.references.get(places.run.run_id)
    if reference is None or (reference.epoch is None and reference.step is None):
        return None
    if reference.epoch is not None:
        return places.end_of(reference.epoch)
    return places.at_step(reference.step or 0)


def _comparison(question: _Question, places: RunIndex) -> list[ReplayPass]:
    """Train everything again, from checkpoint to checkpoint, and only compare."""
    run, epochs, place = places.run, question.request.epochs, _position(places, question)
    ranges = (
        ranges_between_checkpoints(places) if place is None else ranges_through(places, [place])
    )
    if place is None and epochs != "all":
        wanted = set(epochs_of(epochs, places.ends))
        ranges = tuple(trained for trained in ranges if wanted & set(trained.epochs))
    if not ranges:
        raise NoCheckpoint(
            f"run {run.name} ({run.run_id}) can't be verified: nothing was trained after a "
            f"checkpoint of it from which training could go on; it has "
            f"{'; '.join(map(str, places.saved)) or 'none'}"
        )
    again = ReplayPass("train", (), "compares what it recomputes", stretches=ranges)
    return costed(places, [again], question.earlier)


def _passes(
    question: _Question, known: RunKnowledge, sources: MetricSources
) -> tuple[list[ReplayPass], str]:
    """The passes over a run; and why not all that was asked, if so."""
    request, places, run = question.request, known.places, known.places.run
    place = _position(places, question)
    epochs = {places.epoch_of(place)} if place else set(epochs_of(request.epochs, places.ends))
    epochs = set(request.only.get(run.run_id, epochs))
    for epoch in () if place else epochs:
        places.end_of(epoch)  # says so, if the run has not completed it
    missing: MissingPositions = {
        way: missing_positions(known, sources.names(way), way, question.where, epochs, place)
        for way in WAYS
    }
    passes, unrestored = _restored(places, sources, missing)
    unreached: MissingPositions = {"train": missing["train"], **unrestored}
    if not places.starts and any(unreached.values()):
        names = dict.fromkeys(name for way in unreached for name in sources.names(way))
        return costed(places, passes, question.earlier), (
            f"run {run.name} ({run.run_id}) has no checkpoint from which training or "
            f"validation could go on, so that {', '.join(names)} can't be computed; metrics of "
            f"the weights can (at='epoch')"
        )
    passes += _trained(
        places,
        sources,
        unreached,
        is_every=place is None and question.where is None,
        is_named=place is not None or names_them(request.epochs),
    )
    return costed(places, passes, question.earlier), ""


def _restored(
    places: RunIndex, sources: MetricSources, missing: MissingPositions
) -> tuple[list[ReplayPass], MissingPositions]:
    """Passes over checkpoints; and the positions that have none, to which training must lead."""
    # What an edit keeps must see no validation but those of the training.
    is_kept = bool(missing["train"] and sources.kept & set(sources.names("train")))
    passes: list[ReplayPass] = []
    unrestored: dict[Strategy, Sequence[Position]] = {}
    for way in ("state", "validate"):
        names = sources.names(way)
        restored = [
            position
            for position in missing[way]
            if position in places.saved
            and (way == "state" or (places.saved[position].can_validate and not is_kept))
        ]
        if restored:
            passes.append(ReplayPass(way, names, sources.reason(way, names), spread(restored)))
        if len(restored) < len(missing[way]):
            unrestored[way] = sorted({*missing[way]} - {*restored})
    return passes, unrestored


def _trained(
    places: RunIndex,
    sources: MetricSources,
    unreached: MissingPositions,
    *,
    is_every: bool,
    is_named: bool,
) -> list[ReplayPass]:
    """The pass that trains again, if one is needed.

    is_every: nothing was chosen among the steps of the epochs. is_named: certain epochs or a
    place were asked for, not all that can be reached.
    """
    stepwise, steps = set(sources.names("train")), unreached["train"]
    ends = {position for way in unreached if way != "train" for position in unreached[way]}
    wanted = [*steps, *ends]
    is_whole = bool(sources.whole & stepwise)
    if is_whole:
        touched = {places.epoch_of(position) for position in wanted}
        wanted = [places.end_of(epoch) for epoch in touched if epoch in places.ends]
    if not is_named:
        wanted = [position for position in wanted if places.starts and places.starts[0] < position]
    if not wanted:
        return []
    if steps and sources.kept & stepwise:
        ranges = range_from_beginning(places, wanted)
    else:
        ranges = spread(ranges_through(places, wanted, whole=is_whole))
    metrics = tuple(dict.fromkeys(name for way in unreached for name in sources.names(way)))
    is_all = (is_every or not stepwise) and not ends
    chosen = None if is_all else tuple(position.step for position in steps)
    reason = sources.reason("train", metrics)
    return [ReplayPass("train", metrics, reason, tuple(sorted(ends)), ranges, steps=chosen)]
