"""States read ahead: the next one from the disk into memory while the present one is evaluated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flor_plugins.errors import FlorError
from flor_plugins.records import Position, Run, Strategy, Task
from flor_plugins.records.sections import MODEL
from flor_plugins.replayer.worker_session.host_memory import HostMemoryPool, available_bytes
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.checkpoints import manifest
from flor_plugins.store.checkpoints.loader import read_tensors
from flor_plugins.store.checkpoints.writer import DTYPES
from flor_plugins.store.codec import decode

SHARE = 0.25  # of the available memory: the most that a State read ahead may take
WAYS: tuple[Strategy, ...] = ("state", "validate", "train")


@dataclass(frozen=True, slots=True)
class StateRequest:
    """The State at a position. only: the sections that are wanted; None means all."""

    position: Position
    only: tuple[str, ...] | None = None


def order_of(task: Task) -> list[StateRequest]:
    """The States of a task as an adapter's `drive` asks for them, first to last."""
    requests = []
    for replay_pass in (
        replay_pass for way in WAYS for replay_pass in task.passes if replay_pass.way == way
    ):
        positions = (
            [stretch.start for stretch in replay_pass.stretches]
            if replay_pass.way == "train"
            else replay_pass.positions
        )
        only = (MODEL,) if replay_pass.way == "state" else None
        requests += [StateRequest(position, only) for position in positions]
    return requests


class StatePrefetcher:
    """Hands out States and reads ahead what comes after them in `order`, at most one.

    What another thread does is reading, hashing and allocating: all values but tensors are
    built by the one that asks. Where the order is not kept, and where reading ahead fails, the
    State is read when it is asked for.
    """

    def __init__(
        self, run: Run, rank: int, order: Sequence[StateRequest], say: Callable[[str], None]
    ) -> None:
        self._path, self._rank, self._processes, self._order, self._say = (
            run.path,
            rank,
            run.processes,
            order,
            say,
        )
        self._lender = HostMemoryPool()
        self._next = 0
        self._ahead: _StateReadThread | None = None
        self._held: tuple[Position, dict[str, str]] | None = None
        self._is_on = True

    def load(self, wanted: StateRequest) -> dict[str, Any]:
        """As `ranks.load_checkpoint`, errors too. Begins nothing."""
        read, self._held = self._taken(wanted), None
        self._next = self._place(wanted) + 1
        if read is not None:
            self._held = wanted.position, read.hashes
            with suppress(FlorError):  # the reading below says what is wrong
                sections = (
                    decode(read.tree, read.tensors) if read.sections is None else read.sections
                )
                return ranks.with_own_part(sections, self._path, self._rank, wanted.position)
        return ranks.load_checkpoint(self._path, self._rank, wanted.position, wanted.only)

    def hashes(self, position: Position) -> dict[str, str] | None:
        """Return the hash of each of the model's tensors, if that State was read ahead.

        It must be the one that was handed out last.
        """
        return self._held[1] if self._held is not None and self._held[0] == position else None

    def begin(self) -> None:
        """Start to read what comes after the State that was handed out last.

        That one is best let go of first.
        """
        wanted = self._order[self._next] if self._next < len(self._order) else None
        if (
            not self._is_on
            or wanted is None
            or (self._ahead is not None and self._ahead.wanted == wanted)
        ):
            return
        self._wait()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies out of memory that is about to be filled again
        self._ahead = _StateReadThread(self._path, wanted, self._lender, SHARE / self._processes)
        self._ahead.start()

    def close(self) -> None:
        """Read nothing ahead any more; returns when nobody does."""
        self._is_on = False
        self._wait()
        self._ahead = None

    # ---- inside

    def _wait(self) -> None:
        if self._ahead is not None:
            self._ahead.join()

    def _taken(self, wanted: StateRequest) -> _ReadState | None:
        """What was read ahead, if it is that.

        Waits in any case: two would read at half the speed each.
        """
        self._wait()
        if self._ahead is None or self._ahead.wanted != wanted:
            return None
        reading, self._ahead = self._ahead, None
        if reading.is_too_large and self._is_on:
            self._is_on = False
            self._say(
                f"flor: a state of {reading.nbytes / 1e9:.1f} GB is more than "
                f"{reading.limit / 1e9:.1f} GB, the share "
                f"of the available memory that may be used to read ahead: each is read when it "
                f"is needed."
            )
        return reading.read

    def _place(self, wanted: StateRequest) -> int:
        """Where in the order it stands: the next such place, or an earlier one.

        If nowhere, the one before the next.
        """
        for begin in (self._next, 0):
            with suppress(ValueError):
                return self._order.index(wanted, begin)
        return self._next - 1


@dataclass(frozen=True, slots=True)
class _ReadState:
    """A State before it is put together: tensors by key, and the tree that names them.

    sections: the State, if it is put together. hashes: as `checkpoints.tensor_hashes` gives
    them for the model.
    """

    tree: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    sections: dict[str, Any] | None
    hashes: dict[str, str]


class _StateReadThread(threading.Thread):
    """Reads one State of the first process.

    read: None unless all went well. share: of the available memory.
    """

    def __init__(
        self, run_path: Path, wanted: StateRequest, lender: HostMemoryPool, share: float
    ) -> None:
        super().__init__(name=f"flor reads {wanted.position} ahead", daemon=True)
        self.wanted, self._share = wanted, share
        self.nbytes = self.limit = 0
        self.read: _ReadState | None = None
        self._folder, self._lender = checkpoints.folder_of(run_path, wanted.position), lender

    @property
    def is_too_large(self) -> bool:
        return self.nbytes > self.limit

    def run(self) -> None:
        with suppress(
            Exception
        ):  # whoever asks for this State reads it again, and hears then what is wrong
            self.read = self._found()

    def _found(self) -> _ReadState | None:
        state, only = manifest.read_manifest(self._folder, self.wanted.position), self.wanted.only
        # The codec names a tensor of several sections in the model if it is there: no other
        # file is needed for it.
        records = {
            key: record
            for key, record in manifest.records(state).items()
            if only is None or key.partition("/")[0] in only
        }
        self.nbytes, self.limit = (
            sum(record.nbytes for record in records.values()),
            int(available_bytes() * self._share),
        )
        if self.is_too_large:
            return None
        into = {
            key: self._lender.lend(key, getattr(torch, record.dtype), record.shape, record.nbytes)
            for key, record in records.items()
            # Others of a State stay where they are put: an optimizer keeps the tensors that it
            # is given.
            if record.nbytes and key.startswith(f"{MODEL}/")
        }
        tree = {name: part for name, part in state["tree"].items() if only is None or name in only}
        tensors = read_tensors(self._folder, state, records, into)
        hashes = checkpoints.hashes_of(state, MODEL)
        return _ReadState(tree, tensors, decode(tree, tensors) if _is_plain(tree) else None, hashes)


def _is_plain(node: Any) -> bool:
    """There are tensors in row-major order and nothing else.

    No code of others, and no copying, builds those.
    """
    if not isinstance(node, dict):
        return False
    tag = node.get("$")
    if tag == "tensor":
        return "strides" not in node and node["dtype"] in DTYPES
    if tag == "dict" and node["kind"] == "OrderedDict":  # a state_dict
        return all(type(key) is str and _is_plain(value) for key, value in node["items"])
    return tag is None and all(map(_is_plain, node.values()))
