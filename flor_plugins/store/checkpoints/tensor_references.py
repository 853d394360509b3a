"""Where the bytes of a tensor are.

They are in its checkpoint, in another one of the run, or in several as a chain of deltas.

What another checkpoint says of itself decides, not what was written down here when it was
referred to: it may have been compressed since, or given up but for some tensors. Standard
library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flor_plugins.errors import DamagedCheckpoint
from flor_plugins.records import JsonObject, Position
from flor_plugins.store.checkpoints.manifest import (
    FILE,
    STATE,
    WHAT_TO_DO,
    TensorRecord,
    read_manifest_or_tombstone,
    records,
)


@dataclass(frozen=True, slots=True)
class TensorReference:
    """One tensor in one file: as it is, packed, or packed as a delta to the link before it.

    key: its name in the state.json of its checkpoint. size: bytes of the file, as that
    state.json says.
    """

    folder: Path
    key: str
    size: int
    record: TensorRecord

    @property
    def path(self) -> Path:
        """Return its file."""
        return self.folder / self.record.file

    @property
    def tensor(self) -> tuple[Position, str]:
        """Return its checkpoint and its key there."""
        return Position.parse(self.folder.name), self.key


# what is read first to what is asked for; one reference unless there are deltas
DeltaChain = tuple[TensorReference, ...]


class ManifestCache:
    """The checkpoints of a run, each state.json read once, as they are found while one is read."""

    def __init__(self, folder: Path, state: JsonObject) -> None:
        self._home = folder
        self._states: dict[str, JsonObject] = {folder.name: state}
        self._records: dict[str, dict[str, TensorRecord]] = {}
        self._contents: dict[str, dict[tuple[str, str, tuple[int, ...]], str]] = {}

    @property
    def versions(self) -> JsonObject:
        """What tells whether any of those that were read has changed since."""
        return {name: state["sha256"] for name, state in self._states.items()}

    def chain(self, key: str, folder: Path | None = None) -> DeltaChain:
        """Where a tensor is. folder: its checkpoint (default: the first one).

        Raises DamagedCheckpoint, naming what is needed for it and not there.
        """
        return self._chain(folder or self._home, key, ())

    def records(self, folder: Path) -> dict[str, TensorRecord]:
        """Return the tensors of a checkpoint or tombstone, by key."""
        name = folder.name
        if name not in self._records:
            if name not in self._states:
                self._states[name] = read_manifest_or_tombstone(folder, Position.parse(name))
            self._records[name] = records(self._states[name])
        return self._records[name]

    def _chain(self, folder: Path, key: str, seen: tuple[tuple[str, str], ...]) -> DeltaChain:
        if (folder.name, key) in seen:
            raise self._damaged(folder, f"needs {key!r} to make {key!r}")
        seen = (*seen, (folder.name, key))
        record = self.records(folder).get(key)
        if record is None:
            raise self._damaged(
                folder, f"does not have the tensor {key!r}, which {self._home} needs"
            )
        if FILE.fullmatch(record.file) is None:
            raise self._damaged(folder, f"names {record.file!r}, not a file of a checkpoint")
        if not record.is_own:
            owner = self._other(folder, record.file)
            return self._chain(owner, self._same(owner, record), seen)
        reference = TensorReference(
            folder, key, self._states[folder.name]["files"][record.file], record
        )
        if record.base is None:
            return (reference,)
        owner, base = self._base(folder, record.base)
        before = self._chain(owner, base, seen)
        if (before[-1].record.dtype, before[-1].record.shape) != (record.dtype, record.shape):
            raise self._damaged(
                folder, f"has {key!r} as a delta to {record.base!r}, which has another shape"
            )
        return (*before, reference)

    def _same(self, owner: Path, record: TensorRecord) -> str:
        """The key of the tensor that a record refers to.

        Equal tensors are one: any of them will do.
        """
        if owner.name not in self._contents:
            held = self.records(owner).items()
            self._contents[owner.name] = {one.content: key for key, one in held if one.is_own}
        found = self._contents[owner.name].get(record.content)
        if found is None:
            raise self._damaged(
                owner,
                f"does not have the tensor {record.key!r} with the hash {record.hash[:24]}...",
            )
        return found

    def _base(self, folder: Path, base: str) -> tuple[Path, str]:
        up, _, rest = base.partition("/")
        place, _, key = rest.partition("/")
        if up != ".." or not key:
            raise self._damaged(folder, f"names {base!r}, not a tensor of a checkpoint")
        return self._other(folder, f"../{place}/"), key

    def _other(self, folder: Path, reference: str) -> Path:
        place = reference.split("/")[1]
        try:
            Position.parse(place)
        except ValueError as error:
            raise self._damaged(folder, f"names {place!r}, not a checkpoint") from error
        # resolved: a folder outside of a run may be reached through a symbolic link
        return folder.resolve().parent / place

    def _damaged(self, folder: Path, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"the checkpoint {folder} ({STATE}) {what}. {WHAT_TO_DO}")
