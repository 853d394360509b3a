"""What an importer finds on disk: another program's checkpoints, and what it logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flor_plugins.records import Position, Row


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """One checkpoint. weights: reads the model's state_dict, tensors on the CPU."""

    path: Path
    position: Position
    ends_epoch: bool
    weights: Callable[[], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class FoundTraining:
    """One training. checkpoints: by position, at least one. files: all that was read, and will be.

    notes: what is missing or was guessed.
    """

    framework: Literal["lightning", "hf"]
    path: Path
    checkpoints: tuple[FoundCheckpoint, ...]
    files: tuple[Path, ...]
    rows: tuple[Row, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def one_each(stored: list[FoundCheckpoint]) -> tuple[tuple[FoundCheckpoint, ...], list[str]]:
    """One checkpoint for each position, ascending; and what is said of the others."""
    kept: dict[Position, FoundCheckpoint] = {}
    notes = []
    for one in stored:
        first = kept.setdefault(one.position, one)
        if first is not one:
            notes.append(
                f"{one.path} is left out: {first.path.name} is of the same position, {one.position}"
            )
    return tuple(kept[position] for position in sorted(kept)), notes
