"""`gc` and `pin`: what a store gives up to fit a budget, and what it never gives up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from flor_plugins.cli import tables
from flor_plugins.errors import FlorError
from flor_plugins.store import gc as collection
from flor_plugins.store.gc import CheckpointTotals, GcPlan, RunShare
from flor_plugins.store.layout import find_store
from flor_plugins.store.runs import find_run
from flor_plugins.store.sizes import format_size, parse_size

COLUMNS = ["run", "name", "bytes", "then", "checkpoints", "left", "at once", "mean", "worst"]


def gc(budget: str | None, dry_run: bool, yes: bool, as_json: bool, abandon: bool) -> int:
    """Exit status 0, or 1 where the budget can't be met."""
    plan = collection.plan_collection(find_store(), _nbytes(budget), abandon=abandon)
    if dry_run:
        _show(plan, as_json)
        return _end(plan)
    if plan.steps and not yes:
        if not as_json:
            _show(plan, as_json)
        if not _agreed(plan):
            return 1
    done = collection.collect(plan, None if as_json else _tell)
    _show(done, as_json)
    return _end(done)


def pin(run: str, undo: bool) -> int:
    """Exit status 0; a run may be pinned twice."""
    found = find_run(find_store(), run)
    collection.unpin(found) if undo else collection.pin(found)
    print(
        f"{found.name} ({found.run_id}) is "
        f"{'no longer pinned' if undo else 'pinned: gc gives up nothing of it'}"
    )
    return 0


def _nbytes(budget: str | None) -> int | None:
    try:
        return None if budget is None else parse_size(budget)
    except ValueError as error:
        raise typer.BadParameter(f"--budget: {error}") from error


def _agreed(plan: GcPlan) -> bool:
    """What is given up is gone: without a person to ask it must have been said beforehand."""
    if not sys.stdin.isatty():
        raise FlorError(
            f"gc would give up checkpoints in {plan.store.root}, and nobody is there to be asked. "
            "Look at them with --dry-run, and say --yes"
        )
    return typer.confirm(
        f"Give up {len({(step.run_id, step.position) for step in plan.steps})} checkpoints?",
        err=True,
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _end(plan: GcPlan) -> int:
    if plan.problem:
        print(f"flor: {plan.problem}", file=sys.stderr)
    return 1 if plan.problem else 0


def _show(plan: GcPlan, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plain(plan), indent=1))
        return
    tables.table([_row(share) for share in plan.shares], COLUMNS, as_json=False, as_csv=False)
    if plan.leftovers:
        nbytes = sum(leftover.nbytes for leftover in plan.leftovers)
        print(f"\n{format_size(nbytes)} are left over from processes that were killed")
    for share in plan.shares:
        if share.held:
            print(f"{share.name} ({share.run_id}): {share.held}")
    freed = f"{format_size(plan.before)} now, {format_size(plan.after)} then"
    print(f'\n{plan.store.root}: {freed}; "at once": epochs whose weights are there')
    print(
        "mean, worst: seconds of training until any other weights, or the training after any "
        "epoch, are reached"
    )


def _row(share: RunShare) -> dict[str, Any]:
    answers = share.after.answers
    return {
        "run": share.run_id,
        "name": share.name,
        "bytes": format_size(share.before.nbytes),
        "then": format_size(share.after.nbytes),
        "checkpoints": _counted(share.before),
        "left": _counted(share.after),
        "at once": spans(answers.at_once) or "none",
        "mean": _seconds(answers.mean_s),
        "worst": _seconds(answers.worst_s),
    }


def _seconds(cost: float | None) -> str:
    return "never" if cost is None else f"{cost:.1f}"


def _counted(one: CheckpointTotals) -> str:
    return f"{one.full} full" + (f" + {one.weights} weights" if one.weights else "")


def spans(epochs: Sequence[int]) -> str:
    """Ascending numbers as people write them: 1:3,5,8:9."""
    found: list[list[int]] = []
    for epoch in epochs:
        if found and found[-1][-1] == epoch - 1:
            found[-1].append(epoch)
        else:
            found.append([epoch])
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}:{one[-1]}" for one in found)


def _plain(plan: GcPlan) -> dict[str, Any]:
    return {
        "store": str(plan.store.root),
        "budget": plan.budget,
        "before": plan.before,
        "after": plan.after,
        "leftovers": [
            {"path": str(leftover.path), "bytes": leftover.nbytes} for leftover in plan.leftovers
        ],
        "runs": list(_plain_runs(plan.shares)),
        "problem": plan.problem or None,
    }


def _plain_runs(shares: Iterable[RunShare]) -> Iterable[dict[str, Any]]:
    for share in shares:
        steps = [
            {
                "epoch": step.position.epoch,
                "step": step.position.step,
                "from": step.now,
                "to": step.then,
            }
            for step in share.steps
        ]
        summaries = {"before": _plain_summary(share.before), "after": _plain_summary(share.after)}
        yield {
            "run": share.run_id,
            "name": share.name,
            **summaries,
            "steps": steps,
            "held": share.held or None,
        }


def _plain_summary(one: CheckpointTotals) -> dict[str, Any]:
    return {
        "bytes": one.nbytes,
        "full": one.full,
        "weights": one.weights,
        "epochs_at_once": list(one.answers.at_once),
        "mean_s": one.answers.mean_s,
        "worst_s": one.answers.worst_s,
    }
