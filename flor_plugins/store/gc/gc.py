"""`plan_collection` says what a store would give up for a budget, and `collect` does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flor_plugins.records import Position, Run
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.gc.candidates import read_candidate
from flor_plugins.store.gc.disk_usage import parts_of, read_sizes, reduce
from flor_plugins.store.gc.eviction import (
    EvictionCandidate,
    EvictionStep,
    FormLimits,
    choose,
    limits_of,
)
from flor_plugins.store.gc.leftovers import Leftover, clear, leftovers, size_of
from flor_plugins.store.gc.pins_and_holds import ReplayHolds, held_by_replays, why_held
from flor_plugins.store.gc.replay_cost import CheckpointForm, ReachableEpochs
from flor_plugins.store.layout import Store
from flor_plugins.store.run_index import why_not_trainable
from flor_plugins.store.runs import list_runs, load_run

ReportLine = Callable[[str], None]

HOPED = 0.75  # of the bytes are expected to be left by compression


@dataclass(frozen=True, slots=True)
class CheckpointTotals:
    """A run's checkpoints at one time.

    full: from how many training can go on; weights: all the others that load.
    """

    nbytes: int
    full: int
    weights: int
    answers: ReachableEpochs


@dataclass(frozen=True, slots=True)
class RunShare:
    """What one run gives up.

    held: why it gives up nothing, or not all that it could; empty if nothing holds it.
    """

    run_id: str
    name: str
    before: CheckpointTotals
    after: CheckpointTotals
    steps: tuple[EvictionStep, ...] = ()
    held: str = ""


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What a store loses.

    budget: bytes of the whole store, None for what costs no answer only.

    before, after: bytes of the store; `after` without what compression saves, which is known
    only when it is done.
    problem: why the budget can't be met; empty if it is.
    """

    store: Store
    budget: int | None
    before: int
    after: int
    leftovers: tuple[Leftover, ...]
    shares: tuple[RunShare, ...]
    problem: str = ""
    abandon: bool = False

    @property
    def steps(self) -> tuple[EvictionStep, ...]:
        """Return the steps of all runs."""
        return tuple(step for share in self.shares for step in share.steps)


def plan_collection(store: Store, budget: int | None = None, *, abandon: bool = False) -> GcPlan:
    """Plan what is evicted so that the whole store has at most `budget` bytes.

    Without a budget only leftovers are removed.

    abandon: what unfinished replays need is given up, too, but for those that are going on.
    Nothing is written. Damaged runs and checkpoints are left as they are, with a warning.
    """
    return _plan(store, budget, abandon, None)


def collect(plan: GcPlan, tell: ReportLine | None = None) -> GcPlan:
    """Do what a plan says, and return what was done.

    Compression comes first, so that it may be less than was planned.

    A kill in the middle leaves every checkpoint that is listed whole; the next collection goes
    on from there. Raises StoreError if something can't be removed: what was done before stays
    done.
    """
    store, tell = plan.store, tell or _stay_silent
    for path in clear(store, plan.leftovers):
        tell(f"removed {path}")
    # Deltas hold on to what they are made from: what compression will not save anyway goes first.
    first = _part(plan, None if plan.budget is None else int(plan.budget / HOPED), tell)
    if plan.budget is None or size_of(store.root) > plan.budget:
        _compress(store, plan.budget, tell)
    last = _part(plan, plan.budget, tell)
    after = size_of(store.root)
    problem = last.problem
    if plan.budget is not None and after > plan.budget and not problem:
        problem = f"{store.root} has {after - plan.budget} bytes too many"
    if problem and not plan.problem:  # deltas hold on to what they are made from
        problem += ". Ask again: more can be given up now than was planned"
    shares = (_over_all(share, plan.shares, first.shares) for share in last.shares)
    return dataclasses.replace(plan, after=after, shares=tuple(shares), problem=problem)


def _stay_silent(line: str) -> None:
    pass


def _part(plan: GcPlan, budget: int | None, tell: ReportLine) -> GcPlan:
    """Give up what is needed for a budget of what was agreed to. Returns what was done."""
    part = _plan(plan.store, budget, plan.abandon, limits_of(plan.steps))
    problems, shares = [part.problem] if part.problem else [], []
    for share in part.shares:
        why = _give_up(plan.store, share, plan.abandon, tell) if share.steps else ""
        if why:
            problems.append(f"no more of run {share.name} ({share.run_id}) was given up: {why}")
            now = _summary(read_candidate(load_run(plan.store.run(share.run_id))))
            share = dataclasses.replace(share, after=now, steps=(), held=why)
        shares.append(share)
    return dataclasses.replace(part, shares=tuple(shares), problem="; ".join(problems))


