"""Validation data that is loaded once for many positions: a hook gets copies of the batches of
the pass before.

That must not be seen in any value: a hook gets the very bits that its own pass over the loader
would bring, and finds every random number generator as that would leave it. So only loaders
take part whose batches come from an index in order, and of these only those whose passes show
that nothing in them is random. Others are gone through by each hook, as if there were nothing
here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from flor_plugins.replayer.worker_session.host_memory import available_bytes
from flor_plugins.state import rng
from flor_plugins.state.loader_seeds import draw_seed, is_equal, is_one_seed, random_state
from flor_plugins.state.tensor_trees import UncopyableBatch, copied, is_same, nbytes_of

CHANGES = 3  # of a data set, after which nothing of it is kept
SHARE = 0.25  # of the available memory: the most that batches may take
_PLAIN = (
    "torch.utils.data.dataloader",
    "accelerate.data_loader",
)  # whose ways of iterating are known here


class BatchCache:
    """The batches of the loaders that hooks of one pass ask for.

    positions: for how many the same may serve.
    """

    def __init__(self, say: Callable[[str], None], positions: int | None = None) -> None:
        self._say, self._positions = say, positions
        self._kept: list[_CachedBatches] = []
        self._count = 0

    def begin(self) -> None:
        """The hooks of the next position are about to be called."""
        if self._positions is not None and self._count % self._positions == 0:
            self.forget()
        self._count += 1

    def of(self, loader: Any) -> Any:
        """What stands for a loader, or for each of a list of them: the loader itself where
        it takes no part.
        """
        if isinstance(loader, list):
            return [self.of(one) for one in loader]
        if not _is_plain(loader):
            return loader
        for one in self._kept:
            if one.loader is loader:
                return _CachedLoader(one)
        self._kept.append(_CachedBatches(loader, self._say))
        return _CachedLoader(self._kept[-1])

    def forget(self) -> None:
        """Let go of all batches."""
        self._kept = []


class _CachedBatches:
    """The batches of a loader, as many as were asked for, and what is known of it.

    drawn: whether a pass draws a seed when it begins, and whether with its first batch; None
    before the first pass.
    verified: how many batches were the same when they were loaded again.
    """

    def __init__(self, loader: Any, say: Callable[[str], None]) -> None:
        self.loader, self._say = loader, say
        self.batches: list[Any] = []
        self.is_on, self.is_whole = True, False
        self.drawn: list[bool] = []
        self.verified = 0
        self._parts = _parts(loader)
        self._changes = 0
        self._nbytes, self._limit = 0, int(available_bytes() * SHARE)

    def is_trusted(self) -> bool:
        """May batches that were kept stand for those that would be loaded now?

        What a process loads itself shows in its generators whether it is random; the first
        batch of a second pass is looked at for those that nobody can see. Of what workers of
        the loader do nothing shows."""
        if self.loader.num_workers:
            return self.is_on and self.is_whole and self.verified == len(self.batches) > 0
        return self.is_on and self.verified > 0

    def begin_pass(self) -> None:
        """Start anew if an attribute of the data set was set since: where it opens its files
        at first use, one is.
        """
        now = _parts(self.loader)
        if not _is_changed(self._parts, now):
            return
        self._parts, self.batches, self.is_whole, self.verified, self._nbytes = now, [], False, 0, 0
        self._changes += 1
        if self._changes == CHANGES:
            self.give_up("its data set is changed again and again")

    def loaded(self, number: int, batch: Any) -> None:
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
            except UncopyableBatch as error:
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
        """Whether a real pass draws its seed at that moment: the same each time, or it takes
        no part.
        """
        if len(self.drawn) == number:
            self.drawn.append(has_drawn)
        elif self.drawn[number] != has_drawn:
            self.give_up("its passes draw different numbers of seeds")

    def draw_again(self, number: int) -> None:
        """What a real pass draws at that moment."""
        if self.drawn[number]:
            draw_seed(self.loader)


class _CachedLoader:
    """Stands for a loader: everything but its batches is the loader's own."""

    def __init__(self, kept: _CachedBatches) -> None:
        self._kept = kept

    @property
    def __class__(self) -> type:  # type: ignore[override]  # for isinstance
        return self._kept.loader.__class__

    def __getattr__(self, name: str) -> Any:
        if name == "_kept":
            raise AttributeError(name)  # of one that is being copied
        return getattr(self._kept.loader, name)

    def __len__(self) -> int:
        return len(self._kept.loader)

    def __iter__(self) -> Iterator[Any]:
        kept = self._kept
        if kept.is_on:
            kept.begin_pass()
        if not kept.is_on:
            return iter(kept.loader)
        return _CachedIterator(kept) if kept.is_trusted() else _CachingIterator(kept)


