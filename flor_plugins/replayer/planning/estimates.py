"""What a pass will take and read: from earlier replays of the run, else from the times that
were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flor_plugins.errors import StoreError
from flor_plugins.records import ReplayPass, Strategy
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
    """What the newest replays of each run and way have taken. replays: the folder that holds
    them all.

    A replay that is being made, or was made by another version, is passed over.
    """
    found: dict[tuple[str, Strategy], float] = {}
    folders = sorted(
        (one for one in replays.glob("*") if (one / "verdicts.json").exists()), reverse=True
    )
    for folder in folders[:_LOOKED_AT]:
        with suppress(StoreError, KeyError, TypeError, AttributeError, ValueError):
            for key, seconds in _of_replay(
                read_json(folder / "plan.json"), read_json(folder / "verdicts.json")
            ):
                found.setdefault(key, seconds)
    return found


def _of_replay(
    plan: Mapping[str, Any], verdicts: Mapping[str, Any]
) -> list[tuple[tuple[str, Strategy], float]]:
    counts: dict[tuple[str, Strategy], int] = {}
    for task in plan["tasks"]:
        for one in task["passes"]:
            steps = sum(s["end"]["step"] - s["start"]["step"] for s in one["stretches"])
            count = steps if one["way"] == "train" else len(one["positions"])
            key = (task["run_id"], one["way"])
            counts[key] = counts.get(key, 0) + count
    seconds: dict[tuple[str, Strategy], float] = {}
    for row in verdicts["passes"]:
        key = (row["run"], row["way"])
        seconds[key] = seconds.get(key, 0.0) + row["seconds"]
    return [(key, its / counts[key]) for key, its in seconds.items() if counts.get(key)]


def costed(
    places: RunIndex, passes: Sequence[ReplayPass], earlier: MeasuredSeconds
) -> list[ReplayPass]:
    """The passes with their seconds and bytes.

    The first bears what it takes to build the trainer, once.
    """
    found = []
    for number, one in enumerate(passes):
        build = (places.run.timing.build_s or 0.0) if number == 0 else 0.0
        each, count = _each(places, one.way, earlier), _count(places, one)
        seconds = None if each is None else build + each * count
        found.append(replace(one, seconds=seconds, nbytes=_nbytes(places, one)))
    return found


def _count(places: RunIndex, one: ReplayPass) -> int:
    """Positions; updates for the way "train"."""
    return count_steps(one.stretches) if one.way == "train" else len(one.positions)


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
        tensors = manifest.records(manifest.read_state(places.saved[last].path, last))
    except StoreError:
        return None  # whoever restores it says what is wrong
    read = {
        (tensor.file, tensor.key): tensor.nbytes
        for key, tensor in tensors.items()
        if one.way != "state" or key.startswith("model/")
    }
    return len(starts) * sum(read.values())
