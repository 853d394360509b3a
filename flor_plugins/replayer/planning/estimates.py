"""What a pass will take and read, from earlier replays of the run or the recorded times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flor_plugins.errors import StoreError
from flor_plugins.records import JsonObject, Plan, ReplayPass, Strategy, from_json
from flor_plugins.replayer.planning.training_ranges import count_steps
from flor_plugins.store.checkpoints import manifest
from flor_plugins.store.files import read_json
from flor_plugins.store.run_index import RunIndex

# Seconds per position, or per update for the way "train", by run_id and way.
MeasuredSeconds = Mapping[tuple[str, Strategy], float]
# What a hook of the weights takes, in training epochs, where no replay has shown it.
_STATE_SHARE = 0.1
# The newest replays are looked through; older ones say little about today's machine.
_LOOKED_AT = 100


def measured(replays: Path) -> MeasuredSeconds:
    """Return what the newest replays of each run and way have taken.

    replays: the folder that holds them all. A replay that is being made, or was made by another
    version, is passed over.
    """
    measured: dict[tuple[str, Strategy], float] = {}
    for verdicts in sorted(replays.glob("*/verdicts.json"), reverse=True)[:_LOOKED_AT]:
        with suppress(StoreError, KeyError, TypeError, AttributeError, ValueError):
            plan = from_json(Plan, read_json(verdicts.with_name("plan.json")))
            for key, seconds in _of_replay(plan, read_json(verdicts)["passes"]).items():
                measured.setdefault(key, seconds)
    return measured


def _of_replay(plan: Plan, rows: Sequence[JsonObject]) -> MeasuredSeconds:
    counts: Counter[tuple[str, Strategy]] = Counter()
    for task in plan.tasks:
        for replay_pass in task.passes:
            counts[task.run_id, replay_pass.way] += _count(replay_pass)
    seconds: dict[tuple[str, Strategy], float] = {}
    for row in rows:
        key = (row["run"], row["way"])
        seconds[key] = seconds.get(key, 0.0) + row["seconds"]
    return {key: taken / counts[key] for key, taken in seconds.items() if counts[key]}


def costed(
    places: RunIndex, passes: Sequence[ReplayPass], earlier: MeasuredSeconds
) -> list[ReplayPass]:
    """The passes with their seconds and bytes.

    The first bears what it takes to build the trainer, once.
    """
    passes_with_costs = []
    for number, one in enumerate(passes):
        build = (places.run.timing.build_s or 0.0) if number == 0 else 0.0
        each, count = _each(places, one.way, earlier), _count(one)
        seconds = None if each is None else build + each * count
        passes_with_costs.append(replace(one, seconds=seconds, nbytes=_nbytes(places, one)))
    return passes_with_costs


def _count(replay_pass: ReplayPass) -> int:
    """Count its positions; its updates for the way "train"."""
    if replay_pass.way == "train":
        return count_steps(replay_pass.stretches)
    return len(replay_pass.positions)


def _each(places: RunIndex, way: Strategy, earlier: MeasuredSeconds) -> float | None:
    """Seconds for one position or one update; None where nothing is known."""
    before = earlier.get((places.run.run_id, way))
    if before is not None:
        return before
    timing = places.run.timing
    if way == "validate":
        return timing.validation_s
    if timing.epoch_s is None:
        return None
    if way == "state":
        return timing.epoch_s * _STATE_SHARE
    epochs = len(places.ends) - 1
    per_epoch = places.last.step / epochs if epochs > 0 else places.last.step
    return timing.epoch_s / per_epoch if per_epoch else timing.epoch_s


def _nbytes(places: RunIndex, one: ReplayPass) -> int | None:
    """Bytes of all tensors that are restored.

    Each of its checkpoints counts as the last one: they have one shape.
    """
    starts = [stretch.start for stretch in one.stretches] if one.way == "train" else one.positions
    last = max(starts, default=None)
    if last is None or last not in places.saved:
        return None
    try:
        tensors = manifest.records(manifest.read_manifest(places.saved[last].path, last))
    except StoreError:
        return None  # whoever restores it says what is wrong
    read = {
        (tensor.file, tensor.key): tensor.nbytes
        for key, tensor in tensors.items()
        if one.way != "state" or key.startswith("model/")
    }
    return len(starts) * sum(read.values())