def _over_all(last: RunShare, planned: Iterable[RunShare], first: Iterable[RunShare]) -> RunShare:
    before = next((share.before for share in planned if share.run_id == last.run_id), last.before)
    steps = next((share.steps for share in first if share.run_id == last.run_id), ())
    return dataclasses.replace(last, before=before, steps=(*steps, *last.steps))


def _plan(store: Store, budget: int | None, abandon: bool, limits: FormLimits | None) -> GcPlan:
    runs, unread = list_runs(store), tuple(leftovers(store)) if limits is None else ()
    holds = held_by_replays(store, abandon=abandon)
    candidates = {
        run.run_id: read_candidate(run, holds.positions.get(run.run_id, ())) for run in runs
    }
    before = {run.run_id: _summary(candidates[run.run_id]) for run in runs}
    whole = size_of(store.root)
    lost = sum(leftover.nbytes for leftover in unread)
    excess = 0 if budget is None else whole - lost - budget
    held = {run.run_id: why_held(run, holds) for run in runs}
    free = [candidates[run.run_id] for run in runs if not held[run.run_id]]
    steps = choose(free, excess, limits)
    shares = tuple(
        RunShare(
            run.run_id,
            run.name,
            before[run.run_id],
            _summary(candidates[run.run_id]),
            tuple(step for step in steps if step.run_id == run.run_id),
            held[run.run_id] or _why_not_more(run, holds, candidates[run.run_id].can_train),
        )
        for run in runs
    )
    after = whole - lost - sum(share.before.nbytes - share.after.nbytes for share in shares)
    problem = ""
    if budget is not None and after > budget:
        problem = _problem(store, budget, after, shares)
    return GcPlan(store, budget, whole, after, unread, shares, problem, abandon)


def _summary(one: EvictionCandidate) -> CheckpointTotals:
    forms = list(one.forms.values())
    return CheckpointTotals(one.nbytes, forms.count("full"), forms.count("weights"), one.answers)


def _why_not_more(run: Run, holds: ReplayHolds, can_train: bool) -> str:
    reasons = sorted(set(holds.positions.get(run.run_id, {}).values()))
    if not can_train:
        why = why_not_trainable(run, list_checkpoints(run.path))
        reasons.insert(0, f"what would be given up of it could not be trained again: {why}")
    return "; ".join(reasons)


def _problem(store: Store, budget: int, after: int, shares: Iterable[RunShare]) -> str:
    from flor_plugins.store.sizes import format_size

    why = [f"run {share.name} ({share.run_id}): {share.held}" for share in shares if share.held]
    return (
        f"the store {store.root} was to have at most {format_size(budget)}, and "
        f"{format_size(after)} must stay: "
        "of each run the first and the last checkpoint, and all that is no checkpoint "
        "(compression may save some of it)"
        f"{'; also ' + '; '.join(why) if why else ''}. Delete the folder of a run that is not "
        f"needed, or unpin one"
    )


def _compress(store: Store, budget: int | None, tell: ReportLine) -> None:
    """Lossless: every checkpoint stays and is read as before.

    The largest runs first, until the budget is met.
    """
    from flor_plugins.store.checkpoints.compression import compress_run

    busy = held_by_replays(
        store
    ).runs  # a replay that reads them would find that files have changed
    runs = [run for run in list_runs(store) if run.status != "running" and run.run_id not in busy]
    excess = None if budget is None else size_of(store.root) - budget
    for run in sorted(runs, key=lambda run: -size_of(run.path)):
        if excess is not None and excess <= 0:
            return
        freed = sum(compress_run(part) for part in parts_of(run.path))
        excess = None if excess is None else excess - freed
        if freed:
            tell(f"compressed {run.name}: {freed} bytes less")


def _give_up(store: Store, share: RunShare, abandon: bool, tell: ReportLine) -> str:
    """Evict what a share says, and return why not all was.

    Between planning and now a replay may have begun, or the run gone on.
    """
    path = store.run(share.run_id)
    forms: dict[Position, CheckpointForm] = {step.position: step.then for step in share.steps}
    for part in parts_of(path):
        sizes, _ = read_sizes(part)
        was = dict(sizes.forms)
        for position, form in forms.items():
            if part == path or form == "gone":
                sizes.put(position, form)
        for position, form in reduce(part, sizes, was):
            why = _why_held_now(store, path, abandon, forms)
            if why:
                return why
            tell(
                f"giving up {'all' if form == 'gone' else 'the optimizer'} of {share.name} at "
                f"{position}"
            )
    return ""


def _why_held_now(
    store: Store, path: Path, abandon: bool, forms: Mapping[Position, CheckpointForm]
) -> str:
    run, holds = load_run(path), held_by_replays(store, abandon=abandon)
    held = holds.positions.get(run.run_id, {})
    return why_held(run, holds) or "; ".join(
        sorted({held[one] for one in held.keys() & forms.keys()})
    )
