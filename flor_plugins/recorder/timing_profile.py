"""How long the parts of a training take: what a replay is estimated by."""

from __future__ import annotations

import time
from typing import Literal

from flor_plugins.records import Timing

TrainingPart = Literal["epoch", "validation"]


class PartTimer:
    """Times the parts of a training, each as often as it comes."""

    def __init__(self) -> None:
        self._started: dict[TrainingPart, float] = {}
        self._spent: dict[TrainingPart, list[float]] = {}

    def start(self, part: TrainingPart) -> None:
        """Start the clock of a part."""
        self._started[part] = time.perf_counter()

    def stop(self, part: TrainingPart) -> None:
        """Stop it, if it was started."""
        if part in self._started:
            spent = time.perf_counter() - self._started.pop(part)
            self._spent.setdefault(part, []).append(spent)

    def timing(self, earlier: Timing, recording_s: float) -> Timing:
        """Return the profile of the run. earlier: of the time before an interruption."""
        return Timing(
            earlier.build_s,
            self._mean("epoch", earlier.epoch_s),
            self._mean("validation", earlier.validation_s),
            round((earlier.recording_s or 0.0) + recording_s, 3),
        )

    def _mean(self, part: TrainingPart, earlier: float | None) -> float | None:
        spent = self._spent.get(part)
        return sum(spent) / len(spent) if spent else earlier