class _CachingIterator:
    """A real pass, watched: what it brings is kept, or compared with what was kept."""

    def __init__(self, kept: _CachedBatches) -> None:
        self._kept, self._number = kept, 0
        self._served: _CachedIterator | None = None
        self._loader = self._watched(0, lambda: iter(kept.loader))

    def __iter__(self) -> _CachingIterator:
        return self

    def __next__(self) -> Any:
        if self._served is not None:
            return next(self._served)
        kept, number = self._kept, self._number
        try:
            batch = self._watched(number + 1, lambda: next(self._loader))
        except StopIteration:
            kept.is_whole = kept.is_whole or len(kept.batches) == number
            raise
        kept.loaded(number, batch)
        self._number = number + 1
        if kept.is_trusted():
            self._served = _CachedIterator(kept, self._number)
        return batch

    def _watched(self, moment: int, act: Callable[[], Any]) -> Any:
        """moment: 0 as the pass begins, 1 with the first batch, and so on."""
        kept = self._kept
        if not kept.is_on:
            return act()
        own = rng.loader_generators([("loader", kept.loader)])
        before = random_state(own)
        try:
            return act()
        finally:
            after = random_state(own)
            has_drawn = not is_equal(before, after)
            if has_drawn and not (moment < 2 and is_one_seed(kept.loader, own, before, after)):
                kept.give_up("loading it draws random numbers")
            if moment < 2:
                kept.begins_with(moment, has_drawn)


class _CachedIterator:
    """A pass over what was kept, from a batch on; what was never loaded is loaded."""

    def __init__(self, kept: _CachedBatches, number: int = 0) -> None:
        self._kept, self._batches, self._number = kept, kept.batches, number
        self._loader: Iterator[Any] | None = None
        if number == 0:
            kept.draw_again(0)

    def __iter__(self) -> _CachedIterator:
        return self

    def __next__(self) -> Any:
        number = self._number
        if number == 0:
            self._kept.draw_again(1)
        if self._loader is None and number < len(self._batches):
            batch = copied(self._batches[number])
        elif self._loader is None and self._kept.is_whole and self._batches is self._kept.batches:
            raise StopIteration
        else:
            batch = self._loaded(number)
        self._number += 1
        return batch

    def _loaded(self, number: int) -> Any:
        """What no pass has come to yet. All that a real pass draws has been drawn."""
        own = rng.loader_generators([("loader", self._kept.loader)])
        states = rng.capture_generators(own)
        with rng.kept():
            if self._loader is None:
                self._loader = iter(self._kept.loader)
                for _ in range(number):
                    next(self._loader)
            try:
                batch = next(self._loader)
            except StopIteration:
                self._kept.is_whole = self._kept.is_whole or len(self._kept.batches) == number
                raise
            finally:
                rng.restore_generators(own, states)
        self._kept.loaded(number, batch)
        return batch


def _is_plain(loader: Any) -> bool:
    """Do its batches come from an index, in order, each pass for itself?"""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader) or any(
        type(one).__module__ not in _PLAIN for one in (loader, base)
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


def _parts(loader: Any) -> list[dict[str, Any]]:
    """The attributes of what batches are made from: somebody may set one between two passes."""
    found, one = [], getattr(getattr(loader, "base_dataloader", loader), "dataset", None)
    while one is not None and len(found) < 10:
        found.append(dict(getattr(one, "__dict__", {})))
        one = getattr(one, "dataset", None)
    return found


def _is_changed(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> bool:
    return len(before) != len(now) or any(
        one.keys() != other.keys() or any(one[name] is not other[name] for name in one)
        for one, other in zip(before, now, strict=True)
    )
