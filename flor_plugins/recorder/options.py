"""What a FlorCallback was asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from flor_plugins.errors import HookError
from flor_plugins.hooks.metric import Metric
from flor_plugins.store.sizes import parse_size


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What a FlorCallback was asked for.

    name: of the run; default: the script's or the recipe version's name.
    every_n_epochs: checkpoints at every n-th epoch boundary (first and last always).
    every_n_steps: also at every n-th optimizer update. every_minutes: also in the middle of an
    epoch, when so many minutes have passed since the last one; None for never.
    overhead: share of the training's time that checkpoints may cost; None for no limit.
    disk: bytes that the run's checkpoints may take; None for half of what is free when the run
    begins.
    metrics: @flor.metric hooks to compute live. resume: "auto" or a run to go on with.
    store: folder; default: FLOR_DIR or .flor.
    """

    name: str | None = None
    project: str | None = None
    tags: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    every_n_epochs: int = 1
    every_n_steps: int | None = None
    every_minutes: float | None = 10.0
    resume: str | None = None
    store: str | os.PathLike[str] | None = None
    overhead: float | None = 0.02
    disk: int | None = None


def options_of(
    name: str | None,
    project: str | None,
    tags: Sequence[str],
    metrics: Sequence[Metric],
    every_n_epochs: int,
    every_n_steps: int | None,
    every_minutes: float | None,
    resume: str | None,
    store: str | os.PathLike[str] | None,
    *,
    overhead: float | None = 0.02,
    disk: str | int | None = None,
) -> RecordOptions:
    """Check what a FlorCallback was given. Raises HookError or ValueError at construction, not
    later.

    disk: as people write it ("50GB", "1.5TiB") or bytes.
    """
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise HookError(
                f"FlorCallback(metrics=[{metric!r}]): decorate the function with @flor.metric(...)"
            )
    if every_n_epochs < 1:
        raise ValueError(
            f"FlorCallback(every_n_epochs={every_n_epochs}): it counts epochs, from 1 on"
        )
    if every_n_steps is not None and every_n_steps < 1:
        raise ValueError(
            f"FlorCallback(every_n_steps={every_n_steps}): it counts optimizer updates, from 1 on"
        )
    if every_minutes is not None and every_minutes <= 0:
        raise ValueError(
            f"FlorCallback(every_minutes={every_minutes}): minutes above 0, or None for never"
        )
    is_number = isinstance(overhead, (int, float)) and not isinstance(overhead, bool)
    if overhead is not None and not (is_number and 0 < overhead <= 1):  # a NaN is refused as well
        raise ValueError(
            f"FlorCallback(overhead={overhead!r}): a share of the training's time, above 0 and "
            f"up to 1 "
            f"(0.02 is 2 %), or None for no limit"
        )
    return RecordOptions(
        name,
        project,
        tuple(tags),
        tuple(metrics),
        every_n_epochs,
        every_n_steps,
        every_minutes,
        resume,
        store,
        overhead,
        _disk(disk),
    )


def _disk(given: str | int | None) -> int | None:
    try:
        nbytes = None if given is None else parse_size(given)
    except ValueError as error:
        raise ValueError(f"FlorCallback(disk={given!r}): {error}") from error
    if nbytes == 0:
        raise ValueError(
            f"FlorCallback(disk={given!r}): no checkpoint fits; leave it out for half of the "
            f"free disk"
        )
    return nbytes
