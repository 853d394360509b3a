"""Do two replays of a range agree with each other? If not, the training can't be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flor_plugins.records import Level, Phase, Position, Row
from flor_plugins.replayer.verification.causes import SecondReplay
from flor_plugins.replayer.verification.comparison import Comparison

SeenPlace = tuple[Position, Phase, Level]


@dataclass(slots=True)
class RepeatedRange:
    """What the first replay of a range computed, and how the second one compares.

    Two replays in one process can agree by chance only: what they draw outside of the known
    generators, and what the kernels add in another order, differs.
    """

    is_second: bool = False
    _first: dict[SeenPlace, dict[str, object]] = field(default_factory=dict)
    _comparison: Comparison = field(default_factory=Comparison)

    def begin(self) -> None:
        """From now on what is heard is the second replay's."""
        self.is_second = True

    def heard(self, row: Row, encoded: Mapping[str, object]) -> bool:
        """Keep a row of the first replay, or compare one of the second. True for the second."""
        key = (row.position, row.phase, row.level)
        if self.is_second:
            self._comparison.values(row.position, self._first.get(key, {}), encoded)
        else:
            self._first.setdefault(key, {}).update(encoded)
        return self.is_second

    @property
    def second(self) -> SecondReplay | None:
        """How both compare; None where the second did not come to a value that both have."""
        comparison = self._comparison
        if not self.is_second or not comparison.compared:
            return None
        first = comparison.earliest
        same_data = not comparison.data if comparison.batches else None
        return SecondReplay(first is None, first.position if first else None, same_data)
