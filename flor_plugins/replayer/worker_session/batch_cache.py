"""Validation data that is loaded once for many positions.

A hook gets copies of the batches of the pass before. That must not be seen in any value: a hook
gets the very bits that its own pass over the loader would bring, and finds every random number
generator as that would leave it. So only loaders take part whose batches come from an index in
order, and of these only those whose passes show that nothing in them is random. Others are gone
through by each hook, as if there were nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeGuard

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from flor_plugins.replayer.worker_session.host_memory import available_bytes
from flor_plugins.state import rng
from flor_plugins.state.loader_seeds import draw_seed, is_one_seed, random_state
from flor_plugins.state.tensor_trees import UncopyableBatchError, copied, is_same, nbytes_of

CHANGES = 3  # of a data set, after which nothing of it is kept
SHARE = 0.25  # of the available memory: the most that batches may take
# Whose ways of iterating are known here.
_PLAIN = ("torch.utils.data.dataloader", "accelerate.data_loader")
_END = object()  # instead of a batch, where there is none


class BatchCache:
    """The batches of the loaders that hooks of one pass ask for.

    positions: for how many the same may serve; None: for all.
    """

    def __init__(self, say: Callable[[str], None], positions: int | None = None) -> None:
        self._say, self._positions = say, positions
        self._cached: list[_CachedBatches] = []
        self._count = 0

    def begin(self) -> None:
        """The hooks of the next position are about to be called."""
        if self._positions is not None and self._count % self._positions == 0:
            self._cached = []
        self._count += 1

    def of(self, loader: object) -> object:
        """Return what stands for a loader, or for each of a list of them.

        It is the loader itself where that takes no part.
        """
        if isinstance(loader, list):
            return [self.of(part) for part in loader]
        if not _is_plain(loader):
            return loader
        for cached in self._cached:
            if cached.loader is loader:
                return _CachedLoader(cached)
        self._cached.append(_CachedBatches(loader, self._say))
        return _CachedLoader(self._cached[-1])


class _CachedBatches:
    """The batches of a loader, as many as were asked for, and what is known of it.

    drawn: whether a pass draws a seed when it begins, and whether with its first batch; None
    before the first pass.
    verified: how many batches were the same when they were loaded again.
    """

    def __init__(self, loader: DataLoader, say: Callable[[str], None]) -> None:
        self.loader, self._say = loader, say
        self.batches: list[object] = []
        self.is_on, self.is_whole = True, False
        self.drawn: list[bool] = []
        self.verified = 0
        self._data = _DataWatch(loader)
        self._nbytes, self._limit = 0, int(available_bytes() * SHARE)

    def is_trusted(self) -> bool:
        """Say whether batches that were kept may stand for those that would be loaded now.

        What a process loads itself shows in its generators whether it is random; the first
        batch of a second pass is looked at for those that nobody can see. Of what workers of
        the loader do nothing shows.
        """
        if self.loader.num_workers:
            return self.is_on and self.is_whole and self.verified == len(self.batches) > 0
        return self.is_on and self.verified > 0

    def begin_pass(self) -> None:
        """Start anew if an attribute of the data set was set since.

        Where it opens its files at first use, one is.
        """
        if not self._data.has_changed():
            return
        self.batches, self.is_whole, self.verified, self._nbytes = [], False, 0, 0
        if self._data.changes == CHANGES:
            self.give_up("its data set is changed again and again")

    def loaded(self, number: int, batch: object) -> None:
        """The batch of that number was loaded; it has not been handed out yet."""
        if not self.is_on:
            return
        if number < len(self.batches):
            if not is_same(batch, self.batches[number]):
                self.give_up("a batch was not the same when it was loaded again")
            self.verified = max(self.verified, number + 1)
        elif number == len(self.batches):
            try:
                self.batches.append(copied(batch))
                self._nbytes += nbytes_of(batch)
            except UncopyableBatchError as error:
                self.give_up(str(error))
            if self._nbytes > self._limit:
                self.give_up(
                    f"it takes more than {self._limit / 1e9:.1f} GB, its share of the "
                    f"available memory"
                )

    def give_up(self, reason: str) -> None:
        if self.is_on:
            self._say(f"flor: validation data is loaded anew for each value: {reason}")
        self.is_on, self.batches = False, []

    def begins_with(self, number: int, has_drawn: bool) -> None:
        """A real pass draws its seed at that moment, or not: always, or it takes no part."""
        if len(self.drawn) == number:
            self.drawn.append(has_drawn)
        elif self.drawn[number] != has_drawn:
            self.give_up("its passes draw different numbers of seeds")

    def draw_again(self, number: int) -> None:
        """What a real pass draws at that moment."""
        if self.drawn[number]:
            draw_seed(self.loader)


class _DataWatch:
    """What a loader's batches are made from, and how often that was changed."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader, self._parts, self.changes = loader, _parts(loader), 0

    def has_changed(self) -> bool:
        """Say whether somebody has set an attribute since this was asked last."""
        before, self._parts = self._parts, _parts(self._loader)
        has_changed = _is_changed(before, self._parts)
        self.changes += has_changed
        return has_changed


