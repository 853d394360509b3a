"""From values as they come to one row per position, phase and level.

Both a recording and a replay feed a Timeline; what differs is who receives the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from flor_plugins.records import JsonObject, Level, Phase, Position, Row


class Timeline:
    """Holds the present position open until the run moves on, then emits its rows.

    phase: where values go that do not say where they belong (`flor.log`).
    coming: values of the update that is being made; they join the row of its step (see
    `take_coming`).

    A step is open until the next one begins, because only then is it known whether
    it was the last of its epoch (loaders without a length do not say so before). Values may come
    from any thread.
    """

    def __init__(self, emit: Callable[[Row], None]) -> None:
        self.emit = emit
        self.position = Position(0, 0)
        self.at_epoch_end = False
        self.phase: Phase = "train"
        self.coming: dict[str, Any] = {}
        self._open: dict[tuple[Phase, Level], dict[str, object]] = {}
        self._lock = Lock()

    def step(self, step: int, values: Mapping[str, object]) -> None:
        """`step` optimizer updates are done; opens that position with its training values."""
        if step != self.position.step:
            self.jump(Position(self.position.epoch, step))
        self.add(values, "train", "step")

    def complete_epoch(self, epoch: int) -> None:
        """`epoch` epochs are done: what is open belongs to the end of that epoch."""
        self.position = Position(epoch, self.position.step)
        self.at_epoch_end = True

    def jump(self, position: Position) -> None:
        """A restored run stands elsewhere."""
        self.close()
        self.position = position
        self.at_epoch_end = False

    def add(self, values: Mapping[str, object], phase: Phase, level: Level | None = None) -> None:
        """Values at the open position; a name logged again there takes the newer value.

        level: None means "epoch" where the epoch is known to be over, else "step".
        """
        level = level or ("epoch" if self.at_epoch_end else "step")
        if values:
            with self._lock:
                self._open.setdefault((phase, level), {}).update(values)

    def add_coming(self, values: Mapping[str, object]) -> None:
        """Values of the update that is being made."""
        with self._lock:
            self.coming.update(values)

    def move(self, names: set[str], source: tuple[Phase, Level]) -> None:
        """Forget names that turned out to belong to another phase."""
        held = self._open.get(source, {})
        for name in names & held.keys():
            del held[name]

    def take_coming(self) -> dict[str, Any]:
        """The update is made: its values, for `step`."""
        with self._lock:
            coming, self.coming = self.coming, {}
        return coming

    def state(self) -> JsonObject:
        """Where it stands and what is open, for `restore`: values as they were logged."""
        with self._lock:
            rows = [[phase, level, dict(values)] for (phase, level), values in self._open.items()]
            return {
                "position": [self.position.epoch, self.position.step],
                "at_epoch_end": self.at_epoch_end,
                "coming": dict(self.coming),
                "open": rows,
            }

    def restore(self, state: JsonObject) -> None:
        """Stand where a `state` was taken; nothing is emitted."""
        self.position = Position(*state["position"])
        self.at_epoch_end = state["at_epoch_end"]
        self.coming = dict(state["coming"])
        self._open = {(phase, level): dict(values) for phase, level, values in state["open"]}

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Inside the block, values that do not say where they belong belong to that phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def close(self) -> None:
        """Emit the rows of the open position."""
        with self._lock:
            rows, self._open = self._open, {}
        for (phase, level), values in rows.items():
            if values:
                self.emit(Row(self.position, phase, level, values, time.time()))
