"""Checkpoint folders that the HF Trainer wrote.

Weights, trainer_state.json and config.json are read; no pickle is opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flor_plugins.errors import StoreError
from flor_plugins.recorder.importers.found_checkpoints import (
    FoundCheckpoint,
    FoundTraining,
    one_each,
)
from flor_plugins.recorder.launch_environment import flatten
from flor_plugins.records import JsonObject, Level, Phase, Position, Row

if TYPE_CHECKING:
    import torch

STATE = "trainer_state.json"
_CONFIG = "config.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = "adapter_config.json"
# Fields of TrainerState that are settings; the others of trainer_state.json say how far it came.
_SETTINGS = (
    "num_train_epochs",
    "max_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "train_batch_size",
)
# As in hf/collector.py: "loss" is each update's own, and the Trainer logs a mean since its last
# log.
_RENAMED = {"loss": "loss_logged"}
_ROUNDING = 1e-6  # the Trainer counts epochs in floats

TrainerState = Mapping[str, Any]  # of trainer_state.json, or an entry of its log
LogHistory = Sequence[TrainerState]


@dataclass(frozen=True, slots=True)
class _CheckpointFolder:
    """A checkpoint folder: what trainer_state.json says, and the files that count."""

    stored: FoundCheckpoint
    state: TrainerState
    files: tuple[Path, ...]


def folders_in(path: Path) -> list[Path]:
    """The checkpoint folders at `path`: those in it, else itself."""
    inside = [
        one
        for one in path.glob("checkpoint-*")
        if one.is_dir() and re.fullmatch(r"checkpoint-\d+", one.name)
    ]
    if inside:
        return sorted(inside, key=lambda one: int(one.name.rpartition("-")[2]))
    return [path] if (path / STATE).is_file() or path.name.startswith("checkpoint-") else []


def find(path: Path) -> FoundTraining:
    """The training whose checkpoint folders are at `path`.

    Raises StoreError if none of them can be read; others that can't are named in the notes.
    """
    held, notes = _readable(path)
    kept, doubles = one_each([one.stored for one in held])
    newest = max((one.state for one in held), key=lambda state: int(state["global_step"]))
    files = [file for one in held for file in one.files]
    notes += [*doubles, *_strays(held, newest)]
    if path / STATE not in files and (path / STATE).is_file():
        # `save_state()` after the training: what was logged after the last checkpoint, too
        newest = max(
            newest, _state(path / STATE), key=lambda state: len(state.get("log_history") or ())
        )
        files.append(path / STATE)
    at = max(one.stat().st_mtime for one in files if one.name == STATE)
    return FoundTraining(
        framework="hf",
        path=path,
        checkpoints=kept,
        files=tuple(files),
        rows=tuple(_rows(newest.get("log_history") or (), kept, at)),
        params=_params(kept[-1].path, newest),
        notes=tuple(notes),
    )


def _readable(path: Path) -> tuple[list[_CheckpointFolder], list[str]]:
    """Every checkpoint folder that can be read, and what is said of the others."""
    held: list[_CheckpointFolder] = []
    notes: list[str] = []
    refused: list[StoreError] = []
    for folder in folders_in(path):
        try:
            state, weights = _state(folder / STATE), weight_files(folder)
            _check(weights)
        except StoreError as error:
            refused.append(error)
            notes.append(f"{folder} is left out: {error}")
            continue
        epochs = float(state.get("epoch") or 0.0)
        position = Position(_completed(epochs), int(state["global_step"]))
        stored = FoundCheckpoint(
            folder, position, _is_whole(epochs), lambda files=weights: read_weights(files)
        )
        held.append(_CheckpointFolder(stored, state, (folder / STATE, *weights)))
    if not held:
        raise (
            refused[0]
            if refused
            else StoreError(f"{path} was to be imported, and no checkpoint-* folder is there")
        )
    return held, notes


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with a model's weights, all of its shards. Raises StoreError if there are none."""
    for name in _WHOLE:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(_json(index).get("weight_map", {}).values()))
            shards = tuple(folder / shard for shard in names)
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing or not shards:
                raise StoreError(
                    f"{index} names {', '.join(missing) or 'no shards'}, which is not there"
                )
            return shards
    if (folder / _ADAPTER).is_file():
        raise StoreError(
            f"{folder} holds an adapter (LoRA) and not the model's weights, and can't be "
            f"imported. Merge it into "
            f"its model and save that: model.merge_and_unload().save_pretrained(FOLDER), with "
            f"{STATE} beside it"
        )
    raise StoreError(
        f"{folder} was to be imported, and has none of {', '.join(_WHOLE)} (or their index). "
        f"Shards of FSDP or "
        f"DeepSpeed are to be put together first: accelerate merge-weights"
    )


