"""From a request to tasks: which runs, which positions, which way, what it costs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.errors import CannotCarry, HookError, NoCheckpoint, ReplayError, WhereError
from flor_plugins.hooks.hook_files import scan
from flor_plugins.records import (
    BackportedEdit,
    MethodPatch,
    Plan,
    Position,
    ReplayPass,
    Run,
    Strategy,
    Task,
)
from flor_plugins.replayer.planning.eligibility import why_not
from flor_plugins.replayer.planning.epoch_selection import epochs_of, names_them, spread
from flor_plugins.replayer.planning.estimates import MeasuredSeconds, costed, measured
from flor_plugins.replayer.planning.metric_sources import WAYS, MetricSources, given
from flor_plugins.replayer.planning.missing import MissingValues, RunKnowledge, due_in
from flor_plugins.replayer.planning.recorded_values import looked_for, of_today
from flor_plugins.replayer.planning.training_ranges import (
    range_from_beginning,
    ranges_between_checkpoints,
    ranges_through,
)
from flor_plugins.store.layout import new_id
from flor_plugins.store.metrics.journal import read_run
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.query.references import RunReference
from flor_plugins.store.run_index import RunIndex, index_run

if TYPE_CHECKING:
    from flor_plugins.replayer.backport.request import LoggingEdit
    from flor_plugins.replayer.method_patching.patches import MethodPatches
    from flor_plugins.store.query.where import WhereExpression


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What was asked. epochs: as `epochs_of` reads them.

    at: run_id to the one place of that run that was asked for.
    only: run_id to epochs of that run, of those that there are; a search asks for them. Of
    validations only those at their ends count, and a run that can't be replayed is no error:
    the plan says so in `skipped`.
    edit: of the working tree, if it logs a metric. patch: methods to be replaced.
    """

    metrics: tuple[str, ...]
    where: str | None
    epochs: str | Sequence[int]
    hooks: tuple[Path, ...]
    at: Mapping[str, RunReference] = field(default_factory=dict)
    only: Mapping[str, Collection[int]] = field(default_factory=dict)
    edit: LoggingEdit | None = None
    patch: MethodPatches | None = None


@dataclass(frozen=True, slots=True)
class _RunWork:
    """What is to be done with a run. why_not: why not all that was asked, if so.

    Else as in a Task.
    """

    passes: list[ReplayPass]
    why_not: str = ""
    edit: BackportedEdit | None = None
    methods: tuple[MethodPatch, ...] = ()


def make(runs: Sequence[Run], request: ReplayRequest) -> Plan:
    """Plan a replay of `runs`. Nothing is run and nothing is written.

    Raises HookError when no hook computes a requested metric, WhereError for a wrong `where`,
    ReplayError for epochs that can't be understood. A run that can't be replayed is in
    `skipped` with its reason.
    """
    hooks = [found for path in request.hooks for found in scan(path)]
    metrics = request.metrics or tuple(found.name for found in hooks if found.kind == "metric")
    if not metrics:
        raise HookError(
            "which metrics? Name them, or give a hook file that has @flor.metric functions"
        )
    methods = request.patch.methods if request.patch else ()
    asked = given(metrics, hooks, request.hooks, request.edit, methods)
    from flor_plugins.store.query.where import WhereExpression as Expression

    where = Expression.parse(request.where) if request.where else None
    if where is not None:
        refuse_unknown(where, runs, metrics)
    earlier = measured(runs[0].path.parent.parent / "replays") if runs else {}
    return _of_all(
        runs, request, metrics, lambda run: _work(run, asked, where, request, earlier), asked
    )


