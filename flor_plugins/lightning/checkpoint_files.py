"""The files that ModelCheckpoint had written by the time at which a resumed fit goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from flor_plugins.records.sections import TIMELINE, TRAINER, Sections
from flor_plugins.state.method_wrapper import MethodWrapper

CLOCK_S = 0.01  # the times of files are as coarse as the kernel's clock


def keep_files(trainer: pl.Trainer, sections: Sections, wrapped: MethodWrapper) -> None:
    """In `setup` of a fit, before that of ModelCheckpoint: let its files go where they went.

    What was written after the State will be written again. Without this it would get a new
    folder (each start of a logger makes a version of its own) or the name of a second version.
    """
    states = sections[TRAINER]["checkpoint"].get("callbacks", {})
    taken_at = sections[TIMELINE]["at"]
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = states.get(callback.state_key, {}).get("dirpath")
        wrapped.around(callback, "file_exists", _written_before(taken_at))


def _written_before(moment: float) -> Callable[..., bool]:
    def file_exists(original: Callable[..., bool], path: Any, trainer: pl.Trainer) -> bool:
        with suppress(OSError):  # not there, or not on a disk
            if os.stat(path).st_mtime >= moment - CLOCK_S:
                return False
        return original(path, trainer)

    return file_exists