class _CachedLoader:
    """Stands for a loader: everything but its batches is the loader's own."""

    def __init__(self, cached: _CachedBatches) -> None:
        self._cached = cached

    @property
    def __class__(self) -> type:  # type: ignore[override]  # for isinstance
        return self._cached.loader.__class__

    def __getattr__(self, name: str) -> object:
        if name == "_cached":
            raise AttributeError(name)  # of one that is being copied
        return getattr(self._cached.loader, name)

    def __len__(self) -> int:
        return len(self._cached.loader)

    def __iter__(self) -> Iterator[object]:
        cached = self._cached
        if cached.is_on:
            cached.begin_pass()
        if not cached.is_on:
            return iter(cached.loader)
        if cached.is_trusted():
            cached.draw_again(0)
            return _cached_pass(cached, cached.batches, 0)
        return _watched_pass(cached, _watched(cached, 0, iter, cached.loader))


def _watched_pass(cached: _CachedBatches, loaded: Iterator[object]) -> Iterator[object]:
    """A real pass: what it brings is kept, or compared with what was kept."""
    number = 0
    while True:
        batch = _watched(cached, number + 1, next, loaded, _END)
        if batch is _END:
            cached.is_whole = cached.is_whole or len(cached.batches) == number
            return
        cached.loaded(number, batch)
        number += 1
        rest = _cached_pass(cached, cached.batches, number) if cached.is_trusted() else None
        yield batch
        if rest is not None:
            yield from rest
            return


def _watched(cached: _CachedBatches, moment: int, act: Callable[..., Any], *args: object) -> Any:
    """moment: 0 as the pass begins, 1 with the first batch, and so on."""
    if not cached.is_on:
        return act(*args)
    own = rng.loader_generators([("loader", cached.loader)])
    before = random_state(own)
    try:
        return act(*args)
    finally:
        after = random_state(own)
        has_drawn = not is_same(before, after)
        if has_drawn and not (moment < 2 and is_one_seed(cached.loader, own, before, after)):
            cached.give_up("loading it draws random numbers")
        if moment < 2:
            cached.begins_with(moment, has_drawn)


def _cached_pass(cached: _CachedBatches, batches: list[object], number: int) -> Iterator[object]:
    """A pass over what was kept, from a batch on; what was never loaded is loaded."""
    loaded: Iterator[object] | None = None
    if number == 0:
        cached.draw_again(1)
    while True:
        if loaded is None and number < len(batches):
            batch = copied(batches[number])
        elif loaded is None and cached.is_whole and batches is cached.batches:
            return
        else:
            # What no pass has come to yet. All that a real pass draws has been drawn.
            own = rng.loader_generators([("loader", cached.loader)])
            states = rng.capture_generators(own)
            with rng.kept():
                try:
                    if loaded is None:
                        loaded = islice(cached.loader, number, None)
                    batch = next(loaded, _END)
                finally:
                    rng.restore_generators(own, states)
            if batch is _END:
                cached.is_whole = cached.is_whole or len(cached.batches) == number
                return
            cached.loaded(number, batch)
        number += 1
        yield batch


def _is_plain(loader: object) -> TypeGuard[DataLoader]:
    """Its batches come from an index, in order, each pass for itself."""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader) or any(
        type(part).__module__ not in _PLAIN for part in (loader, base)
    ):
        return False
    if (
        isinstance(base.dataset, IterableDataset)
        or base.persistent_workers
        or not getattr(base, "in_order", True)
    ):
        return False
    sampler = base.sampler if base.batch_sampler is None else base.batch_sampler
    if isinstance(sampler, BatchSampler):
        return type(sampler) is BatchSampler and type(sampler.sampler) is SequentialSampler
    return type(sampler) is SequentialSampler


def _parts(loader: object) -> list[dict[str, object]]:
    """The attributes of what batches are made from: somebody may set one between two passes."""
    parts, part = [], getattr(getattr(loader, "base_dataloader", loader), "dataset", None)
    while part is not None and len(parts) < 10:
        parts.append(dict(getattr(part, "__dict__", {})))
        part = getattr(part, "dataset", None)
    return parts


def _is_changed(before: list[dict[str, object]], now: list[dict[str, object]]) -> bool:
    return len(before) != len(now) or any(
        was.keys() != part.keys() or any(was[name] is not part[name] for name in was)
        for was, part in zip(before, now, strict=True)
    )
