"""What the processes of a data-parallel run keep apart.

It lies in `ranks/<r>/` in the folder of the run, for r from 1.

The checkpoints of the run itself are those of the first process. Each of the others has at the
same positions what differs from it: random numbers, loaders, buffers, sums in flight.
Parameters and optimizer are in the first one's only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from flor_plugins.records import Checkpoint, Position, Run
from flor_plugins.records.sections import MODEL, LoadedSections
from flor_plugins.store import checkpoints


def folder(run_path: Path, rank: int) -> Path:
    """Where a process keeps its part, laid out as a run is; the first process' part is the run."""
    return run_path / "ranks" / str(rank) if rank else run_path


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """As `checkpoints.list_checkpoints`.

    A checkpoint that not all processes have is one of the weights only.
    """
    parts = {rank: _positions(folder(run.path, rank)) for rank in range(1, run.processes)}
    return [_over_all(checkpoint, parts) for checkpoint in checkpoints.list_checkpoints(run.path)]


def load_checkpoint(
    run_path: Path, rank: int, position: Position, only: Collection[str] | None = None
) -> LoadedSections:
    """Load the State of one process at a position.

    It is the first process', with this one's own part laid over it.

    Errors as `checkpoints.load_checkpoint`, also where this process wrote nothing.
    """
    return with_own_part(
        checkpoints.load_checkpoint(run_path, position, only), run_path, rank, position
    )


def with_own_part(
    whole: LoadedSections, run_path: Path, rank: int, position: Position
) -> LoadedSections:
    """Lay the part of a process over the first process' State at a position, section by section.

    Errors as `checkpoints.load_checkpoint`, where that part is absent or damaged.
    """
    if rank == 0:
        return whole
    own = checkpoints.load_checkpoint(folder(run_path, rank), position)
    wanted = {name: part for name, part in own.items() if name in whole}
    if MODEL in wanted:
        wanted[MODEL] = {**whole[MODEL], **wanted[MODEL]}
    return {**whole, **wanted}


def _positions(path: Path) -> dict[Position, Checkpoint]:
    return {checkpoint.position: checkpoint for checkpoint in checkpoints.list_checkpoints(path)}


def _over_all(one: Checkpoint, parts: dict[int, dict[Position, Checkpoint]]) -> Checkpoint:
    missing = [rank for rank, its in parts.items() if one.position not in its]
    if missing and one.can_train:
        lost = f"no part of rank {', '.join(map(str, missing))} is there"
        return replace(one, is_full=False, lost=(*one.lost, lost), sections=(MODEL,))
    lost = tuple(_lost(rank, its[one.position]) for rank, its in parts.items() if not missing)
    return replace(
        one, is_full=one.is_full and not any(lost), lost=(*one.lost, *filter(None, lost))
    )


def _lost(rank: int, part: Checkpoint) -> str:
    return "" if part.is_full else f"rank {rank}: {'; '.join(part.lost)}"
