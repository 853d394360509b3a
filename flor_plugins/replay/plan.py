"""From a request to tasks: which runs, which positions, which way, what it costs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.errors import HookError, NoCheckpoint, ReplayError, WhereError
from flor_plugins.hooks.load import Found, scan
from flor_plugins.records import Pass, Plan, Position, Run, Task, Way
from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.journal import read_run
from flor_plugins.store.layout import new_id

if TYPE_CHECKING:
    from flor_plugins.store.where import Where

_REASONS: dict[Way, str] = {
    "state": "needs only the weights after the epoch: restore, call",
    "validate": "needs the validation loop: restore, run it",
    "train": "needs the updates: restore before the epoch, run it again",
}
_WAYS: tuple[Way, ...] = ("state", "validate", "train")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked. epochs: "all", "last", "a:b" (both included) or a collection of numbers."""

    metrics: tuple[str, ...]
    where: str | None
    epochs: str | Sequence[int]
    hooks: tuple[Path, ...]


def make(runs: Sequence[Run], request: Request) -> Plan:
    """Plan a replay of `runs`. Nothing is run and nothing is written.

    Raises HookError when no hook computes a requested metric, WhereError for a wrong `where`,
    ReplayError for epochs that can't be understood. A run that can't be replayed is in
    `skipped` with its reason.
    """
    hooks = [found for path in request.hooks for found in scan(path)]
    metrics = request.metrics or tuple(found.name for found in hooks if found.kind == "metric")
    if not metrics:
        raise HookError("which metrics? Name them, or give a hook file that has @flor.metric functions")
    ways = _ways(metrics, hooks, request.hooks)
    from flor_plugins.store.where import Where as Expression

    where = Expression.parse(request.where) if request.where else None
    if where is not None:
        _refuse_unknown(where, runs, metrics)
    tasks, skipped = [], {}
    for run in runs:
        reason = _obstacle(run)
        if reason:
            skipped[run.run_id] = reason
            continue
        try:
            passes = _passes(run, ways, where, request.epochs)
        except NoCheckpoint as error:
            skipped[run.run_id] = str(error)
            continue
        if passes:
            assert run.code is not None
            tasks.append(Task(run.run_id, run.name, run.code.vid, tuple(passes)))
    if len(skipped) == len(runs) > 0:
        raise ReplayError("no run can be replayed: " + "; ".join(dict.fromkeys(skipped.values())))
    return Plan(new_id(), metrics, request.where, tuple(map(str, request.hooks)), tuple(tasks), skipped)