def verification(
    runs: Sequence[Run], epochs: str | Sequence[int], at: Mapping[str, RunReference]
) -> Plan:
    """Plan to run everything again, from checkpoint to checkpoint, and only compare.

    Errors as `make`.
    """
    request = ReplayRequest((), None, epochs, (), at)

    def work(run: Run) -> _RunWork:
        places = index_run(run)
        place = _position(places, request)
        stretches = (
            ranges_between_checkpoints(places) if place is None else ranges_through(places, [place])
        )
        if place is None and epochs != "all":
            wanted = set(epochs_of(epochs, places.ends))
            stretches = tuple(stretch for stretch in stretches if wanted & set(stretch.epochs))
        if not stretches:
            raise NoCheckpoint(
                f"run {run.name} ({run.run_id}) can't be verified: nothing was trained after a "
                f"checkpoint of it "
                f"from which training could go on; it has "
                f"{'; '.join(map(str, places.saved)) or 'none'}"
            )
        again = ReplayPass("train", (), "compares what it recomputes", stretches=stretches)
        return _RunWork(costed(places, [again], measured(run.path.parent.parent / "replays")))

    return _of_all(runs, request, (), work)


def _of_all(
    runs: Sequence[Run],
    request: ReplayRequest,
    metrics: tuple[str, ...],
    work_on: Callable[[Run], _RunWork],
    asked: MetricSources | None = None,
) -> Plan:
    tasks, skipped = [], {}
    for run in runs:
        reason = why_not(run)
        if reason:
            skipped[run.run_id] = reason
            continue
        try:
            work = work_on(run)
        except NoCheckpoint as error:
            skipped[run.run_id] = str(error)
            continue
        if work.why_not:
            skipped[run.run_id] = work.why_not
        if work.passes:
            assert run.code is not None
            digests = (
                {name: asked.hooks[name] for one in work.passes for name in one.metrics}
                if asked
                else {}
            )
            known = {name: tuple(its) for name, its in digests.items()}
            tasks.append(
                Task(
                    run.run_id,
                    run.name,
                    run.code.vid,
                    tuple(work.passes),
                    known,
                    work.edit,
                    work.methods,
                )
            )
    if len(skipped) == len(runs) > 0 and not tasks and not request.only:
        raise ReplayError("no run can be replayed: " + "; ".join(dict.fromkeys(skipped.values())))
    return Plan(
        new_id(), metrics, request.where, tuple(map(str, request.hooks)), tuple(tasks), skipped
    )


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
    found: set[str] = set()
    for _, row in read_run(run.path, names):
        found |= row.values.keys() | {f"{row.phase}/{name}" for name in row.values}
    return found | {f"{name}.value" for name in found & {"run", "name", "epoch", "step"}}


def _position(places: RunIndex, request: ReplayRequest) -> Position | None:
    """The one place that was asked for, if one was.

    Raises NoCheckpoint when the run was never there.
    """
    at = request.at.get(places.run.run_id)
    if at is None or (at.epoch is None and at.step is None):
        return None
    return places.end_of(at.epoch) if at.epoch is not None else places.at_step(at.step or 0)


def _work(
    run: Run,
    asked: MetricSources,
    where: WhereExpression | None,
    request: ReplayRequest,
    earlier: MeasuredSeconds,
) -> _RunWork:
    """What is to be done with a run.

    Where its version can't take an edit or a method, the other metrics are.
    """
    passes, why_not = _passes(run, asked, where, request, earlier)
    names = {name for one in passes for name in one.metrics}
    edit, methods, refused = None, (), set()
    reasons = [why_not] if why_not else []
    if request.edit is not None and names & asked.edited:
        own = set(request.edit.own(run)) & names  # it logged them itself: no replay gives more
        if own == names & asked.edited:
            refused |= own
        else:
            try:
                edit = request.edit.carried_to(run)
            except CannotCarry as error:
                refused |= asked.edited
                reasons.append(
                    f"the edit of the working tree can't be carried to run {run.name}: {error}"
                )
    if request.patch is not None and names & asked.patched:
        try:
            request.patch.check(run)
            methods = request.patch.methods
        except CannotCarry as error:
            refused |= asked.patched
            reasons.append(f"run {run.name}: {error}")
    if refused:
        passes, why_not = _passes(run, asked.without(refused), where, request, earlier)
    return _RunWork(passes, "; ".join(dict.fromkeys(reasons)), edit, methods)


