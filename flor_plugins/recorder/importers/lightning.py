"""Checkpoints that Lightning wrote: `.ckpt` files, of which only data is read, never code."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from flor_plugins.errors import StoreError
from flor_plugins.recorder.importers.found_checkpoints import (
    FoundCheckpoint,
    FoundTraining,
    one_each,
)
from flor_plugins.recorder.launch_environment import flatten
from flor_plugins.records import JsonObject, Level, Phase, Position, Row
from flor_plugins.records.sections import MODEL, TRAINER
from flor_plugins.store.checkpoints import load_folder
from flor_plugins.store.checkpoints.manifest import STATE

ENDING = ".ckpt"
_HPARAMS = ("datamodule_hyper_parameters", "hyper_parameters")
# What Lightning itself writes at the top of a checkpoint, without which it can't be placed.
_STEP = "global_step"
LightningCheckpoint = dict[str, Any]  # what Lightning dumps


def files_in(path: Path) -> list[Path]:
    """Return the checkpoints at `path`: itself, those in it, or in `checkpoints/` in it.

    Links to one of them count once.
    """
    if path.suffix == ENDING:
        return [path]
    found = sorted(path.glob(f"*{ENDING}")) or sorted((path / "checkpoints").glob(f"*{ENDING}"))
    return list(
        {
            one.resolve(): one
            for one in sorted(found, key=lambda one: one.is_symlink(), reverse=True)
        }.values()
    )


def find(path: Path) -> FoundTraining:
    """The training whose `.ckpt` files are at `path`.

    Raises StoreError if none of them can be read; others that can't are named in the notes.
    """
    stored: list[FoundCheckpoint] = []
    notes: list[str] = []
    refused: list[StoreError] = []
    newest: LightningCheckpoint = {_STEP: -1}
    scores: dict[str, dict[str, float]] = {}
    for file in sorted(files_in(path)):
        try:
            checkpoint = read_file(file)
            stored.append(_stored(file, checkpoint))
        except StoreError as error:
            refused.append(error)
            notes.append(f"{file} is left out: {error}")
            continue
        if "loops" not in checkpoint:
            epoch = stored[-1].position.epoch
            notes.append(f"{file} does not say how many epochs were complete: {epoch} is a guess")
        if int(checkpoint[_STEP]) > newest[_STEP]:
            newest = {
                _STEP: int(checkpoint[_STEP]),
                **{key: checkpoint.get(key) for key in _HPARAMS},
            }
        for name, values in _scores(checkpoint).items():
            scores.setdefault(name, {}).update(values)
    if not stored:
        raise (
            refused[0]
            if refused
            else StoreError(f"{path} was to be imported, and no {ENDING} file is there")
        )
    kept, doubles = one_each(stored)
    files, rows = tuple(one.path for one in stored), tuple(_rows(kept, scores))
    return FoundTraining("lightning", path, kept, files, rows, _params(newest), (*notes, *doubles))


def read_file(path: Path, *, mapped: bool = True) -> LightningCheckpoint:
    """The dict in a `.ckpt` file of Lightning, or in a folder that FlorCheckpointIO wrote.

    Tensors are on the CPU; mapped: those of a file are read when they are used, which spares
    reading the optimizer's part in vain. Raises StoreError, naming the globals, if the file
    holds anything that only code could build.
    """
    if path.is_dir():
        if not (path / STATE).is_file():
            raise StoreError(
                f"{path} is a folder of a sharded strategy (FSDP, DeepSpeed), which can't be "
                f"read. Make one file "
                f"of it: python -m lightning.pytorch.utilities.consolidate_checkpoint '{path}'"
            )
        sections = load_folder(path)
        return {**sections[TRAINER], "state_dict": sections[MODEL]}
    try:
        mapped = mapped and zipfile.is_zipfile(path)  # files of old torch versions can't be mapped
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torn files make every kind of error
        raise StoreError(_refusal(path, error)) from error
    if not isinstance(found, dict):
        raise StoreError(
            f"{path} was to be read as a checkpoint of Lightning, and holds a "
            f"{type(found).__name__}"
        )
    return found


def position_of(checkpoint: LightningCheckpoint) -> Position | None:
    """(completed epochs, global_step) of the dict that Lightning dumps; None where it doesn't say.

    An epoch counts once its last batch is done: at the end-of-epoch validation, where
    ModelCheckpoint saves by default, Lightning does not count it as processed yet.
    """
    try:
        step, epoch = int(checkpoint[_STEP]), int(checkpoint["epoch"])
        loop = checkpoint.get("loops", {}).get("fit_loop")
        if loop is None:
            return Position(epoch + 1, step)
        progress, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        done = int(progress["processed"])
        return Position(done + int(batches["is_last_batch"] and progress["started"] > done), step)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _ends_epoch(checkpoint: LightningCheckpoint) -> bool:
    """Whether it stands at the end of an epoch and not in its middle; read after `position_of`."""
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return True
    progress, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    return bool(batches["is_last_batch"] or progress["started"] == progress["processed"])


def _stored(path: Path, checkpoint: LightningCheckpoint) -> FoundCheckpoint:
    position = position_of(checkpoint)
    if position is None or "state_dict" not in checkpoint:
        keys = ", ".join(map(str, list(checkpoint)[:8]))
        raise StoreError(
            f"{path} was to be read as a checkpoint of Lightning. That has epoch, {_STEP} and "
            f"state_dict; "
            f"this one has {keys}"
        )
    return FoundCheckpoint(
        path, position, _ends_epoch(checkpoint), lambda: read_file(path)["state_dict"]
    )


def _refusal(path: Path, error: Exception) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip file, or torn: then the first error says more
        names = []
    if not names:
        why = str(error).partition("\n")[0][:200]
        return f"{path} can't be read as a checkpoint of Lightning: {type(error).__name__}: {why}"
    return (
        f"{path} holds more than data: {', '.join(names)}. It is read with weights_only=True, "
        f"and such globals "
        f"run code. If you trust the file, save it again without them: import torch; "
        f"held = torch.load(PATH, weights_only=False); "
        f"torch.save({{key: held[key] for key in ('epoch', 'global_step', 'loops', "
        f"'state_dict')}}, OUT)"
    )


def _params(checkpoint: LightningCheckpoint) -> JsonObject:
    params: JsonObject = {}
    for key in _HPARAMS:
        params.update(flatten("", checkpoint.get(key) or {}))
    return params


def _scores(checkpoint: LightningCheckpoint) -> dict[str, dict[str, float]]:
    """The monitored values that ModelCheckpoint noted: file name to {metric: value}."""
    found: dict[str, dict[str, float]] = {}
    for state in (checkpoint.get("callbacks") or {}).values():
        if not isinstance(state, Mapping) or not isinstance(state.get("monitor"), str):
            continue
        for path, score in (state.get("best_k_models") or {}).items():
            found.setdefault(Path(path).name, {})[state["monitor"]] = float(score)
    return found


def _rows(
    stored: Iterable[FoundCheckpoint], scores: Mapping[str, Mapping[str, float]]
) -> Iterable[Row]:
    phases: tuple[Phase, ...] = ("train", "validation")
    for one in stored:
        values = scores.get(one.path.name, {})
        for phase in phases:
            own = {
                name: value
                for name, value in values.items()
                if name.startswith("train") == (phase == "train")
            }
            if own:
                level: Level = "epoch" if one.ends_epoch else "step"
                yield Row(one.position, phase, level, own, one.path.stat().st_mtime)