def _refuse_unknown(where: Where, runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """A predicate over a name that nobody has logged and nobody asks for is a slip of the pen."""
    from flor_plugins.store.frame import ATTRIBUTES

    known = {*metrics, *ATTRIBUTES, "run", "name", "epoch", "step"}
    for run in runs:
        known |= run.params.keys() | {f"params.{name}" for name in run.params}
        for _, row in read_run(run.path):
            known |= row.values.keys() | {f"{row.phase}/{name}" for name in row.values}
    for name in where.names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else "nothing of that name was logged"
            raise WhereError(f"the predicate {where.text!r} asks for {name!r}; {hint}")


def epochs_of(text: str | Sequence[int], known: Collection[int]) -> list[int]:
    """The completed epochs (1 and up) that `text` names, of those that are known."""
    trained = sorted(epoch for epoch in known if epoch > 0)
    if not isinstance(text, str):
        return sorted(set(text))
    if text == "all":
        return trained
    if text == "last":
        return trained[-1:]
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return sorted({int(part) for part in text.split(",")})
        low, high = int(first or 0), int(last or max(known, default=0))
    except ValueError as error:
        raise ReplayError(f"epochs {text!r}: use all, last, 2, 1,3 or 1:3") from error
    return [epoch for epoch in sorted(known) if low <= epoch <= high]


def _ways(metrics: Sequence[str], hooks: Sequence[Found], files: Sequence[Path]) -> dict[str, Way]:
    """The way of each metric. One that no @flor.metric has may come from a callback or compute_metrics."""
    named: dict[str, Way] = {found.name: found.way for found in hooks if found.kind == "metric"}
    others: list[Way] = [found.way for found in hooks if found.kind != "metric"]
    ways: dict[str, Way] = {}
    for name in metrics:
        if name in named:
            ways[name] = named[name]
        elif others:
            ways[name] = max(others, key=_WAYS.index)
        else:
            known = ", ".join(named) or "none"
            listed = ", ".join(map(str, files)) or "no hook file was given"
            raise HookError(
                f"no hook computes {name!r}; hooks found: {known} (in {listed}). "
                f"Write `@flor.metric(at='epoch')` on `def {name}(ctx)`, and name its file with hooks= or --hook"
            )
    return ways


def _obstacle(run: Run) -> str | None:
    if run.code is None:
        return "its code was not recorded"
    if run.launch.kind == "interactive":
        return "it was started from a prompt or a notebook"
    if not list_checkpoints(run.path):
        return "it has no whole checkpoint"
    return None


def _passes(run: Run, ways: dict[str, Way], where: Where | None, epochs: str | Sequence[int]) -> list[Pass]:
    saved = {c.position.epoch: c for c in list_checkpoints(run.path)}
    wanted = epochs_of(epochs, saved)
    unknown = [epoch for epoch in wanted if epoch not in saved]
    if unknown:
        raise NoCheckpoint(
            f"run {run.name} ({run.run_id}) has no checkpoint at epoch {unknown[0]}; "
            f"it has {', '.join(map(str, sorted(saved)))}"
        )
    present = {(name, row.position) for _, row in read_run(run.path) for name in row.values}
    passes = []
    for way in _WAYS:
        names = tuple(name for name, its in ways.items() if its == way)
        if not names:
            continue
        due, steps = _due(run, names, way, where, wanted, present)
        base = due
        if way == "train":
            due, base = _with_run_up(due, saved)
        if due:
            used = tuple(str(saved[epoch].position) for epoch in base)
            one = Pass(way, tuple(due), names, _REASONS[way], used, steps=steps)
            passes.append(replace(one, seconds=_seconds(run, one)))
    return passes


def _with_run_up(due: Sequence[int], saved: Collection[int]) -> tuple[list[int], list[int]]:
    """Epochs to run so that `due` are run, and the checkpoints to start from.

    Where the checkpoint before an epoch was not kept, the epochs since the last one that was run again, too.
    """
    epochs: set[int] = set()
    bases: set[int] = set()
    for epoch in due:
        earlier = [known for known in saved if known < epoch]
        if earlier:
            bases.add(max(earlier))
            epochs.update(range(max(earlier) + 1, epoch + 1))
    return sorted(epochs), sorted(bases)


def _due(
    run: Run,
    names: tuple[str, ...],
    way: Way,
    where: Where | None,
    wanted: list[int],
    present: set[tuple[str, Position]],
) -> tuple[list[int], tuple[int, ...] | None]:
    """Epochs with a position where a value is missing and the predicate holds, and those steps."""
    import pandas as pd

    from flor_plugins.store.frame import positions

    level = "step" if way == "train" else "epoch"
    frame = positions(run, list(where.names if where else ()), level)
    if level == "epoch" and 0 in wanted:
        # Nothing is logged before the first batch, but its weights can be asked.
        frame = pd.concat([frame.iloc[:0].reindex([0]).assign(epoch=0, step=0).astype(frame.dtypes), frame])
    if where is not None:
        frame = frame[where.mask(frame)]
    # Re-running epoch e makes the steps after e-1 completed epochs up to the one that completes it.
    ends = {c.position.epoch: c.position.step for c in list_checkpoints(run.path)}
    due: set[int] = set()
    steps: list[int] = []
    for epoch, logged in zip(frame["epoch"].tolist(), frame["step"].tolist(), strict=True):
        step = ends.get(int(epoch)) if level == "epoch" else logged
        if step is None:
            continue
        position = Position(int(epoch), int(step))
        if all((name, position) in present for name in names):
            continue
        own = int(epoch) if level == "epoch" or ends.get(int(epoch)) == int(step) else int(epoch) + 1
        if own in wanted:
            due.add(own)
            steps.append(int(step))
    every = level == "epoch" or where is None
    return sorted(due), None if every else tuple(steps)


def _seconds(run: Run, one: Pass) -> float | None:
    """From the recorded timing profile: what one epoch or one validation took, per epoch asked."""
    timing = run.timing
    each = timing.epoch_s if one.way == "train" else timing.validation_s
    if each is None and one.way == "state" and timing.epoch_s is not None:
        each = timing.epoch_s / 10
    return None if each is None else (timing.build_s or 0.0) + each * len(one.epochs)


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, for --json and replays/<id>/plan.json."""
    from dataclasses import asdict

    return {**asdict(plan), "seconds": plan.seconds}