def _passes(
    run: Run,
    asked: MetricSources,
    where: WhereExpression | None,
    request: ReplayRequest,
    earlier: MeasuredSeconds,
) -> tuple[list[ReplayPass], str]:
    """The passes over a run; and why not all that was asked, if so."""
    known = _read(run, asked, where)
    if request.only:
        known = replace(known, places=replace(known.places, validated=frozenset()))
    places = known.places
    place = _position(places, request)
    epochs = {places.epoch_of(place)} if place else set(epochs_of(request.epochs, places.ends))
    epochs = set(request.only.get(run.run_id, epochs))
    for epoch in () if place else epochs:
        places.end_of(epoch)  # says so, if the run has not completed it
    due: dict[Strategy, MissingValues] = {
        way: due_in(
            known, [n for n, its in asked.ways.items() if its == way], way, where, epochs, place
        )
        for way in WAYS
    }
    explicit = place is not None or names_them(request.epochs)
    is_kept = bool(due["train"].positions and asked.kept & set(due["train"].metrics))
    passes, marks = _restored(places, due, asked, is_kept)
    unreachable = ""
    if not places.starts and (due["train"].positions or marks):
        names = dict.fromkeys(name for one in [due["train"], *marks] for name in one.metrics)
        unreachable = (
            f"run {run.name} ({run.run_id}) has no checkpoint from which training or "
            f"validation could go on, "
            f"so that {', '.join(names)} can't be computed; metrics of the weights can (at='epoch')"
        )
    else:
        passes += _trained(places, due["train"], marks, asked, explicit)
    return costed(places, passes, earlier), unreachable


def _read(run: Run, asked: MetricSources, where: WhereExpression | None) -> RunKnowledge:
    """The journals of a run, read once: what the request and its predicate look at."""
    from flor_plugins.store.query.dataframe import metric_names

    names = {*asked.ways, *metric_names(where.names if where else ()), ASKED}
    rows = of_today(read_run(run.path, names), asked.hooks)
    return RunKnowledge(index_run(run, rows), rows, looked_for(rows, asked.hooks))


def _restored(
    places: RunIndex, due: Mapping[Strategy, MissingValues], asked: MetricSources, is_kept: bool
) -> tuple[list[ReplayPass], list[MissingValues]]:
    """Passes over checkpoints; and what has none, so that training must lead there.

    is_kept: what an edit keeps must see no validation but those of the training.
    """
    passes, marks = [], []
    for way in ("state", "validate"):
        known = [
            position
            for position in due[way].positions
            if position in places.saved
            and (way == "state" or (places.saved[position].can_validate and not is_kept))
        ]
        if known:
            reason = asked.reason(way, due[way].metrics)
            passes.append(ReplayPass(way, due[way].metrics, reason, spread(known)))
        rest = tuple(position for position in due[way].positions if position not in known)
        if rest:
            marks.append(replace(due[way], positions=rest))
    return passes, marks


def _trained(
    places: RunIndex,
    steps: MissingValues,
    marks: Sequence[MissingValues],
    asked: MetricSources,
    explicit: bool,
) -> list[ReplayPass]:
    is_whole = bool(asked.whole & set(steps.metrics))
    wanted = [*steps.positions, *(position for mark in marks for position in mark.positions)]
    if is_whole:
        wanted = [
            places.end_of(places.epoch_of(one))
            for one in wanted
            if places.epoch_of(one) in places.ends
        ]
    if not explicit:  # of all, what can be reached
        wanted = [one for one in wanted if places.starts and places.starts[0] < one]
    if not wanted:
        return []
    metrics = tuple(
        dict.fromkeys([*steps.metrics, *(name for mark in marks for name in mark.metrics)])
    )
    reached = tuple(sorted({position for mark in marks for position in mark.positions}))
    is_kept = bool(steps.positions and asked.kept & set(steps.metrics))
    stretches = (
        range_from_beginning(places, wanted)
        if is_kept
        else spread(ranges_through(places, wanted, whole=is_whole))
    )
    chosen = None if steps.is_every and not marks else tuple(one.step for one in steps.positions)
    return [
        ReplayPass(
            "train", metrics, asked.reason("train", metrics), reached, stretches, steps=chosen
        )
    ]