def _check(files: Sequence[Path]) -> None:
    """Whether each file is as long as its header says: a killed training leaves torn ones."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{file} can't be read as safetensors: {error}") from error


def read_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """A model's state_dict out of its files, tensors on the CPU.

    Raises StoreError if one is torn or holds code.
    """
    import torch
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                weights.update(load_file(file))
            else:
                weights.update(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # torn files make every kind of error
            why = str(error).partition("\n")[0][:200]
            raise StoreError(
                f"{file} can't be read as a model's weights: {type(error).__name__}: {why}"
            ) from error
    return weights


def _state(path: Path) -> JsonObject:
    state = _json(path)
    if not isinstance(state.get("global_step"), int):
        raise StoreError(f"{path} was to say how far a training came, and has no global_step")
    return state


def _json(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} was to be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} was to be a JSON object, and is a {type(found).__name__}")
    return found


def _is_whole(epochs: float) -> bool:
    return abs(epochs - round(epochs)) < _ROUNDING


def _completed(epochs: float) -> int:
    return round(epochs) if _is_whole(epochs) else math.floor(epochs)


def _strays(held: Sequence[_CheckpointFolder], newest: TrainerState) -> Iterator[str]:
    """Yield a note for each checkpoint of another training.

    What a training has logged is the beginning of what it logs later.
    """
    history = newest.get("log_history") or []
    for one in held:
        own = one.state.get("log_history") or []
        if own != history[: len(own)]:
            yield (
                f"{one.stored.path} seems to be of another training: its log is not the "
                f"beginning of the newest one's"
            )


def _params(folder: Path, state: TrainerState) -> JsonObject:
    params = flatten("", {name: state[name] for name in _SETTINGS if state.get(name) is not None})
    if (folder / _CONFIG).is_file():
        params.update(flatten("model", _json(folder / _CONFIG)))
    return params


def _rows(history: LogHistory, stored: Sequence[FoundCheckpoint], at: float) -> Iterator[Row]:
    """What was logged, a row per position, phase and level. at: when, as far as is known."""
    known = {one.position.step: one.position for one in stored}
    table: dict[tuple[Position, Phase, Level], JsonObject] = {}
    ends: dict[int, int] = {}
    for entry in history:
        if _is_whole(float(entry.get("epoch") or 0.0)):
            # Old versions log epochs with two digits: the last step that claims an end has it.
            ends[round(float(entry.get("epoch") or 0.0))] = int(entry["step"])
    for entry in history:
        step, epochs = int(entry["step"]), float(entry.get("epoch") or 0.0)
        is_end = _is_whole(epochs) and ends[round(epochs)] == step
        epoch = round(epochs) if is_end else _completed(epochs - _ROUNDING * 2)
        position = known.get(step, Position(max(epoch, 0), step))
        for name, value in entry.items():
            if name not in ("epoch", "step"):
                phase: Phase = "validation" if name.startswith("eval_") else "train"
                level = _level(entry, phase, is_end)
                table.setdefault((position, phase, level), {})[_RENAMED.get(name, name)] = value
    for (position, phase, level), values in table.items():
        yield Row(position, phase, level, values, at)


def _level(entry: TrainerState, phase: Phase, is_end: bool) -> Level:
    """Return the level of an entry of the log.

    An evaluation at an epoch's end is the epoch's, and so is the summary; a training log is its
    step's.
    """
    return "epoch" if is_end and (phase == "validation" or "train_runtime" in entry) else "step"
