"""Going on at a State, also in the middle of an epoch, for replays and for resumed runs.

The main loop stands at once where the State stood. Of an epoch in its middle the script runs
the body from its beginning, under the random state that it had then; the inner loop in which
the State was taken draws its items up to there again, so that workers and generators are as
they were, and then the State is restored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flor_plugins.errors import ReplayError
from flor_plugins.loops import enumerate_counter, loaders, state
from flor_plugins.loops.active_loops import ActiveLoop, source_of
from flor_plugins.loops.frame_variables import FrameVariables, frames_to
from flor_plugins.loops.registry import ObjectRegistry
from flor_plugins.records.sections import LOOP, RNG
from flor_plugins.state import loader_iteration, rng


class FastForward:
    """A State that the loops of a run are to go on from.

    variables: as they were when the main loop began.
    """

    def __init__(
        self, registered: ObjectRegistry, variables: FrameVariables, sections: dict[str, Any]
    ) -> None:
        self._registered, self._variables, self._sections = registered, variables, sections
        self._held: Mapping[str, Any] = sections[LOOP]

    @property
    def is_inside(self) -> bool:
        """Is it in the middle of an epoch? Then `at_inner` completes it."""
        return bool(self._held["batch"])

    def at_main(self, main: ActiveLoop) -> loaders.Sources:
        """Stand before the main loop's next item. Returns what there is to draw from."""
        frames = frames_to(main.code)
        found = loaders.sources(self._registered, frames)
        moments = self._sections[RNG]
        if "main" in moments:
            loaders.restore(found, moments["main"])
        _stand(main, self._held["epoch"])
        if self.is_inside:
            loaders.restore(found, moments["epoch"])
            self._variables.restore(frames, self._held["beginning"])
        else:
            state.restore(self._registered, found, self._sections)
            self._variables.restore(frames, self._held["variables"])
        return found

    def is_at(self, number: int) -> bool:
        """Tell whether the so-many-th inner loop of the epoch is the one of the State."""
        return self.is_inside and number == self._held["inner"]

    def at_inner(
        self, main: ActiveLoop, inner: ActiveLoop, variables: FrameVariables
    ) -> loaders.Sources:
        """Stand before the inner loop's next item. variables: as they are at its beginning."""
        moments, batches = self._sections[RNG], self._held["batch"]
        # A loader that fetches ahead has drawn the last of these batches under the RNG of the
        # step before.
        loader_iteration.skip(source_of(inner), batches, 1, moments["previous"])
        frames = frames_to(main.code)
        found = loaders.sources(self._registered, frames)
        state.restore(self._registered, found, self._sections)
        variables.restore(frames, self._held["variables"])
        inner.count = batches
        enumerate_counter.go_on(inner, batches)
        return found

    def values(self) -> Mapping[str, Any]:
        """What was logged in the epoch and had no row yet."""
        return self._held["values"]

    def let_go(self) -> None:
        """It is restored: it is as large as the model and its optimizer."""
        self._sections.clear()


class RewindableIterator(Iterator[Any]):
    """An iterator that can't be begun again.

    It goes back no further than to where it was last told to stand.

    With each item that it gave since then it keeps the RNG behind it: the item may have been drawn.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source, self._first, self._at = source, 0, 0
        self._kept: list[tuple[Any, dict[str, Any]]] = []

    def stand(self, count: int) -> None:
        """The next item is number `count`, from 0. Raises ReplayError where that one is gone."""
        if count < self._first:
            raise ReplayError(
                f"the main loop goes over {type(self._source).__name__}, which can't be begun "
                f"again, and item {count} "
                f"is asked for after item {self._first}; give flor.loop something that can: a "
                f"range, a list, a class "
                f"with __iter__"
            )
        while self._first < count:
            if self._kept:
                self._kept.pop(0)
            else:
                next(self._source)
            self._first += 1
        self._at = count

    def __next__(self) -> Any:
        index, self._at = self._at - self._first, self._at + 1
        if index == len(self._kept):
            self._kept.append((next(self._source), rng.capture()))
        item, behind = self._kept[index]
        rng.restore(behind)
        return item


def rewindable(iterable: Any) -> Any:
    """The iterable itself where it can be begun again and again, else a `RewindableIterator`."""
    made = iter(iterable)
    return RewindableIterator(made) if made is iterable else iterable


def _stand(main: ActiveLoop, count: int) -> None:
    if isinstance(main.iterable, RewindableIterator):
        main.iterable.stand(count)
        main.source = main.iterable
    else:
        main.source = iter(main.iterable)
        for _ in range(count):
            next(main.source)
    main.count = count
    enumerate_counter.go_on(main, count)
