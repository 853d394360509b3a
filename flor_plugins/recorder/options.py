"""The options of FlorCallback and flor.checkpoints: their types, defaults and checks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, TypeVar, Unpack

from flor_plugins.errors import HookError
from flor_plugins.hooks.metric import Metric
from flor_plugins.store.sizes import parse_size

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


class OptionKeywords(TypedDict, total=False):
    """The keywords as users write them, all optional.

    FlorCallback takes `**options: Unpack[OptionKeywords]`: type checkers and editors know each
    keyword, and its default stands in one place, in the records below. A full signature at each
    callback would repeat both; `lists_options` shows it where programs look at run time.
    """

    project: str | None
    tags: Sequence[str]
    metrics: Sequence[Metric]
    every_n_epochs: int
    every_n_steps: int | None
    every_minutes: float | None
    overhead: float | None
    disk: str | int | None
    resume: str | None
    store: str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class CheckpointSchedule:
    """When checkpoints are taken, and what they may cost.

    every_n_epochs: at every n-th epoch boundary; the first and the last state always.
    every_n_steps: also at every n-th optimizer update.
    every_minutes: also inside an epoch when that many minutes have passed since the last
    checkpoint; None for never.
    overhead: the share of the training's time that checkpoints may cost; None for no limit.
    disk: the bytes that the run's checkpoints may take; None for half of what is free when the
    run begins.
    Raises ValueError for numbers that make no sense.
    """

    every_n_epochs: int = 1
    every_n_steps: int | None = None
    every_minutes: float | None = 10.0
    overhead: float | None = 0.02
    disk: int | None = None

    def __post_init__(self) -> None:
        epochs, steps, minutes = self.every_n_epochs, self.every_n_steps, self.every_minutes
        if epochs < 1:
            raise ValueError(f"FlorCallback(every_n_epochs={epochs}): it counts epochs, from 1 on")
        if steps is not None and steps < 1:
            raise ValueError(
                f"FlorCallback(every_n_steps={steps}): it counts optimizer updates, from 1 on"
            )
        if minutes is not None and minutes <= 0:
            raise ValueError(
                f"FlorCallback(every_minutes={minutes}): minutes above 0, or None for never"
            )
        share = self.overhead
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and not (is_number and 0 < share <= 1):  # a NaN is refused as well
            raise ValueError(
                f"FlorCallback(overhead={share!r}): a share of the training's time, above 0 and "
                f"up to 1 (0.02 is 2 %), or None for no limit"
            )

    def without_clock(self) -> CheckpointSchedule:
        """Return the schedule for several processes.

        Each checkpoint needs a part of each of them, and their clocks differ.
        """
        return replace(self, every_minutes=None, overhead=None)


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What a recording was asked for.

    name: of the run; default: the script's or the recipe version's name.
    metrics: `@flor.metric` hooks to compute live. resume: "auto" or a run to go on with.
    store: a folder; default: FLOR_DIR or .flor.
    """

    name: str | None = None
    project: str | None = None
    tags: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    resume: str | None = None
    store: str | os.PathLike[str] | None = None
    schedule: CheckpointSchedule = field(default_factory=CheckpointSchedule)


_SCHEDULE = {option.name: option.default for option in fields(CheckpointSchedule)}
_DEFAULTS = _SCHEDULE | {option.name: option.default for option in fields(RecordOptions)}


def options_of(name: str | None = None, **given: Unpack[OptionKeywords]) -> RecordOptions:
    """Check the options of a recording.

    Raises HookError, ValueError or TypeError at construction, not later.

    disk: as people write it ("50GB", "1.5TiB") or bytes.
    """
    options: dict[str, Any] = {**given}
    unknown = options.keys() - OptionKeywords.__annotations__.keys()
    if unknown:
        raise TypeError(f"FlorCallback() got an unexpected keyword argument {min(unknown)!r}")
    for metric in options.get("metrics", ()):
        if not isinstance(metric, Metric):
            raise HookError(
                f"FlorCallback(metrics=[{metric!r}]): decorate the function with @flor.metric(...)"
            )
    options |= {key: tuple(options.get(key, ())) for key in ("tags", "metrics")}
    schedule = {key: options.pop(key) for key in _SCHEDULE if key in options}
    schedule["disk"] = _disk(schedule.get("disk"))
    return RecordOptions(name, **options, schedule=CheckpointSchedule(**schedule))


def lists_options(function: FunctionT) -> FunctionT:
    """Decorate a function that takes the options as `**options`, so that they are listed.

    help(), notebooks and LightningCLI then see each keyword and its default.
    """
    own = inspect.signature(function).parameters.values()
    explicit = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    listed = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[key])
        for key in OptionKeywords.__annotations__
    ]
    signature = inspect.Signature([*explicit, *listed])
    setattr(function, "__signature__", signature)  # noqa: B010 (no attribute of every callable)
    return function


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
